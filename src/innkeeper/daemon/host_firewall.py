"""The host's firewall: what is asked for, what holds until it is confirmed, and how that came out."""

from __future__ import annotations

import asyncio
import difflib
import logging
from datetime import timedelta

from innkeeper.daemon.journal import HOST
from innkeeper.daemon.rooms import Rooms
from innkeeper.model import views
from innkeeper.model.host_firewall import FirewallTrial, HostFirewall, HostFirewallSet
from innkeeper.model.problems import Conflict, Invalid, Problem
from innkeeper.model.resources import HostSettings, Switch, SwitchKind, now
from innkeeper.network.host_firewall import Surroundings, contradictions, firewall_elements
from innkeeper.network.ruleset import Element
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.transaction import listing

log = logging.getLogger(__name__)

_KERNEL_FIRST_S = 0.2
"""How long after the end of a trial the daemon looks whether the kernel has ended it."""
_LOOK_AGAIN_S = 2.0


class Firewall:
    """The ``firewall`` noun."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner) -> None:
        self._rooms = rooms
        self._runner = runner
        self._one_at_a_time = asyncio.Lock()
        self._waiting: asyncio.Task[None] | None = None

    # --- documents ---

    def _settings(self) -> HostSettings:
        """The host's document, or what it is before there is one."""
        return next(iter(self._rooms.store.ls(HostSettings)), HostSettings(name="host"))

    def _keep(self, firewall: HostFirewall, trial: FirewallTrial | None) -> None:
        settled = self._rooms.store.ls(HostSettings)
        if settled:
            self._rooms.change(settled[0], None, firewall=firewall, firewall_trial=trial)
        else:
            self._rooms.store.create(HostSettings(name="host", firewall=firewall, firewall_trial=trial))

    def _switches(self) -> list[Switch]:
        return self._rooms.store.ls(Switch)

    # --- compiling ---

    def elements(self) -> frozenset[Element]:
        """What shall be in the rules, by the documents as they are."""
        settings = self._settings()
        found = self._compiled(settings.firewall)
        trial = settings.firewall_trial
        if trial is not None and not trial.returned:
            found |= firewall_elements("trial", trial.wish, self._around())
        return found

    def _compiled(self, firewall: HostFirewall) -> frozenset[Element]:
        return firewall_elements("standing", firewall, self._around())

    def _around(self) -> Surroundings:
        """A card that an external switch has, and that switch, stand for each other: one of them has the host's
        network, and which one it is may change at any time."""
        devices: dict[str, tuple[str, ...]] = {}
        peers: set[str] = set()
        for switch in self._switches():
            if switch.switch_kind == SwitchKind.EXTERNAL:
                cards = tuple(switch.uplink.devices) if switch.uplink else ()
                together = (self._rooms.paths.bridge(switch.number), *cards)
                devices |= dict.fromkeys((switch.id, *cards), together)
            if switch.overlay is not None:
                peers |= {record.provider_address for record in switch.overlay.records}
        return Surroundings(devices, frozenset(peers))

    # --- names ---

    def _id_of(self, place: str) -> str:
        """What documents call an interface or a switch. Raises ``Invalid`` (``firewall.place``)."""
        named = next((one for one in self._switches() if place in (one.name, one.id)), None)
        if named is not None and named.switch_kind != SwitchKind.EXTERNAL:
            raise Invalid(
                "firewall.place",
                f"switch {named.name!r} is {named.switch_kind}: its guests are not the outside",
                remedy=f"open a service of the host to them: inn switch set {named.name} --host-service tcp/22",
            )
        if named is None and len(place) > 15:
            raise Invalid(
                "firewall.place",
                f"{place!r} is no external switch, and too long for an interface",
                remedy="see 'inn switch ls' and 'ip link'",
            )
        return named.id if named is not None else place

    def _name_of(self, place: str) -> str:
        return next((one.name for one in self._switches() if one.id == place), place)

    def check_unnamed(self, switch: Switch) -> None:
        """Raises ``Conflict`` (``firewall.named``) where the firewall lets in by that switch: what comes in then
        would be locked out."""
        settings = self._settings()
        trial = settings.firewall_trial
        wishes = [settings.firewall, *([trial.wish] if trial is not None and not trial.returned else [])]
        if any(switch.id in wish.places for wish in wishes):
            raise Conflict(
                "firewall.named",
                f"the host's firewall names switch {switch.name!r}",
                cause="what it lets in by that switch would be locked out",
                remedy="name the card instead: inn host firewall set --management CARD; see 'inn host firewall show'",
            )

    # --- life ---

    async def follow(self) -> None:
        """Bring the rules to what the documents say, where a switch has changed what a place stands for."""
        wanted = self.elements()
        if wanted != self._runner.firewall():
            await self._runner.set_firewall(wanted)

    async def settle(self) -> None:
        """After a start: what nobody confirmed while no daemon looked holds no longer."""
        try:
            async with self._one_at_a_time:
                if not await self._came_out():
                    self._look_later()
        except Problem as refused:
            log.warning("the host's firewall cannot be looked after: %s", refused)

    async def _came_out(self) -> bool:
        """Whether no trial waits; one that the kernel has ended is kept as that."""
        settings = self._settings()
        trial = settings.firewall_trial
        if trial is None or trial.returned:
            return True
        if await self._runner.firewall_left_s() is not None:
            return False
        self._keep(settings.firewall, trial.model_copy(update={"returned": True}))
        message = "the host's firewall is as it was: its change was not confirmed in time"
        self._rooms.journal.note("FirewallReturned", HOST, message, "warning")
        await self.follow()
        return True

    def _look_later(self) -> None:
        self._look_no_more()
        self._waiting = asyncio.create_task(self._look())

    def _look_no_more(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    async def _look(self) -> None:
        """Until the trial has come out; whoever confirms it or begins another ends this."""
        while True:
            try:
                left_s = await self._runner.firewall_left_s()
                await asyncio.sleep((left_s or 0.0) + _KERNEL_FIRST_S)
                async with self._one_at_a_time:
                    if await self._came_out():
                        return
            except Problem as refused:
                log.warning("the host's firewall cannot be looked after: %s", refused)
                await asyncio.sleep(_LOOK_AGAIN_S)

    async def let_go(self) -> None:
        """The daemon ends; what waits goes on waiting in the kernel."""
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)

    # --- the noun ---

    async def show(self) -> views.FirewallView:
        async with self._one_at_a_time:
            await self._came_out()  # others may have flushed the rules, and the trial with them
        settings = self._settings()
        firewall, trial = settings.firewall.placed(self._name_of), settings.firewall_trial
        waits = trial is not None and not trial.returned
        return views.FirewallView(
            **firewall.model_dump(),
            trial=trial.wish.placed(self._name_of) if trial is not None and waits else None,
            confirm_by=trial.confirm_by if trial is not None and waits else None,
            not_confirmed=trial is not None and trial.returned,
            dropped_packets=await self._runner.firewall_dropped(),
            findings=await self.findings(),
        )

    async def findings(self) -> list[str]:
        """What an administrator will not have meant, of what holds and of what waits to be confirmed."""
        settings = self._settings()
        trial = settings.firewall_trial
        if trial is not None and not trial.returned:
            return await self._contradictions(trial.wish)
        return await self._contradictions(settings.firewall)

    async def _contradictions(self, firewall: HostFirewall) -> list[str]:
        around = self._around()
        masters: dict[str, str | None] = {}
        for place in firewall.places:
            if place in around.devices:
                masters[self._name_of(place)] = None
            elif (facts := await self._runner.nic_facts(place)) is not None:
                masters[place] = facts.master
        return contradictions(firewall.placed(self._name_of), masters)

    async def set(self, request: HostFirewallSet, *, dry_run: bool = False) -> views.FirewallView | views.Plan:
        """Raises ``Invalid`` (``firewall.place``), ``Failed`` (``nft.refused``): nothing has changed then."""
        async with self._one_at_a_time:
            await self._came_out()
            settings = self._settings()
            trial = (
                settings.firewall_trial if settings.firewall_trial and not settings.firewall_trial.returned else None
            )
            before = trial.wish if trial is not None else settings.firewall
            wish = request.applied_to(before, self._id_of)
            waits = wish.enabled and wish != settings.firewall
            if dry_run:
                return await self._plan(settings.firewall, wish, request.confirm_within_s if waits else None)
            if waits:
                await self._try(settings, wish, request.confirm_within_s)
            else:
                await self._hold(settings, wish)
        return await self.show()

    async def _hold(self, settings: HostSettings, wish: HostFirewall) -> None:
        """It holds at once: it keeps nobody out, or is what held before."""
        self._keep(wish, None)
        try:
            await self._runner.set_firewall(self.elements())
        except Problem:
            self._keep(settings.firewall, settings.firewall_trial)
            raise
        self._look_no_more()
        if wish != settings.firewall or settings.firewall_trial is not None:
            state = "holds as it was confirmed" if wish.enabled else "is off"
            self._rooms.journal.note("FirewallChanged", HOST, f"the host's firewall {state}")

    async def _try(self, settings: HostSettings, wish: HostFirewall, seconds: float) -> None:
        self._look_no_more()
        self._keep(settings.firewall, FirewallTrial(wish=wish, confirm_by=now() + timedelta(seconds=seconds)))
        try:
            await self._runner.try_firewall(self.elements(), seconds)
        except Problem:
            self._keep(settings.firewall, None)
            raise
        message = f"the host's firewall has changed, until that is confirmed within {seconds:g} s"
        self._rooms.journal.note("FirewallTried", HOST, message)
        self._look_later()

    async def _plan(self, before: HostFirewall, wish: HostFirewall, confirm_s: float | None) -> views.Plan:
        steps = _changes(before.placed(self._name_of), wish.placed(self._name_of))
        steps += [f"note: {finding}" for finding in await self._contradictions(wish)]
        if confirm_s is not None:
            steps.append(f"unless 'inn host firewall confirm' comes within {confirm_s:g} s, all is as it was")
        old, new = listing(self._compiled(before)), listing(self._compiled(wish))
        diff = difflib.unified_diff(old, new, "rules (now)", "rules (then)", lineterm="", n=0)
        return views.Plan(summary="change the host's firewall", steps=steps, diff="\n".join(diff))

    async def confirm(self) -> views.FirewallView:
        """What waits holds from now on; may be repeated.

        Raises ``Conflict`` (``firewall.not_confirmed``), ``Failed`` (``nft.refused``): it waits on.
        """
        async with self._one_at_a_time:
            await self._came_out()
            settings = self._settings()
            trial = settings.firewall_trial
            if trial is not None and trial.returned:
                raise Conflict(
                    "firewall.not_confirmed",
                    "the change of the host's firewall no longer holds",
                    cause="it was not confirmed in time, so all is as it was before",
                    remedy="make the change again: inn host firewall set …",
                )
            if trial is not None:
                self._keep(trial.wish, None)
                try:
                    await self._runner.set_firewall(self.elements())
                except Problem:
                    self._keep(settings.firewall, trial)
                    raise
                self._look_no_more()
                self._rooms.journal.note("FirewallConfirmed", HOST, "the host's firewall stays as it is")
        return await self.show()


def _changes(before: HostFirewall, after: HostFirewall) -> list[str]:
    """What differs, in words."""
    steps = []
    if before.enabled != after.enabled:
        steps.append("let nothing else reach the host from outside" if after.enabled else "let everything reach it")
    for name, old, new in (
        ("management", before.management, after.management),
        ("allow", before.allow, after.allow),
    ):
        steps += [f"{name}: {one}" for one in new if one not in old]
        steps += [f"no longer {name}: {one}" for one in old if one not in new]
    if before.echo != after.echo:
        steps.append("answer pings" if after.echo else "answer no pings")
    return steps
