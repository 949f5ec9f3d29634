"""Network cards: a mac and an address from the inn's pools, and a port on a switch."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Any, Protocol

from innkeeper.compute.inputs import check_room
from innkeeper.daemon import overlays
from innkeeper.daemon.acls import check_logs
from innkeeper.daemon.allocate import check_mac_free, free_mac, free_number
from innkeeper.daemon.learning import known_addresses
from innkeeper.daemon.minimums import check_minimums
from innkeeper.daemon.ports import addresses6, switch_policy
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.seeds import check_static, serves_dhcp
from innkeeper.daemon.subnets6 import check_address6
from innkeeper.daemon.switches import Switches
from innkeeper.daemon.vlans import check_priority, check_vlan, takes_vlans
from innkeeper.model import requests as ask, views
from innkeeper.model.acl import NicAcl, is_mac
from innkeeper.model.capturing import CaptureStart
from innkeeper.model.metering import MeterReport
from innkeeper.model.problems import Conflict, Invalid, Problem
from innkeeper.model.resources import Acl, Nic, Switch, SwitchKind, Vm
from innkeeper.model.tracing import PacketAsk, Trace
from innkeeper.model.traffic import NicTraffic
from innkeeper.model.vlan import NicVlan
from innkeeper.network import addresses
from innkeeper.network.capture import Capture
from innkeeper.network.ipv6 import LINK_LOCAL, interface_address
from innkeeper.network.policy import link_local_of


class NicUsers(Protocol):
    """What cards need of guests: to plug one in or out of a guest that runs."""

    async def plug_nic(self, vm: Vm, nic: Nic) -> None: ...
    async def unplug_nic(self, vm: Vm, nic: Nic) -> None: ...
    def link_down(self, vm: Vm, nic: Nic) -> AbstractAsyncContextManager[None]: ...


class Nics:
    """The ``nic`` noun, and what other services do with cards."""

    def __init__(self, rooms: Rooms, switches: Switches) -> None:
        self._rooms = rooms
        self._switches = switches
        self._users: NicUsers | None = None

    def serve(self, users: NicUsers) -> None:
        """Make the guests known that cards are plugged into."""
        self._users = users

    # --- for other services ---

    def check_wish(self, wish: ask.VmNic) -> Switch:
        """The switch that a new card would join, when its mac and its address can be had.

        Raises ``NotFound`` (``switch.not_found``), ``Conflict`` (``nic.mac_in_use``, ``nic.address_in_use``),
        ``Invalid`` (``nic.address_outside``, ``nic.no_subnet``, ``nic.vlan``).
        """
        switch = self._rooms.store.get(Switch, wish.switch)
        if wish.mac is not None:
            check_mac_free(wish.mac, macs_in_use(self._rooms, switch))
        self._choose_address(switch, wish.address)
        check_address6(self._rooms, switch, wish.address6)
        _check_mtu(switch, wish.mtu)
        if wish.static:
            self._check_static(switch)
        self._acl(wish.acl)
        check_vlan(switch, wish.vlan)
        check_priority(switch, wish.traffic)
        self._check_minimum(switch, "new", wish.traffic)
        return switch

    def _check_static(self, switch: Switch) -> None:
        if switch.subnet is None:
            raise Invalid(
                "nic.no_subnet", f"switch {switch.name!r} has no subnet", remedy="leave --static out on this switch"
            )

    def _check_minimum(self, switch: Switch, name: str, traffic: NicTraffic, nic_id: str | None = None) -> None:
        """Whether a card of the switch can be sure of its minimum beside all others."""
        if traffic.min_weight is not None or traffic.min_out_bits_per_s is not None:
            nics = self._rooms.store.find(Nic, switch_id=switch.id)
            check_minimums(switch, {**{nic.name: nic.traffic for nic in nics if nic.id != nic_id}, name: traffic})

    def _acl(self, acl: NicAcl) -> NicAcl:
        """``acl`` with its named ACLs as ids, each once.

        Raises ``NotFound`` (``acl.not_found``), ``Unavailable`` (``network.kernel_lacks``).
        """
        check_logs(acl.rules)
        return acl.model_copy(
            update={"sets": list(dict.fromkeys(self._rooms.store.get(Acl, ref).id for ref in acl.sets))}
        )

    def _choose_address(self, switch: Switch, wanted: str | None) -> str | None:
        if switch.subnet is None:
            if wanted is not None and switch.switch_kind == SwitchKind.EXTERNAL:
                return self._address_outside(switch, wanted)
            if wanted is not None:
                raise Invalid(
                    "nic.no_subnet", f"switch {switch.name!r} has no subnet", remedy="leave the address out, or set one"
                )
            return None
        nics = self._rooms.store.find(Nic, switch_id=switch.id)
        taken = {address: nic.name for nic in nics for address in (nic.address, *nic.extra_addresses) if address}
        taken |= overlays.holders(switch)
        policy = switch_policy(self._rooms.paths, switch, nics)
        if wanted is not None:
            return addresses.check_address(policy, wanted, taken)
        return addresses.choose_address(policy, taken)

    def _address_outside(self, switch: Switch, wanted: str) -> str:
        """An address of the network outside, which only that network's own administration can say is right."""
        for nic in self._rooms.store.find(Nic, switch_id=switch.id):
            if wanted in (nic.address, *nic.extra_addresses):
                raise Conflict(
                    "nic.address_in_use", f"{wanted} is in use by {nic.name}", remedy="choose another, or none"
                )
        return wanted

    def _check_extras(self, nic: Nic, switch: Switch, request: ask.NicSet) -> None:
        """What is another's own is nobody's extra; on another switch that holds for what the card keeps, too.

        Raises ``Conflict`` (``nic.address_in_use``, ``nic.mac_in_use``).
        """
        moves = switch.id != nic.switch_id
        extra_addresses, extra_macs = request.extra_addresses, request.extra_macs
        if moves:
            extra_addresses = nic.extra_addresses if extra_addresses is None else extra_addresses
            extra_macs = nic.extra_macs if extra_macs is None else extra_macs
        others = [one for one in self._rooms.store.ls(Nic) if one.id != nic.id]
        policy = switch_policy(self._rooms.paths, switch, others)
        own = {one.address: one.name for one in others if one.address and one.switch_id == switch.id}
        own |= {link_local_of(one.mac): one.name for one in others if one.switch_id == switch.id}
        own |= dict.fromkeys((switch.gateway or "", link_local_of(policy.mac)), f"switch {switch.name} itself")
        own |= (elsewhere := overlays.holders(switch))
        for address in extra_addresses or ():
            if address in own:
                raise Conflict(
                    "nic.address_in_use",
                    f"{address} is in use by {own[address]}",
                    remedy="choose another, or none: --extra-address, --no-extra-addresses",
                )
        for mac in extra_macs or ():
            check_mac_free(mac, [policy.mac, *(one.mac for one in others), *elsewhere])
        if moves and nic.mac in elsewhere:
            raise Conflict(
                "nic.mac_in_use",
                f"mac {nic.mac} is that of {elsewhere[nic.mac]} on switch {switch.name!r}",
                remedy="leave the record out, or give the vm a new card there: inn nic create",
            )

    def allocate(self, vm: Vm, wish: ask.VmNic, labels: dict[str, str] | None = None) -> Nic:
        """Record a new card of ``vm``; without a pause between choosing and recording, so nothing is given twice."""
        return self._rooms.store.create(self._new(vm, wish, labels))

    def _new(self, vm: Vm, wish: ask.VmNic, labels: dict[str, str] | None) -> Nic:
        switch = self.check_wish(wish)
        nics = self._rooms.store.ls(Nic)
        index = free_number(nic.index + 1 for nic in nics if nic.vm_id == vm.id) - 1
        return Nic(
            name=f"{vm.name}-{index}",
            labels=labels or {},
            vm_id=vm.id,
            switch_id=switch.id,
            number=free_number(nic.number for nic in nics),
            mac=wish.mac or free_mac(self._rooms.paths.mac_prefix, macs_in_use(self._rooms, switch)),
            address=(address := self._choose_address(switch, wish.address)),
            address6=check_address6(self._rooms, switch, wish.address6),
            mtu=wish.mtu,
            static=wish.static or (address is not None and not serves_dhcp(switch)),
            guards=wish.guards,
            acl=self._acl(wish.acl),
            traffic=wish.traffic,
            vlan=wish.vlan,
            index=index,
        )

    async def remove(self, nic: Nic) -> None:
        """Take the card out of its switch and forget it; may be repeated."""
        await self._switches.port_down(nic)
        self._switches.drop_forwards(nic)
        self._switches.metering.forget(nic)
        self._rooms.store.delete("nic", nic.id)
        await self._switches.refresh(self._rooms.store.get(Switch, nic.switch_id))

    async def follow_rename(self, vm: Vm) -> None:
        """Name the cards of a renamed vm after it; its DNS name changes with them."""
        for nic in self._rooms.store.find(Nic, vm_id=vm.id):
            self._rooms.change(nic, None, name=f"{vm.name}-{nic.index}")
            await self._switches.refresh(self._rooms.store.get(Switch, nic.switch_id))

    # --- the noun ---

    async def create(self, request: ask.NicCreate, *, dry_run: bool = False) -> Nic | views.Plan:
        """Raises ``NotFound``, ``Conflict`` (``nic.mac_in_use``, ``nic.address_in_use``), ``NoSpace``."""
        vm = self._rooms.store.get(Vm, request.vm)
        wish = ask.VmNic(**{name: value for name, value in request if name not in ("vm", "labels")})
        switch = self.check_wish(wish)
        if wish.static:
            check_static(vm)
        check_room(nics=len(self._rooms.store.find(Nic, vm_id=vm.id)) + 1)
        if dry_run:
            new = self._new(vm, wish, request.labels)
            plan = self._switches.plan_port(f"plug a new card of vm {vm.name} into switch {switch.name}", None, new)
            return plan.model_copy(update={"steps": [f"address {new.address or 'none'}", *plan.steps]})
        nic = self.allocate(vm, wish, request.labels)
        try:
            await self._switches.refresh(switch)
            if self._users is not None:
                await self._users.plug_nic(vm, nic)
        except (Problem, asyncio.CancelledError):
            await asyncio.shield(self.remove(nic))
            raise
        return nic

    async def ls(self) -> list[Nic]:
        return self._rooms.store.ls(Nic)

    async def show(self, ref: str) -> views.NicDetail:
        nic = self._rooms.store.get(Nic, ref)
        switch = self._rooms.store.get(Switch, nic.switch_id)
        in_force = nic.guards.over(switch.guards)
        leases = self._switches.learning.leases(nic)
        known4 = nic.address or any(one.mac == nic.mac and ":" not in one.address for one in leases)
        return views.NicDetail(
            **nic.model_dump(),
            vm_name=self._rooms.store.get(Vm, nic.vm_id).name,
            switch_name=switch.name,
            guards_in_force=in_force,
            guards_without_address=[name for name in ("ip", "arp") if getattr(in_force, name) and not known4],
            known_addresses=known_addresses(switch, nic, leases),
            tap=self._rooms.paths.tap(nic.number),
            ipv6_addresses=[interface_address(LINK_LOCAL, nic.mac), *addresses6(switch, nic)],
            dropped_packets=await self._switches.dropped_packets(nic),
        )

    async def set(
        self, ref: str, request: ask.NicSet, *, revision: int | None = None, dry_run: bool = False
    ) -> Nic | views.Plan:
        """Raises ``NotFound``, ``Conflict`` (``nic.address_in_use``, ``state.stale``), ``Invalid``."""
        nic = self._rooms.store.get(Nic, ref)
        changes = self._changes(nic, request)
        changed = nic.model_copy(update=changes)
        self._check_minimum(self._rooms.store.get(Switch, changed.switch_id), changed.name, changed.traffic, nic.id)
        if dry_run:
            return self._switches.plan_port(f"change nic {nic.name}", nic, changed)
        async with self._noticed(nic, changed):
            nic = self._rooms.store.get(Nic, nic.id)
            # What others recorded meanwhile counts; from here to the port's change nothing pauses.
            changes = self._changes(nic, request)
            stored = self._rooms.change(nic, revision, **changes)
            try:
                await self._switches.port_changed(stored, nic)
            except Problem:
                undone = self._rooms.change(stored, None, **{name: getattr(nic, name) for name in changes})
                with suppress(Problem):
                    await self._switches.port_changed(undone, stored)
                raise
        return self._rooms.store.get(Nic, stored.id)

    def _noticed(self, before: Nic, after: Nic) -> AbstractAsyncContextManager[None]:
        """While another switch or address comes into force the guest's card has no link: so it asks DHCP anew."""
        moved = after.switch_id != before.switch_id or (
            not after.static and _told_by_dhcp(after) != _told_by_dhcp(before)
        )
        if self._users is None or not moved:
            return nullcontext()
        return self._users.link_down(self._rooms.store.get(Vm, after.vm_id), after)

    def _changes(self, nic: Nic, request: ask.NicSet) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if request.labels is not None:
            changes["labels"] = request.labels
        if request.guards is not None:
            changes["guards"] = request.guards.applied_to(nic.guards)
        if request.traffic is not None:
            changes["traffic"] = request.traffic.applied_to(nic.traffic)
        if request.acl is not None:
            changes["acl"] = self._acl(request.acl.applied_to(nic.acl))
        if request.vlan is not None:
            changes["vlan"] = request.vlan
        switch = self._rooms.store.get(Switch, request.switch or nic.switch_id)
        moves, vlan, traffic = switch.id != nic.switch_id, request.vlan or nic.vlan, changes.get("traffic", nic.traffic)
        if moves or vlan != nic.vlan:  # what it has already must not keep all else from being changed
            check_vlan(switch, vlan)
        if moves or traffic.pcp != nic.traffic.pcp:
            check_priority(switch, traffic)
        self._check_extras(nic, switch, request)
        for name in ("extra_addresses", "extra_macs"):
            if getattr(request, name) is not None:
                changes[name] = getattr(request, name)
        if switch.id != nic.switch_id:
            changes.update(switch_id=switch.id, address=self._choose_address(switch, request.address))
        elif request.address is not None and request.address != nic.address:
            changes["address"] = self._choose_address(switch, request.address)
        if request.address6 is not None or switch.id != nic.switch_id:
            changes["address6"] = check_address6(self._rooms, switch, request.address6, nic)
        if request.mtu is not None:
            _check_mtu(switch, request.mtu)
            changes["mtu"] = request.mtu or None
        if request.static is not None:
            changes["static"] = request.static
        elif switch.id != nic.switch_id:
            changes["static"] = changes["address"] is not None and (nic.static or not serves_dhcp(switch))
        if request.static:
            self._check_static(switch)
            check_static(self._rooms.store.get(Vm, nic.vm_id))
        return changes

    async def meters(self, ref: str) -> MeterReport:
        """Raises ``NotFound``, ``Failed`` (``network.meters``)."""
        return await self._switches.metering.report(self._rooms.store.get(Nic, ref))

    async def reset_meters(self, ref: str) -> MeterReport:
        """Raises ``NotFound``, ``Failed`` (``network.meters``)."""
        return await self._switches.metering.reset(self._rooms.store.get(Nic, ref))

    async def trace(self, ref: str, request: PacketAsk) -> Trace:
        """Raises ``NotFound``, ``Invalid`` (``trace.address``)."""
        return self._switches.tracing.trace(self._rooms.store.get(Nic, ref), request)

    async def capture(self, ref: str, request: CaptureStart) -> Capture:
        """Raises ``NotFound`` (``nic.not_plugged``), ``Invalid`` (``capture.filter``), ``Conflict``."""
        return await self._switches.captures.start(self._rooms.store.get(Nic, ref), request)

    async def rm(self, ref: str, *, dry_run: bool = False) -> Nic | views.Plan:
        nic = self._rooms.store.get(Nic, ref)
        vm = self._rooms.store.get(Vm, nic.vm_id)
        if dry_run:
            plan = self._switches.plan_port(f"take card {nic.name} out of vm {vm.name}", nic, None)
            return plan.model_copy(update={"steps": [f"mac {nic.mac}", *plan.steps]})
        if self._users is not None:
            await self._users.unplug_nic(vm, nic)
        await self.remove(nic)
        return nic


