"""What decides about a packet at a card's port, and whether one end of a switch reaches another: asked of documents."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping

from innkeeper.daemon.ports import port_policies, switch_policy
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.problems import Invalid, NotFound
from innkeeper.model.resources import Acl, Nic, Switch, Vm
from innkeeper.model.tracing import PacketAsk, ReachAsk, Trace, TraceStep
from innkeeper.network.acl_decision import REQUEST, Packet
from innkeeper.network.policy import PortPolicy
from innkeeper.network.reach import End, Step, pass_port, reach


class Tracing:
    """Answers by the rules that a port has, or would have if its vm had a process."""

    def __init__(self, rooms: Rooms, learned: Callable[[Nic], Mapping[str, str]]) -> None:
        self._rooms = rooms
        self._learned = learned

    def trace(self, nic: Nic, asked: PacketAsk) -> Trace:
        """Raises ``Invalid`` (``trace.address``)."""
        port, number = self._port(nic), asked.number or 0
        version = ipaddress.ip_address(asked.remote).version
        local = asked.local or _address(port, version)
        if local is None or ipaddress.ip_address(local).version != version:
            raise Invalid(
                "trace.address",
                f"a packet between {local or nic.name} and {asked.remote} cannot be",
                cause="both ends have an IPv4 address, or both an IPv6 address",
                remedy="say the card's address with --local",
            )
        ports = (None, None) if asked.fragment else (asked.local_port, asked.remote_port)
        ends = [(local, ports[0], nic.mac), (asked.remote, ports[1], asked.remote_mac or "")]
        source, target = ends if asked.direction == "out" else reversed(ends)
        echo = number in REQUEST and not asked.fragment
        packet = Packet(
            source[0],
            target[0],
            number,
            source_port=source[1],
            target_port=target[1],
            icmp_type=(REQUEST[number] if asked.icmp_type is None else asked.icmp_type) if echo else None,
            echo_id=1 if echo else None,
            fragment=asked.fragment,
            source_mac=source[2],
            target_mac=target[2],
        )
        steps, _ = pass_port(nic.name, port, asked.direction, packet, {})
        return _trace(steps)

    def simulate(self, switch: Switch, asked: ReachAsk) -> Trace:
        """Raises ``NotFound`` (``nic.not_found``), ``Invalid`` (``trace.address``)."""
        nics = self._rooms.store.find(Nic, switch_id=switch.id)
        policy = switch_policy(self._rooms.paths, switch, nics)
        cards = [self._card(switch, nics, ref) for ref in (asked.source, asked.target)]
        version = self._version(asked, cards)
        ends = []
        for ref, nic in zip((asked.source, asked.target), cards, strict=True):
            port = self._port(nic) if nic else None
            address = _address(port, version) if port else ref
            ends.append(End(nic.name if nic else ref, address or "", port))
        return _trace(reach(policy, ends[0], ends[1], asked.number or 0, asked.port).steps)

    def _version(self, asked: ReachAsk, cards: list[Nic | None]) -> int:
        """The IP version that both ends speak, IPv4 if they can."""
        if cards == [None, None]:
            raise Invalid("trace.address", "neither end is a card", remedy="name a vm or a card as one of them")
        versions = {4, 6}
        for ref, nic in zip((asked.source, asked.target), cards, strict=True):
            if nic is None:
                versions &= {ipaddress.ip_address(ref).version}
            elif _address(self._port(nic), 4) is None:
                versions &= {6}
        versions -= {6} if asked.protocol == "icmp" else {4} if asked.protocol == "icmpv6" else set()
        if not versions:
            raise Invalid(
                "trace.address",
                f"{asked.source} and {asked.target} have no IP version in common for {asked.protocol}",
                remedy="name an address of the other version, or icmpv6 for IPv6",
            )
        return min(versions)

    def _card(self, switch: Switch, nics: list[Nic], ref: str) -> Nic | None:
        """The card that a vm, a card or an address of a card names; None for another address."""
        try:
            address = str(ipaddress.ip_address(ref))
        except ValueError:
            address = ""
        for nic in sorted(nics, key=lambda nic: nic.index):
            vm = self._rooms.store.get(Vm, nic.vm_id)
            if ref in (nic.name, nic.id, vm.name, vm.id) or (
                address and address in (nic.address, *nic.extra_addresses)
            ):
                return nic
        if address:
            return None
        raise NotFound(
            "nic.not_found",
            f"{ref!r} has no card on switch {switch.name!r}",
            remedy="name a vm or a card that is on it, or an address",
        )

    def _port(self, nic: Nic) -> PortPolicy:
        store = self._rooms.store
        acls = {acl.id: acl for acl in store.ls(Acl)}
        switch, vm = store.get(Switch, nic.switch_id), store.get(Vm, nic.vm_id)
        return port_policies(self._rooms.paths, switch, [nic], {vm.id: vm}, acls, self._learned)[0]


def _address(port: PortPolicy, version: int) -> str | None:
    """An address of the port."""
    if version == 6:
        return next(iter(port.ipv6), port.link_local)
    return next(iter(port.ipv4), None)


def _trace(steps: list[Step] | tuple[Step, ...]) -> Trace:
    return Trace(
        allowed=all(step.allowed for step in steps),
        steps=[TraceStep(where=step.where, allowed=step.allowed, line=step.line, logged=step.logged) for step in steps],
    )
