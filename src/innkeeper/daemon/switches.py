"""Switches and their ports: documents here, bridges, taps, rules and DHCP by the network room."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime
from pathlib import Path

from innkeeper.daemon.allocate import free_number
from innkeeper.daemon.ports import port_policies, switch_policy
from innkeeper.daemon.rooms import Rooms
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Invalid, NotFound, Problem
from innkeeper.model.resources import Condition, Nic, PortForward, Switch, SwitchKind, Vm
from innkeeper.network import addresses, foreign
from innkeeper.network.kernel import Report
from innkeeper.network.plan import Standing
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.switch import SwitchRunner
from innkeeper.system import process

log = logging.getLogger(__name__)

REPAIR_INTERVAL_S = 30.0


class Switches:
    """The ``switch`` noun, and the ports of cards."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._runner = SwitchRunner(rooms.paths.inn_id, rooms.paths.run / "switches")
        self._watchman: asyncio.Task[None] | None = None
        self._plugged: set[str] = set()
        """Ids of the cards whose vm has a process: their ports stand."""

    # --- life ---

    async def ensure_all(self) -> None:
        """Bring every switch, and the ports of guests that may still run, to what is desired."""
        store = self._rooms.store
        running = {vm.id for vm in store.ls(Vm) if vm.status.pid is not None}
        self._plugged = {nic.id for nic in store.ls(Nic) if nic.vm_id in running}
        self._report(await self._runner.start(self._standing(switch) for switch in store.ls(Switch)))
        self._watchman = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """Put right what others change behind the inn's back, for as long as the daemon lives."""
        while True:
            await asyncio.sleep(REPAIR_INTERVAL_S)
            try:
                self._report(await self._runner.repair())
            except Problem as refused:
                log.warning("the switches cannot be repaired: %s", refused)

    def _report(self, report: Report) -> None:
        for done in report.done:
            log.warning("switches: %s", done)
        for switch in self._rooms.store.ls(Switch):
            self._note(switch, report.problems.get(switch.name))

    def _note(self, switch: Switch, problem: Problem | None) -> None:
        """Keep on the switch's document whether it stands."""
        wanted = [Condition(type="Degraded", status=True, reason=problem.code, message=str(problem))] if problem else []
        if [(c.reason, c.message) for c in switch.conditions] != [(c.reason, c.message) for c in wanted]:
            self._rooms.change(switch, None, conditions=wanted)

    async def down_all(self) -> None:
        """Take everything of the inn out of the kernel; documents stay."""
        await self._stop_watching()
        await self._runner.remove_all()
        self._plugged.clear()

    async def let_go(self) -> None:
        """The daemon ends; bridges, taps, rules and DHCP stay."""
        await self._stop_watching()
        await self._runner.close()

    async def _stop_watching(self) -> None:
        if self._watchman is not None:
            self._watchman.cancel()
            await asyncio.gather(self._watchman, return_exceptions=True)

    async def foreign_findings(self) -> list[foreign.Finding]:
        """What other policies of this host do to the guests' traffic."""
        switches = [switch for switch in self._rooms.store.ls(Switch) if switch.switch_kind != SwitchKind.PRIVATE]
        if not switches:
            return []
        listed = await process.run_async(["nft", "-j", "list", "ruleset"])
        through_ip = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        return foreign.findings(
            json.loads(listed.stdout)["nftables"],
            [self._rooms.paths.bridge(switch.number) for switch in switches],
            nat=any(switch.switch_kind == SwitchKind.NAT for switch in switches),
            bridge_netfilter=through_ip.exists() and through_ip.read_text().strip() == "1",
        )

    def gateways(self) -> tuple[tuple[str, str], ...]:
        """(bridge, address) of the switches that answer DHCP and DNS there."""
        switches = [switch for switch in self._rooms.store.ls(Switch) if switch.dhcp]
        return tuple((self._rooms.paths.bridge(one.number), one.gateway) for one in switches if one.gateway)

    # --- compiling ---

    def _policy(self, switch: Switch) -> SwitchPolicy:
        return switch_policy(self._rooms.paths, switch, self._rooms.store.find(Nic, switch_id=switch.id))

    def _ports(self, switch: Switch) -> list[PortPolicy]:
        nics = [nic for nic in self._rooms.store.find(Nic, switch_id=switch.id) if nic.id in self._plugged]
        return port_policies(self._rooms.paths, nics, {vm.id: vm for vm in self._rooms.store.ls(Vm)})

    def _standing(self, switch: Switch) -> Standing:
        return Standing(self._policy(switch), {port.tap: port for port in self._ports(switch)})

    # --- ports, for guests and cards ---

    async def refresh(self, switch: Switch) -> None:
        """Make the switch be as its documents say."""
        await self._runner.ensure(self._policy(switch), self._ports(switch))

    async def port_up(self, nic: Nic) -> None:
        """Give the card's vm its tap; may be repeated."""
        self._plugged.add(nic.id)
        try:
            await self.refresh(self._rooms.store.get(Switch, nic.switch_id))
        except Problem:
            self._plugged.discard(nic.id)
            raise

    async def port_down(self, nic: Nic) -> None:
        """Take the card's tap and rules away; may be repeated."""
        self._plugged.discard(nic.id)
        await self._runner.remove_port(self._rooms.paths.tap(nic.number))

    def _port(self, nic: Nic) -> PortPolicy:
        switch = self._rooms.store.get(Switch, nic.switch_id)
        tap = self._rooms.paths.tap(nic.number)
        return next(port for port in self._ports(switch) if port.tap == tap)

    async def port_changed(self, nic: Nic) -> None:
        """Follow a change of the card's document."""
        if nic.id in self._plugged:
            await self._runner.update_port(self._port(nic))

    def check_replug(self, nic: Nic) -> None:
        """Raises ``Conflict`` (``nic.in_use``) when the card's vm has a process."""
        if nic.id in self._plugged:
            raise Conflict(
                "nic.in_use",
                f"nic {nic.name!r} is in a running vm",
                remedy="shut the vm down first, or give it another card on that switch",
            )

    async def plan_port(self, nic: Nic, changed: Nic) -> views.Plan:
        """What ``port_changed`` would do for ``changed``."""
        switch = self._rooms.store.get(Switch, changed.switch_id)
        vms = {vm.id: vm for vm in self._rooms.store.ls(Vm)}
        others = [one for one in self._rooms.store.find(Nic, switch_id=switch.id) if one.id in self._plugged - {nic.id}]
        mine = [changed] if nic.id in self._plugged else []
        plan = self._runner.plan(self._policy(switch), port_policies(self._rooms.paths, [*others, *mine], vms))
        before, after = nic.model_dump(), changed.model_dump()
        steps = [f"{key}: {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]
        return views.Plan(summary=f"change nic {nic.name}", steps=[*steps, *plan.steps], diff=plan.diff)

    async def dropped_packets(self, nic: Nic) -> dict[str, int]:
        """Packets that each guard of the card's port dropped; empty while its vm has no process."""
        if nic.id not in self._plugged:
            return {}
        return await self._runner.counters(self._rooms.paths.tap(nic.number))

    def drop_forwards(self, nic: Nic) -> None:
        """Forget the port forwards to a card that goes."""
        switch = self._rooms.store.get(Switch, nic.switch_id)
        rest = [forward for forward in switch.forwards if forward.nic_id != nic.id]
        if len(rest) != len(switch.forwards):
            self._rooms.change(switch, None, forwards=rest)

    # --- the noun ---

    async def create(self, request: ask.SwitchCreate, *, dry_run: bool = False) -> Switch | views.Plan:
        """Raises ``Conflict`` (``switch.name_taken``, ``switch.subnet_in_use``), ``NoSpace``, ``Invalid``."""
        store = self._rooms.store
        self._rooms.check_name_free(Switch, request.name)
        subnet = await self._choose_subnet(request)
        switch = Switch(
            **request.model_dump(exclude={"kind", "subnet"}),
            switch_kind=request.kind,
            subnet=subnet,
            number=free_number(other.number for other in store.ls(Switch)),
        )
        if dry_run:
            plan = self._runner.plan(self._policy(switch), [])
            at = f" on {subnet}" if subnet else ""
            summary = f"create {request.kind} switch {request.name}{at}"
            return views.Plan(summary=summary, steps=list(plan.steps), diff=plan.diff)
        switch = store.create(switch)
        try:
            await self.refresh(switch)
        except Problem:
            store.delete("switch", switch.id)
            raise
        return switch

    async def _choose_subnet(self, request: ask.SwitchCreate) -> str | None:
        subnets = {switch.name: switch.subnet for switch in self._rooms.store.ls(Switch) if switch.subnet}
        if request.subnet is None and request.kind == SwitchKind.PRIVATE:
            return None
        routes = [] if request.kind == SwitchKind.PRIVATE else await self._runner.routes()
        if request.subnet is not None:
            return addresses.check_subnet(request.subnet, subnets, routes)
        return addresses.choose_subnet(subnets, routes)

    async def ls(self) -> list[Switch]:
        return self._rooms.store.ls(Switch)

    async def show(self, ref: str) -> views.SwitchDetail:
        switch = self._rooms.store.get(Switch, ref)
        bridge = self._rooms.paths.bridge(switch.number)
        leases = await self._runner.leases(bridge) if switch.gateway and switch.dhcp else []
        return views.SwitchDetail(
            **switch.model_dump(),
            bridge=bridge,
            gateway_address=switch.gateway,
            leases=[
                views.Lease(
                    address=lease.address,
                    mac=lease.mac,
                    hostname=lease.hostname,
                    expires_at=datetime.fromtimestamp(lease.expires, UTC) if lease.expires else None,
                )
                for lease in leases
            ],
        )

    async def set(
        self, ref: str, request: ask.SwitchSet, *, revision: int | None = None, dry_run: bool = False
    ) -> Switch | views.Plan:
        """Raises ``NotFound``, ``Conflict`` (``switch.forward_taken``, ``state.stale``), ``Invalid``."""
        switch = self._rooms.store.get(Switch, ref)
        changes = request.model_dump(exclude_none=True, exclude={"forwards"})
        if request.forwards is not None:
            changes["forwards"] = self._forwards(switch, request.forwards)
        changed = switch.model_copy(update=changes)
        if dry_run:
            plan = self._runner.plan(self._policy(changed), self._ports(changed))
            return views.Plan(summary=f"change switch {switch.name}", steps=list(plan.steps), diff=plan.diff)
        stored = self._rooms.change(switch, revision, **changes)
        try:
            await self.refresh(stored)
        except Problem:
            self._rooms.store.update(switch.model_copy(update={"revision": stored.revision}))
            raise
        return stored

    def _forwards(self, switch: Switch, wanted: list[ask.ForwardCreate]) -> list[PortForward]:
        if wanted and switch.switch_kind != SwitchKind.NAT:
            raise Invalid(
                "switch.forward",
                f"switch {switch.name!r} is {switch.switch_kind}: only nat forwards ports",
                remedy="make a switch with --kind nat",
            )
        taken = {
            (forward.protocol, forward.host_port, forward.host_address): other.name
            for other in self._rooms.store.ls(Switch)
            if other.id != switch.id
            for forward in other.forwards
        }
        forwards = []
        for wish in wanted:
            key = (wish.protocol, wish.host_port, wish.host_address)
            if key in taken:
                raise Conflict(
                    "switch.forward_taken",
                    f"{wish.protocol}/{wish.host_port} is forwarded already",
                    cause=f"by switch {taken[key]!r}",
                    remedy="choose another port of the host",
                )
            taken[key] = switch.name
            forwards.append(
                PortForward(
                    nic_id=self._forward_target(switch, wish).id,
                    **wish.model_dump(include={"protocol", "host_port", "guest_port", "host_address"}),
                )
            )
        return forwards

    def _forward_target(self, switch: Switch, wish: ask.ForwardCreate) -> Nic:
        store = self._rooms.store
        if wish.nic is not None:
            nic = store.get(Nic, wish.nic)
            candidates = [nic] if nic.switch_id == switch.id else []
        else:
            candidates = store.find(Nic, vm_id=store.get(Vm, wish.vm or "").id, switch_id=switch.id)
        if not candidates:
            raise NotFound(
                "nic.not_found",
                f"{wish.vm or wish.nic!r} has no card on switch {switch.name!r}",
                remedy=f"give the vm one first: inn nic create VM --switch {switch.name}",
            )
        return min(candidates, key=lambda nic: nic.index)

    async def rm(self, ref: str, *, dry_run: bool = False) -> Switch | views.Plan:
        """Raises ``Conflict`` (``switch.in_use``)."""
        switch = self._rooms.store.get(Switch, ref)
        bridge = self._rooms.paths.bridge(switch.number)
        nics = self._rooms.store.find(Nic, switch_id=switch.id)
        if nics:
            raise Conflict(
                "switch.in_use",
                f"switch {switch.name!r} has {len(nics)} cards",
                cause=", ".join(nic.name for nic in nics[:5]),
                remedy="remove the cards, or plug them into another switch",
            )
        if dry_run:
            plan = self._runner.plan_removal(bridge)
            return views.Plan(summary=f"remove switch {switch.name}", steps=list(plan.steps), diff=plan.diff)
        await self._runner.remove(bridge)
        self._rooms.store.delete("switch", switch.id)
        return switch