def _told_by_dhcp(nic: Nic) -> tuple[str | None, str | None, int | None]:
    """What a card is told of itself by DHCP."""
    return nic.address, nic.address6, nic.mtu


def _check_mtu(switch: Switch, mtu: int | None) -> None:
    if mtu is not None and mtu > switch.mtu:
        raise Invalid(
            "nic.mtu",
            f"a card of switch {switch.name!r} cannot have an MTU of {mtu}",
            cause=f"the switch's is {switch.mtu}",
            remedy=f"raise that first: inn switch set {switch.name} --mtu {mtu}",
        )


def macs_in_use(rooms: Rooms, switch: Switch) -> set[str]:
    """The macs that no new card of ``switch`` can have: those of cards, reservations and, by records, other hosts."""
    reserved = (one.mac for each in rooms.store.ls(Switch) for one in each.dhcp_settings.reservations)
    return {*(nic.mac for nic in rooms.store.ls(Nic)), *reserved, *filter(is_mac, overlays.holders(switch))}


def like(nic: Nic, switch: Switch, mac: str | None = None) -> ask.VmNic:
    """A wish for another vm's card like this one, as far as ``switch`` can have it.

    Its minimum, and that it gets copies of others' frames, must be said again.
    """
    anew = {"mirror": "none", "min_weight": None, "min_out_bits_per_s": None}
    return ask.VmNic(
        switch=switch.id,
        mac=mac,
        static=nic.static and switch.subnet is not None,
        mtu=None if nic.mtu is None else min(nic.mtu, switch.mtu),
        guards=nic.guards,
        traffic=nic.traffic.model_copy(update=anew),
        acl=nic.acl,
        vlan=nic.vlan if takes_vlans(switch) else NicVlan(),
    )
