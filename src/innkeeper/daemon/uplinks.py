"""External switches: which cards of the host they take, and the moves of its network that wait to be confirmed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from innkeeper.daemon.rooms import Rooms
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Invalid, Problem
from innkeeper.model.resources import Condition, Switch, SwitchKind, now
from innkeeper.model.uplink import TeamMode, Uplink, UplinkVia
from innkeeper.network import uplink_plan as plan
from innkeeper.network.managers import find_manager
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.uplink_plan import NicFacts
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.uplinks import has_bonding

log = logging.getLogger(__name__)

_GUARD_FIRST_S = 1.0
"""How long after the deadline the daemon looks what its guard did."""
_LOOK_AGAIN_S = 2.0
"""Then, until it has done it: its deadline began when it was ready, which the document does not know."""


class Uplinks:
    """What ``Switches`` needs for external ones. ``refresh`` makes a switch be as its document says."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner, refresh: Callable[[Switch], Awaitable[None]]) -> None:
        self._rooms = rooms
        self._runner = runner
        self._refresh = refresh
        self._waiting: dict[str, asyncio.Task[None]] = {}

    # --- what is asked for ---

    async def wish(
        self, request: ask.SwitchCreate | ask.SwitchSet, mtu: int | None, switch_id: str | None
    ) -> tuple[Uplink, int, list[NicFacts]]:
        """The uplink that ``request`` describes, the switch's mtu, and the cards as they are.

        Raises ``Invalid`` (``switch.uplink``, ``switch.uplink_kind``, ``switch.uplink_mtu``), ``NotFound``
        (``switch.uplink_gone``), ``Conflict`` (``switch.uplink_taken``, ``switch.uplink_busy``,
        ``switch.uplink_network``), ``Unavailable`` (``switch.team_missing``).
        """
        names = request.uplinks or []
        mine = next((one for one in self._rooms.store.ls(Switch) if one.id == switch_id), None)
        others = [one for one in self._rooms.store.ls(Switch) if one.uplink is not None and one.id != switch_id]
        taken = {name: one.name for one in others if one.uplink for name in one.uplink.devices}
        plan.check_uplinks(names, request.team, taken)
        team = request.team if len(names) > 1 or request.team else None
        plan.check_team(team, has_bonding())
        cards = []
        for name in names:
            found = await self._own(mine, await self._runner.nic_facts(name))
            cards.append(plan.check_nic(name, self._managed(found), teamed=team is not None))
        mtu = min(plan.check_mtu(card, mtu) for card in cards)
        return self._uplink(cards, team, request.confirm_within_s), mtu, cards

    async def _own(self, switch: Switch | None, facts: NicFacts | None) -> NicFacts | None:
        """A card that the switch has already, as it will be when it is given back first."""
        if switch is None or switch.uplink is None or facts is None:
            return facts
        bridge = self._rooms.paths.bridge(switch.number)
        if facts.master not in (bridge, UplinkPolicy((), via="team").port(bridge)):
            return facts
        present = await self._runner.nic_facts(bridge) if facts.name == switch.uplink.devices[0] else None
        return plan.given_back(facts, present)

    @staticmethod
    def _managed(facts: NicFacts | None) -> NicFacts | None:
        return None if facts is None else plan.managed(facts, find_manager(facts.name, facts.index, Path("/")))

    @staticmethod
    def _uplink(cards: list[NicFacts], team: TeamMode | None, confirm_within_s: float) -> Uplink:
        via: UplinkVia = "team" if team else "cable" if cards[0].is_bridge else "card"
        first = next((card for card in cards if card.network.moves), cards[0])
        ordered = [first.name, *(card.name for card in cards if card is not first)]
        moves = first.network.moves and via != "cable"
        return Uplink(
            devices=ordered,
            team=team,
            via=via,
            state="pending" if moves else "taken",
            confirm_by=now() + timedelta(seconds=confirm_within_s) if moves else None,
            confirm_within_s=confirm_within_s,
            moved=first.network if moves else None,
            mac=first.mac if via != "cable" else None,
        )

    @staticmethod
    def sentences(uplink: Uplink, cards: list[NicFacts], bridge: str) -> list[str]:
        """What taking these cards does, for ``--dry-run``."""
        first = next(card for card in cards if card.name == uplink.devices[0])
        steps = plan.sentences(first, bridge, uplink.confirm_within_s)
        others = [card.name for card in cards if card is not first]
        return steps + ([f"plug {', '.join(others)} into the same team"] if others else [])

    # --- moves that wait ---

    def settle(self, *, at_start: bool = False) -> None:
        """Keep on the documents how moves came out. Before anything else at a start: a move without a record was
        undone by the reboot that took the record, or was never begun."""
        for switch in self._rooms.store.ls(Switch):
            uplink = switch.uplink
            if uplink is None or uplink.state != "pending":
                continue
            record = self._runner.read_uplink_record(self._rooms.paths.bridge(switch.number))
            if record is not None and record.state == "confirmed":
                self._became(switch, "taken")
            elif record is not None and record.state == "returned":
                self._became(switch, "returned", "; ".join(record.refused))
            elif record is None and at_start:
                self._became(switch, "returned", "the host was started anew before it was confirmed")

    async def follow(self) -> None:
        """``settle``, and have the kernel let go of uplinks whose move was given back."""
        self.settle()
        for each in self._rooms.store.ls(Switch):
            try:
                await self._let_go_returned(each.id)
            except Problem as refused:
                log.warning("switch %s does not let go of its uplink: %s", each.name, refused)

    async def _let_go_returned(self, switch_id: str) -> None:
        switch = self._rooms.store.get(Switch, switch_id)  # it may have been tried again meanwhile
        if switch.uplink is None or switch.uplink.state != "returned":
            return
        standing = self._runner.standing(self._rooms.paths.bridge(switch.number))
        if standing is not None and standing.switch.uplink is not None:
            await self._refresh(switch)

    async def forget_return(self, switch: Switch) -> None:
        """Let go of a move that was given back, before there is another."""
        if switch.uplink is not None and switch.uplink.state == "returned":
            await self._refresh(switch)
            await self._runner.forget_uplink_record(self._rooms.paths.bridge(switch.number))

    def _became(self, switch: Switch, state: str, cause: str = "") -> Switch:
        assert switch.uplink is not None
        uplink = switch.uplink.model_copy(update={"state": state, "confirm_by": None})
        conditions = []
        if state == "taken":
            self._rooms.journal.note(
                "UplinkConfirmed", switch, f"the host's network of {uplink.devices[0]} stays on it"
            )
        if state == "returned":
            message = f"the move was not confirmed, so {uplink.devices[0]} has the host's network again"
            reason = f"{message}; {cause}" if cause else message
            self._rooms.journal.note("UplinkReturned", switch, reason, "warning")
            conditions = [Condition(type="Degraded", status=True, reason="switch.not_confirmed", message=reason)]
        return self._rooms.change(switch, None, uplink=uplink, conditions=conditions)

    def began(self, switch: Switch) -> None:
        """The switch has just become as its document says."""
        if switch.uplink is not None and switch.uplink.state == "pending":
            moved = f"the host's network has moved to it from {switch.uplink.devices[0]}, until that is confirmed"
            self._rooms.journal.note("UplinkTaken", switch, moved)
        self.expect(switch)

    def expect(self, switch: Switch) -> None:
        """Look after the deadline how an unconfirmed move came out."""
        if switch.uplink is not None and switch.uplink.state == "pending":
            if (earlier := self._waiting.pop(switch.id, None)) is not None:
                earlier.cancel()
            self._waiting[switch.id] = asyncio.create_task(self._look_later(switch.id, switch.uplink))

    async def _look_later(self, switch_id: str, uplink: Uplink) -> None:
        left_s = (uplink.confirm_by - now()).total_seconds() if uplink.confirm_by else 0.0
        await asyncio.sleep(max(0.0, left_s) + _GUARD_FIRST_S)
        while True:
            try:
                if await self._came_out(switch_id):
                    return
            except Problem as refused:
                log.warning("the uplink of switch %s cannot be looked after: %s", switch_id, refused)
            except Exception:  # whatever it was, the next look may succeed
                log.exception("the uplink of switch %s cannot be looked after", switch_id)
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def _came_out(self, switch_id: str) -> bool:
        """Whether the move no longer waits; the switch is as its document says then."""
        found = next((one for one in self._rooms.store.ls(Switch) if one.id == switch_id), None)
        if found is None or found.uplink is None:
            return True
        await self._refresh(found)  # which gives back itself what a dead guard did not
        if found.uplink.state == "pending":
            self.settle()
            found = self._rooms.store.get(Switch, switch_id)
            await self._refresh(found)
        return found.uplink is None or found.uplink.state != "pending"

    async def let_go(self) -> None:
        """The daemon ends; guards go on waiting."""
        for waiting in self._waiting.values():
            waiting.cancel()
        await asyncio.gather(*self._waiting.values(), return_exceptions=True)
        self._waiting.clear()

    async def confirm(self, switch: Switch) -> Switch:
        """The host's network stays on ``switch``; may be repeated.

        Raises ``Invalid`` (``switch.not_external``), ``Conflict`` (``switch.not_confirmed``).
        """
        self.check_external(switch)
        uplink = switch.uplink
        if uplink is None or uplink.state == "taken":
            return switch
        bridge = self._rooms.paths.bridge(switch.number)
        if uplink.state == "returned" or not await self._runner.confirm_uplink(bridge):
            raise Conflict(
                "switch.not_confirmed",
                f"the host's network is no longer on switch {switch.name!r}",
                cause=f"it was not confirmed in time, so {uplink.devices[0]} has it again",
                remedy=f"try again: inn switch set {switch.name} --uplink {','.join(uplink.devices)}",
            )
        kept = self._became(self._rooms.store.get(Switch, switch.id), "taken")
        await self._runner.forget_uplink_record(bridge)
        await self._refresh(kept)
        return kept

    def stands(self, switch: Switch, request: ask.SwitchSet) -> bool:
        """Whether the switch has that uplink already. Raises ``Invalid`` (``switch.not_external``)."""
        self.check_external(switch)
        uplink = switch.uplink
        if uplink is None or uplink.state == "returned":
            return False
        return set(uplink.devices) == set(request.uplinks or ()) and uplink.team == request.team

    async def check_mtu(self, switch: Switch, mtu: int) -> None:
        """Raises ``Invalid`` (``switch.uplink_mtu``)."""
        for name in switch.uplink.devices if switch.uplink else []:
            facts = await self._runner.nic_facts(name)
            if facts is not None:
                plan.check_mtu(facts, mtu)

    @staticmethod
    def check_external(switch: Switch) -> None:
        """Raises ``Invalid`` (``switch.not_external``)."""
        if switch.switch_kind != SwitchKind.EXTERNAL:
            raise Invalid(
                "switch.not_external",
                f"switch {switch.name!r} is {switch.switch_kind}: it takes no card of the host",
                remedy="make a switch with --kind external",
            )

    # --- what is there ---

    async def cards(self, switch: Switch) -> list[views.UplinkCard]:
        """The cards of the switch's uplink as they are now."""
        found = []
        for name in switch.uplink.devices if switch.uplink else []:
            facts = await self._runner.nic_facts(name)
            card = views.UplinkCard(device=name, present=facts is not None)
            if facts is not None:
                card = views.UplinkCard(
                    device=name, present=True, carrier=facts.up and facts.carrier, mac=facts.mac, mtu=facts.mtu
                )
            found.append(card)
        return found
