"""Whether a packet passes a port, whether one end of a switch reaches another, and what decides it. Pure.

It says what the rules make nftables do with packets that are well formed: ``tests/network/test_reach.py`` sends the
same ones through real rules.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, replace

from innkeeper.model.acl import ICMP, ICMPV6, TCP, UDP
from innkeeper.network.acl_decision import REPLY, REQUEST, Flows, Packet, decide
from innkeeper.network.host_reach import is_gateway, judged
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.traffic import Direction
from innkeeper.network.vlan_policy import reaches

SOURCE_PORT = 40_000
"""Where what is simulated comes from."""
_UNSPECIFIED_TYPES = (131, 132, 133, 135, 143)


@dataclass(frozen=True, slots=True)
class Step:
    """What a packet comes by: where, whether it passes, which line or guard says so, and whether that is logged."""

    where: str
    allowed: bool
    line: str
    logged: bool = False


@dataclass(frozen=True, slots=True)
class End:
    """One end: a card's port, or with ``port`` None the host or what is beyond it."""

    name: str
    address: str
    port: PortPolicy | None = None

    @property
    def mac(self) -> str:
        return self.port.mac if self.port else ""


@dataclass(frozen=True, slots=True)
class Reach:
    """``steps`` end with the one that a packet does not pass, if there is one."""

    steps: tuple[Step, ...]

    @property
    def reaches(self) -> bool:
        return all(step.allowed for step in self.steps)


def guard_of(port: PortPolicy, packet: Packet) -> tuple[str, str] | None:
    """The guard that drops an IP packet that the port's vm sends, and why; None when it passes them."""
    guards = port.guards
    if guards.mac and packet.source_mac not in port.macs:
        return "mac", f"source mac {packet.source_mac} is not {port.mac}"
    ports = (packet.source_port, packet.target_port) if packet.protocol == UDP and not packet.fragment else (None, None)
    kind = packet.icmp_type if packet.protocol in (ICMP, ICMPV6) and not packet.fragment else None
    if (
        guards.frame
        and packet.version == 6
        and packet.fragment
        and (packet.hop_limit == 255 or packet.target.startswith("ff02:"))
    ):
        return "frame", "a fragment that may hide discovery"
    known: tuple[str, ...]
    routers: tuple[int, ...]
    if packet.version == 4:
        known, clients, routers = port.known4, 68, (5, 9)
        if packet.source == "0.0.0.0" and ports == (68, 67):
            return None
        strange = bool(port.ipv4) and packet.source not in known
    else:
        known, clients, routers = port.known6, 546, (134, 137, 138, 139, 140)
        strange = packet.source not in known and not (packet.source == "::" and kind in _UNSPECIFIED_TYPES)
    if guards.ip and strange:
        return "ip", f"source {packet.source} is none of {', '.join(known)}"
    if guards.dhcp and ports[1] == clients:
        return "dhcp", f"is for DHCP clients (port {clients})"
    if guards.router and kind in routers:
        return "router", f"is a router's message (ICMP type {kind})"
    return None


def pass_port(
    name: str, port: PortPolicy, direction: Direction, packet: Packet, kept: Flows
) -> tuple[list[Step], Flows]:
    """The steps of a packet at a port, and the flows that the port keeps then; the last step may not be passed."""
    steps = []
    if direction == "out" and port.guards.any:
        dropped = guard_of(port, packet)
        if dropped is not None:
            return [Step(f"{name}: guard {dropped[0]}", False, dropped[1])], kept
        steps.append(Step(f"{name}: guards", True, "its own mac and address"))
    decision = decide(port.acl, direction, packet, kept)
    where = "acl" if decision.stage in ("none", "exempt", "flow") else decision.stage
    last = Step(f"{name}: {where}, {direction}", decision.allowed, decision.line, decision.logged)
    return [*steps, last], decision.flows


