"""Network cards: a mac and an address from the inn's pools, and a port on a switch."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from innkeeper.compute.inputs import check_room
from innkeeper.daemon.allocate import check_mac_free, free_mac, free_number
from innkeeper.daemon.ports import switch_policy
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Invalid, Problem
from innkeeper.model.resources import Guards, Nic, Switch, Vm
from innkeeper.network import addresses


class NicUsers(Protocol):
    """What cards need of guests: to plug one in or out of a guest that runs."""

    async def plug_nic(self, vm: Vm, nic: Nic) -> None: ...
    async def unplug_nic(self, vm: Vm, nic: Nic) -> None: ...


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
        ``Invalid`` (``nic.address_outside``, ``nic.no_subnet``).
        """
        switch = self._rooms.store.get(Switch, wish.switch)
        if wish.mac is not None:
            check_mac_free(wish.mac, (nic.mac for nic in self._rooms.store.ls(Nic)))
        self._choose_address(switch, wish.address)
        return switch

    def _choose_address(self, switch: Switch, wanted: str | None) -> str | None:
        if switch.subnet is None:
            if wanted is not None:
                raise Invalid(
                    "nic.no_subnet", f"switch {switch.name!r} has no subnet", remedy="leave the address out, or set one"
                )
            return None
        nics = self._rooms.store.find(Nic, switch_id=switch.id)
        taken = {address: nic.name for nic in nics for address in (nic.address, *nic.extra_addresses) if address}
        policy = switch_policy(self._rooms.paths, switch, nics)
        if wanted is not None:
            return addresses.check_address(policy, wanted, taken)
        return addresses.choose_address(policy, taken)

    def allocate(self, vm: Vm, wish: ask.VmNic, labels: dict[str, str] | None = None) -> Nic:
        """Record a new card of ``vm``; without a pause between choosing and recording, so nothing is given twice."""
        switch = self.check_wish(wish)
        nics = self._rooms.store.ls(Nic)
        index = free_number(nic.index + 1 for nic in nics if nic.vm_id == vm.id) - 1
        return self._rooms.store.create(
            Nic(
                name=f"{vm.name}-{index}",
                labels=labels or {},
                vm_id=vm.id,
                switch_id=switch.id,
                number=free_number(nic.number for nic in nics),
                mac=wish.mac or free_mac(self._rooms.paths.mac_prefix, (nic.mac for nic in nics)),
                address=self._choose_address(switch, wish.address),
                guards=wish.guards,
                index=index,
            )
        )

    async def remove(self, nic: Nic) -> None:
        """Take the card out of its switch and forget it; may be repeated."""
        await self._switches.port_down(nic)
        self._switches.drop_forwards(nic)
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
        wish = ask.VmNic(switch=request.switch, mac=request.mac, address=request.address, guards=request.guards)
        switch = self.check_wish(wish)
        check_room(nics=len(self._rooms.store.find(Nic, vm_id=vm.id)) + 1)
        if dry_run:
            return views.Plan(
                summary=f"plug a new card of vm {vm.name} into switch {switch.name}",
                steps=[f"address {self._choose_address(switch, request.address) or 'none'}"],
            )
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
        return views.NicDetail(
            **nic.model_dump(),
            vm_name=self._rooms.store.get(Vm, nic.vm_id).name,
            switch_name=self._rooms.store.get(Switch, nic.switch_id).name,
            tap=self._rooms.paths.tap(nic.number),
            dropped_packets=await self._switches.dropped_packets(nic),
        )

    async def set(
        self, ref: str, request: ask.NicSet, *, revision: int | None = None, dry_run: bool = False
    ) -> Nic | views.Plan:
        """Raises ``NotFound``, ``Conflict`` (``nic.address_in_use``, ``state.stale``), ``Invalid``."""
        nic = self._rooms.store.get(Nic, ref)
        changes = self._changes(nic, request)
        changed = nic.model_copy(update=changes)
        if changed.switch_id != nic.switch_id:
            self._switches.check_replug(nic)
        if dry_run:
            return await self._switches.plan_port(nic, changed)
        if changed.switch_id != nic.switch_id:
            self._switches.drop_forwards(nic)
        stored = self._rooms.change(nic, revision, **changes)
        await self._switches.port_changed(stored)
        return stored

    def _changes(self, nic: Nic, request: ask.NicSet) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if request.labels is not None:
            changes["labels"] = request.labels
        if request.guards is not None:
            wanted = request.guards.model_dump(exclude_none=True)
            changes["guards"] = Guards(**{**nic.guards.model_dump(), **wanted})
        if request.extra_addresses is not None:
            changes["extra_addresses"] = request.extra_addresses
        switch = self._rooms.store.get(Switch, request.switch or nic.switch_id)
        if switch.id != nic.switch_id:
            changes.update(switch_id=switch.id, address=self._choose_address(switch, request.address))
        elif request.address is not None and request.address != nic.address:
            changes["address"] = self._choose_address(switch, request.address)
        return changes

    async def rm(self, ref: str, *, dry_run: bool = False) -> Nic | views.Plan:
        nic = self._rooms.store.get(Nic, ref)
        vm = self._rooms.store.get(Vm, nic.vm_id)
        if dry_run:
            return views.Plan(summary=f"take card {nic.name} out of vm {vm.name}", steps=[f"mac {nic.mac}"])
        if self._users is not None:
            await self._users.unplug_nic(vm, nic)
        await self.remove(nic)
        return nic
