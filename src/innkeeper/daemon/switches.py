"""Switches and their ports: documents here, bridges, taps, rules and DHCP by the network room."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from datetime import UTC, datetime
from pathlib import Path

from innkeeper.daemon import overlays
from innkeeper.daemon.allocate import free_number
from innkeeper.daemon.captures import Captures
from innkeeper.daemon.forwards import forwards
from innkeeper.daemon.guarding import Guarding
from innkeeper.daemon.host_firewall import Firewall
from innkeeper.daemon.learning import Learning
from innkeeper.daemon.lost_taps import give_back
from innkeeper.daemon.metering import Metering
from innkeeper.daemon.minimums import check_rate
from innkeeper.daemon.ports import port_policies, switch_policy, vlan_policy
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.subnets6 import wished_subnet6
from innkeeper.daemon.tracing import Tracing
from innkeeper.daemon.uplinks import Uplinks
from innkeeper.daemon.vlans import check_uplink
from innkeeper.daemon.watchman import Watchman
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Problem
from innkeeper.model.resources import Acl, Condition, HostSettings, Nic, Switch, SwitchKind, Vm
from innkeeper.model.tracing import ReachAsk, Trace
from innkeeper.network import addresses, foreign
from innkeeper.network.dhcp_policy import check_dhcp
from innkeeper.network.plan import Standing
from innkeeper.network.policy import APART, PortPolicy, SwitchPolicy
from innkeeper.network.report import Report
from innkeeper.network.switch import SwitchRunner
from innkeeper.system import process

log = logging.getLogger(__name__)

_THROUGH_THE_HOST = (SwitchKind.INTERNAL, SwitchKind.NAT, SwitchKind.VIRTUAL)
"""Kinds of switch whose traffic may pass the host's own rules."""
_KEPT = {"name", "labels", "dhcp", "dns_domain", "ra_mode", "host_services", "uplink_rate_bits_per_s"}
_NOT_FIELDS = frozenset(("uplinks", "team", "confirm_within_s", "dhcp_settings", "overlay"))
"""Members of requests that are no fields of a switch, or not as they are."""