def reach(switch: SwitchPolicy, source: End, target: End, protocol: int, port: int | None = None) -> Reach:
    """Whether a packet from ``source`` reaches ``target``, and the answer to it comes back.

    ``port`` is the target's, of TCP, UDP and SCTP; of ICMP an echo is asked for.
    """
    packet = Packet(
        source.address,
        target.address,
        protocol,
        source_port=None if port is None else SOURCE_PORT,
        target_port=port,
        icmp_type=REQUEST.get(protocol),
        echo_id=1 if protocol in REQUEST else None,
        source_mac=source.mac,
        target_mac=target.mac,
    )
    return Reach(tuple(_walk(switch, source, target, packet)))


def answer_to(packet: Packet) -> Packet:
    """The packet that the other end answers with."""
    return replace(
        packet,
        source=packet.target,
        target=packet.source,
        source_port=packet.target_port,
        target_port=packet.source_port,
        icmp_type=REPLY.get(packet.protocol),
        source_mac=packet.target_mac,
        target_mac=packet.source_mac,
    )


def _walk(switch: SwitchPolicy, source: End, target: End, packet: Packet) -> Iterator[Step]:
    """The steps up to the first that is not passed."""
    way = _way(switch, source, target, packet)
    yield way
    if not way.allowed:
        return
    to_host = target.port is None and is_gateway(switch, target.address)
    flows: dict[str, Flows] = {}
    for each, hops in ((packet, (source, target)), (answer_to(packet), (target, source))):
        label = "" if each is packet else "answer: "
        directions: tuple[Direction, Direction] = ("out", "in")
        for end, direction in zip(hops, directions, strict=True):
            if end.port is None:
                continue
            steps, flows[end.name] = pass_port(label + end.name, end.port, direction, each, flows.get(end.name, {}))
            yield from steps
            if not steps[-1].allowed:
                return
        if each is packet and to_host:
            host = Step("host", *judged(switch, packet))
            yield host
            if not host.allowed:
                return


def _way(switch: SwitchPolicy, source: End, target: End, packet: Packet) -> Step:
    """Whether the switch leads from one end to the other at all."""
    where = f"switch {switch.name}"
    if source.port is not None and target.port is not None:
        meet = reaches(source.port.vlan, target.port.vlan)
        return Step(where, meet, "both cards are on it" if meet else "their VLANs keep the cards apart")
    outer, inner = (source, target) if source.port is None else (target, source)
    apart = inner.port is not None and not inner.port.vlan.with_host
    if switch.kind == "external":
        if apart and _is_hosts(switch, outer.address):
            return Step(where, False, f"the VLAN of {inner.name} is apart from the host, which has {outer.address}")
        return Step(where, True, f"leads to {f'the VLAN of {inner.name}' if apart else 'the networks'} at its uplink")
    if apart:
        return Step(where, False, f"the VLAN of {inner.name} is apart from the host and what is beyond")
    if switch.kind == "private":
        return Step(where, False, "the host is no part of a private switch, and nothing is beyond it")
    if is_gateway(switch, outer.address):
        return Step(where, True, "the host is there")
    network = switch.network
    inside = network is not None and packet.version == 4 and ipaddress.IPv4Address(outer.address) in network
    if inside:
        known = switch.overlay is not None and any(outer.address == one.customer for one in switch.overlay.records)
        return Step(where, known, "a lookup record leads there" if known else f"{outer.address} is no card on it")
    if not switch.way_out or packet.version == 6:
        what = "leads nowhere else with IPv6" if switch.way_out else "leads nowhere else"
        return Step(where, False, f"a switch of kind {switch.kind} {what}")
    if outer is target:
        return Step(where, True, "leads out behind the host's address")
    asked = (packet.protocol, target.address, packet.target_port)
    names = {"tcp": TCP, "udp": UDP}
    if any(asked == (names[one.protocol], one.address, one.guest_port) for one in switch.forwards):
        return Step(where, True, "a forward leads in")
    return Step(where, False, "nothing comes in unasked, and no forward leads there")


def _is_hosts(switch: SwitchPolicy, address: str) -> bool:
    """Whether the host has that address on the uplink, where no frame has a tag."""
    network = switch.uplink.network if switch.uplink is not None else None
    own = () if network is None else network.addresses
    return ipaddress.ip_address(address) in [ipaddress.ip_address(one.address) for one in own]