class Switches:
    """The ``switch`` noun, and the ports of cards."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._runner = SwitchRunner(rooms.paths.inn_id, rooms.paths.run / "switches")
        self.metering = Metering(rooms, self._runner)
        self.guarding = Guarding(rooms, self._runner)
        self._uplinks = Uplinks(rooms, self._runner, self.refresh)
        self.firewall = Firewall(rooms, self._runner)
        self.captures = Captures(rooms, self._runner)
        self.learning = Learning(rooms, self._runner, self._update_rules)
        self.tracing = Tracing(rooms, self.learning.known)
        self._watchman: asyncio.Task[None] | None = None
        self._plugged: set[str] = set()
        """Ids of the cards whose vm has a process: their ports stand."""
        self._newcomers: set[str] = set()
        """Ids of the cards that are just on their way to another network: nothing that was learned counts there."""
        self._started = False

    # --- life ---

    async def ensure_all(self) -> None:
        """Bring every switch, and the ports of guests that may still run, to what is desired."""
        store = self._rooms.store
        self._uplinks.settle(at_start=True)
        running = {vm.id for vm in store.ls(Vm) if vm.status.pid is not None}
        self._plugged = {nic.id for nic in store.ls(Nic) if nic.vm_id in running}
        report = await self._start()
        await give_back(self._rooms, self._runner, report)
        for done in report.done:
            log.warning("switches: %s", done)
        self._note_all(report)
        self._uplinks.settle()
        for switch in store.ls(Switch):
            self._uplinks.expect(switch)
        self._watchman = asyncio.create_task(Watchman(self._rooms, self._runner, self._repair).run())
        await self.metering.settle()
        await self.guarding.settle()
        await self.learning.settle(self._plugged)

    async def _start(self) -> Report:
        """Where it fails, for want of nft say, switches are degraded and all that needs none goes on."""
        switches = self._rooms.store.ls(Switch)
        try:
            standing = [self._standing(switch) for switch in switches]
            report = await self._runner.start(standing, self.firewall.elements())
        except Problem as refused:
            log.error("the switches cannot be started: %s", refused)
            self._started = False
            return Report(problems={switch.name: refused for switch in switches})
        self._started = True
        await self.firewall.settle()
        try:
            report.done += await self._runner.allow_docker(self.allows_docker)
        except Problem as refused:
            log.warning("Docker's rules are as they were: %s", refused)
        return report

    async def _repair(self) -> Report:
        if self._started:
            await self._uplinks.follow()
            report = await self._runner.repair()
        else:
            self._uplinks.settle()
            report = await self._start()
        await give_back(self._rooms, self._runner, report)
        self._note_all(report)
        self.learning.follow(self._plugged)
        return report

    def _note_all(self, report: Report) -> None:
        if docker := report.problems.get("Docker's rules"):
            log.warning("guests may be cut off by Docker: %s", docker)
        for switch in self._rooms.store.ls(Switch):
            self._note(switch, report.problems.get(switch.name))

    def _note(self, switch: Switch, problem: Problem | None) -> None:
        """Keep on the switch's document whether it stands."""
        if problem is None and switch.uplink is not None and switch.uplink.state == "returned":
            return  # until it is tried again
        wanted = [Condition(type="Degraded", status=True, reason=problem.code, message=str(problem))] if problem else []
        if [(c.reason, c.message) for c in switch.conditions] != [(c.reason, c.message) for c in wanted]:
            kept = self._rooms.change(switch, None, conditions=wanted)
            if problem is not None:
                self._rooms.journal.note("SwitchDegraded", kept, str(problem), "warning")
            else:
                self._rooms.journal.note("SwitchRestored", kept, "it is as it shall be again")

    async def down_all(self) -> None:
        """Take everything of the inn out of the kernel; documents stay."""
        await self._stop_watching()
        await self.metering.let_go()
        await self.guarding.let_go()
        await self.learning.let_go()
        self._plugged.clear()
        await self._runner.remove_all()

    async def let_go(self) -> None:
        """The daemon ends; bridges, taps, rules and DHCP stay."""
        await self._stop_watching()
        await self.metering.let_go()
        await self.guarding.let_go()
        await self.learning.let_go()
        await self._runner.close()

    async def _stop_watching(self) -> None:
        await self._uplinks.let_go()
        await self.firewall.let_go()
        self.captures.close()
        if self._watchman is not None:
            self._watchman.cancel()
            await asyncio.gather(self._watchman, return_exceptions=True)

    @property
    def allows_docker(self) -> bool:
        """Whether the administrator consents to a rule of the inn's among Docker's."""
        return any(settings.allow_docker for settings in self._rooms.store.ls(HostSettings))

    async def allow_docker(self, allowed: bool) -> None:
        """Settle it. Raises ``Failed`` (``tool.failed``)."""
        for done in await self._runner.allow_docker(allowed):
            log.info("switches: %s", done)
        settled = self._rooms.store.ls(HostSettings)
        if settled:
            self._rooms.change(settled[0], None, allow_docker=allowed)
        else:
            self._rooms.store.create(HostSettings(name="host", allow_docker=allowed))

    async def foreign_findings(self) -> list[foreign.Finding]:
        """What other policies of this host do to the guests' traffic."""
        every = self._rooms.store.ls(Switch)
        ways = [switch for switch in every if switch.switch_kind in _THROUGH_THE_HOST]
        switches = [switch for switch in ways if switch.overlay is None or switch.overlay.gateway]
        if not every:
            return []
        listed = await process.run_async(["nft", "-j", "list", "ruleset"])
        through_ip = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
        return foreign.findings(
            json.loads(listed.stdout)["nftables"],
            [overlays.way(self._policy(switch)) for switch in switches],
            nat=any(switch.switch_kind != SwitchKind.INTERNAL for switch in switches),
            guests_only=[self._rooms.paths.bridge(switch.number) for switch in every if switch not in switches],
            bridge_netfilter=through_ip.exists() and through_ip.read_text().strip() == "1",
        )

    def findings(self) -> tuple[tuple[str, str], ...]:
        """(switch, what is wrong with it), as was found when they were last looked after."""
        return tuple((one.name, each.message) for one in self._rooms.store.ls(Switch) for each in one.conditions)

    def gateways(self) -> tuple[tuple[str, str], ...]:
        """(bridge, address) of the switches that answer DHCP and DNS there."""
        ours = (SwitchKind.INTERNAL, SwitchKind.NAT)
        switches = [one for one in self._rooms.store.ls(Switch) if one.dhcp and one.switch_kind in ours]
        return tuple((self._rooms.paths.bridge(one.number), one.gateway) for one in switches if one.gateway)

    # --- compiling ---

    def _policy(self, switch: Switch) -> SwitchPolicy:
        return switch_policy(self._rooms.paths, switch, self._rooms.store.find(Nic, switch_id=switch.id))

    def _check_dhcp(self, switch: Switch) -> None:
        """Raises ``Invalid`` (``dhcp.*``, ``switch.no_subnet``), ``Conflict`` (``dhcp.reservation_taken``)."""
        nics, policy = self._rooms.store.ls(Nic), self._policy(switch)
        taken = {
            address: nic.name
            for nic in nics
            if nic.switch_id == switch.id
            for address in (nic.address, *nic.extra_addresses)
            if address and ":" not in address
        }
        check_dhcp(policy.dhcp_policy, policy.network, policy.gateway, taken, {nic.mac: nic.name for nic in nics})

    def _ports(self, switch: Switch) -> list[PortPolicy]:
        nics = [nic for nic in self._rooms.store.find(Nic, switch_id=switch.id) if nic.id in self._plugged]
        vms = {vm.id: vm for vm in self._rooms.store.ls(Vm)}

        def known(nic: Nic) -> dict[str, str]:
            return {} if nic.id in self._newcomers else self.learning.known(nic)

        return port_policies(self._rooms.paths, switch, nics, vms, self._acls(), known)

    def _acls(self) -> dict[str, Acl]:
        return {acl.id: acl for acl in self._rooms.store.ls(Acl)}

    def _standing(self, switch: Switch) -> Standing:
        return Standing(self._policy(switch), {port.tap: port for port in self._ports(switch)})

    # --- ports, for guests and cards ---

    async def refresh(self, switch: Switch) -> None:
        """Make the switch be as its documents say; the firewall first, that the host's network may move."""
        await self.firewall.follow()
        await self._runner.ensure(self._policy(switch), self._ports(switch))
        self.learning.follow(self._plugged)

    async def port_up(self, nic: Nic) -> None:
        """Give the card's vm its tap; may be repeated."""
        if nic.id not in self._plugged:
            await self.learning.port_is_new(nic)
        self._plugged.add(nic.id)
        try:
            await self.refresh(self._rooms.store.get(Switch, nic.switch_id))
        except Problem:
            self._plugged.discard(nic.id)
            raise

    async def port_down(self, nic: Nic) -> None:
        """Take the card's tap and rules away; may be repeated."""
        self._plugged.discard(nic.id)
        await self.metering.unplug(nic)
        await self._runner.remove_port(self._rooms.paths.tap(nic.number))
        self.learning.forget(nic)
        self.learning.follow(self._plugged)

    async def port_changed(self, nic: Nic, before: Nic) -> None:
        """Follow a change of the card's document, to another switch too.

        The port moves before anything pauses: a refresh of the former switch would remove a tap that is not its own.
        """
        switch = self._rooms.store.get(Switch, nic.switch_id)
        moves = (nic.switch_id, nic.vlan) != (before.switch_id, before.vlan)
        since_s = time.time()
        bridge, tap = self._rooms.paths.bridge(switch.number), self._rooms.paths.tap(nic.number)
        if nic.id in self._plugged:
            standing = self._runner.standing(bridge)
            there = standing.ports.get(tap) if standing is not None else None
            moves = there is None or there.vlan != vlan_policy(nic.vlan)  # it stays there where a change is taken back
        self._newcomers |= {nic.id} if moves else set()
        try:
            if nic.id in self._plugged:
                await self._runner.move_port(bridge, next(port for port in self._ports(switch) if port.tap == tap))
            if moves:
                self.learning.forget_before(nic, since_s)
        finally:
            self._newcomers.discard(nic.id)
        if moves and self.learning.known(nic):  # learned on the way
            await self._update_rules([nic])
        if nic.switch_id != before.switch_id:
            await self.refresh(self._rooms.store.get(Switch, before.switch_id))
            self.drop_forwards(before)
        elif (nic.address, nic.address6) != (before.address, before.address6):
            await self.refresh(switch)
        policy = self._policy(switch)
        standing = self._runner.standing(policy.bridge)
        if standing is not None and standing.switch.vlans != policy.vlans:  # it matters to all its ports
            await self.refresh(switch)
        self.learning.follow(self._plugged)

    async def acl_changed(self, acl: Acl) -> None:
        """Follow a change of a named ACL at all its ports at once.

        Raises ``Failed`` (``nft.refused``): none has changed.
        """
        await self._update_rules([nic for nic in self._rooms.store.ls(Nic) if acl.id in nic.acl.sets])

    async def _update_rules(self, cards: list[Nic]) -> None:
        """Bring the rules of those cards' ports to what is recorded, in one transaction."""
        nics = [nic for nic in cards if nic.id in self._plugged]
        taps = {self._rooms.paths.tap(nic.number) for nic in nics}
        switches = [self._rooms.store.get(Switch, switch_id) for switch_id in {nic.switch_id for nic in nics}]
        ports = [port for switch in switches for port in self._ports(switch) if port.tap in taps]
        await self._runner.update_rules(ports)

    def plan_port(self, summary: str, nic: Nic | None, changed: Nic | None) -> views.Plan:
        """What a change of a card does to its port; None stands for no card. No port changes while its vm is off."""
        one = changed or nic
        assert one is not None
        switch = self._rooms.store.get(Switch, one.switch_id)
        vms = {vm.id: vm for vm in self._rooms.store.ls(Vm)}
        others = [each for each in self._rooms.store.find(Nic, switch_id=switch.id) if each.id != one.id]
        policy = switch_policy(self._rooms.paths, switch, others if changed is None else [*others, changed])
        nics = [each for each in others if each.id in self._plugged]
        if changed is not None and (changed.id in self._plugged or (nic is None and vms[one.vm_id].status.pid)):
            nics.append(changed)
        known = self.learning.known
        plan = self._runner.plan(policy, port_policies(self._rooms.paths, switch, nics, vms, self._acls(), known))
        steps = []
        if nic is not None and changed is not None:
            before, after = nic.model_dump(), changed.model_dump()
            steps = [f"{key}: {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]
        return views.Plan(summary=summary, steps=[*steps, *plan.steps], diff=plan.diff)

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
            **request.model_dump(include=_KEPT),
            dhcp_settings=request.dhcp_settings,
            guards=request.guards,
            switch_kind=request.kind,
            subnet=subnet,
            subnet6=await wished_subnet6(self._rooms, self._runner, request.subnet6, request.kind),
            mtu=overlays.mtu(request),
            overlay=overlays.new(request, store.ls(Switch), await self._runner.addresses()),
            number=free_number(other.number for other in store.ls(Switch)),
        )
        outside: list[str] = []
        if request.kind == SwitchKind.EXTERNAL:
            switch, outside = await self._connect(switch, request)
        self._check_dhcp(switch)
        if dry_run:
            plan = self._runner.plan(self._policy(switch), [])
            at = f" on {subnet}" if subnet else ""
            summary = f"create {request.kind} switch {request.name}{at}"
            return views.Plan(summary=summary, steps=[*plan.steps, *outside], diff=plan.diff)
        switch = store.create(switch)
        try:
            await self.refresh(switch)
        except Problem:
            store.delete("switch", switch.id)
            raise
        self._uplinks.began(switch)
        return switch

    async def _connect(self, switch: Switch, request: ask.SwitchCreate | ask.SwitchSet) -> tuple[Switch, list[str]]:
        """``switch`` with the uplink and the mtu that are asked for, and what taking its cards does, in words."""
        mtu = request.mtu if "mtu" in request.model_fields_set else None
        uplink, mtu, cards = await self._uplinks.wish(request, mtu, switch.id)
        check_uplink(uplink, self._rooms.store.find(Nic, switch_id=switch.id))
        steps = self._uplinks.sentences(uplink, cards, self._rooms.paths.bridge(switch.number))
        return switch.model_copy(update={"uplink": uplink, "mtu": mtu, "dhcp": False}), steps

    async def confirm(self, ref: str) -> Switch:
        """Raises ``Invalid`` (``switch.not_external``), ``Conflict`` (``switch.not_confirmed``)."""
        return await self._uplinks.confirm(self._rooms.store.get(Switch, ref))

    async def _choose_subnet(self, request: ask.SwitchCreate) -> str | None:
        subnets = overlays.subnets_beside(request, self._rooms.store.ls(Switch))
        if request.subnet is None and request.kind in (SwitchKind.PRIVATE, SwitchKind.EXTERNAL):
            return None
        routes = [] if request.kind.value in APART else await self._runner.routes()
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
            own_records=overlays.own_records(switch, self._rooms.store.find(Nic, switch_id=switch.id)),
            gateway_address6=self._policy(switch).gateway6,
            leases=[
                views.Lease(
                    address=lease.address,
                    mac=lease.mac,
                    hostname=lease.hostname,
                    expires_at=datetime.fromtimestamp(lease.expires, UTC) if lease.expires else None,
                )
                for lease in leases
            ],
            cards=await self._uplinks.cards(switch),
        )

    async def set(
        self, ref: str, request: ask.SwitchSet, *, revision: int | None = None, dry_run: bool = False
    ) -> Switch | views.Plan:
        """Raises ``NotFound``, ``Conflict`` (``switch.forward_taken``, ``state.stale``), ``Invalid``."""
        if request.uplinks is not None:
            self._uplinks.settle()
        switch = self._rooms.store.get(Switch, ref)
        changes = request.model_dump(exclude_none=True, exclude={"forwards", "guards", *_NOT_FIELDS})
        if request.guards is not None:
            changes["guards"] = request.guards.applied_to_switch(switch.guards)
        if request.subnet6 is not None:
            kind = switch.switch_kind
            changes["subnet6"] = await wished_subnet6(self._rooms, self._runner, request.subnet6, kind, switch)
        if request.dhcp_settings is not None:
            changes["dhcp_settings"] = request.dhcp_settings.applied_to(switch.dhcp_settings)
        if request.forwards is not None:
            changes["forwards"] = forwards(self._rooms, switch, request.forwards)
        if request.overlay is not None:
            nics, held = self._rooms.store.ls(Nic), await self._runner.addresses()
            changes["overlay"] = overlays.changed(switch, request.overlay, nics, held)
        changed = switch.model_copy(update=changes)
        self._check_dhcp(changed)
        check_rate(changed, self._rooms.store.find(Nic, switch_id=changed.id))
        outside: list[str] = []
        if request.mtu is not None and request.uplinks is None:
            await self._uplinks.check_mtu(switch, request.mtu)
        if request.uplinks is not None and not self._uplinks.stands(switch, request):
            changed, outside = await self._connect(changed, request)
            changes.update(uplink=changed.uplink, mtu=changed.mtu, conditions=[])
        if dry_run:
            plan = self._runner.plan(self._policy(changed), self._ports(changed))
            steps = [*plan.steps, *outside]
            return views.Plan(summary=f"change switch {switch.name}", steps=steps, diff=plan.diff)
        if "uplink" in changes:
            await self._uplinks.forget_return(switch)
        if revision is None:  # it may have been looked after meanwhile, and its conditions changed
            switch = self._rooms.store.get(Switch, switch.id)
        stored = self._rooms.change(switch, revision, **changes)
        try:
            await self.refresh(stored)
        except Problem:
            self._rooms.take_back(switch, changes)
            raise
        self._uplinks.began(stored)
        return stored

    async def simulate(self, ref: str, request: ReachAsk) -> Trace:
        """Raises ``NotFound``, ``Invalid`` (``trace.address``)."""
        return self.tracing.simulate(self._rooms.store.get(Switch, ref), request)

    async def rm(self, ref: str, *, dry_run: bool = False) -> Switch | views.Plan:
        """Raises ``Conflict`` (``switch.in_use``, ``firewall.named``)."""
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
        self.firewall.check_unnamed(switch)
        if dry_run:
            plan = self._runner.plan_removal(bridge)
            return views.Plan(summary=f"remove switch {switch.name}", steps=list(plan.steps), diff=plan.diff)
        await self._runner.remove(bridge)
        self._rooms.store.delete("switch", switch.id)
        await self.firewall.follow()
        return switch
