"""What rules of access control lists log, told in the journal: port, card, vm, the rule, and what the frame was.

Three bounds keep a flood from the journal: nftables logs so many frames a second of each port and of all together,
and of each card so many different sentences are written down. What is left out is counted: the rules count all that
they decide, and what was not told of that is told as a number.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing

from innkeeper.daemon.journal import HOST, Note
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.problems import Problem
from innkeeper.model.resources import Nic, Vm
from innkeeper.network.acl_rules import LOG_PREFIX
from innkeeper.network.drift import readable
from innkeeper.network.features import ACL_LOG, lacking
from innkeeper.network.frame_words import words_of
from innkeeper.network.nflog import Logged, received
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.traffic import Direction
from innkeeper.system.kernel_parts import kernel_parts

log = logging.getLogger(__name__)

TELL_INTERVAL_S = 10.0
GATHER_S = 0.2
"""Between two readings, so that what is logged wakes the daemon a few times a second at most."""
RETRY_S = 30.0
SENTENCES_AT_ONCE, SENTENCES_PER_S = 50, 0.5
"""Different sentences about one card."""
_MOST_MESSAGES = 64

Place = tuple[str, Direction]
"""Tap and direction."""


class Budget:
    """How much may be said about each subject: so much at once, and then so much a second."""

    def __init__(self, at_once: float, per_s: float) -> None:
        self._at_once, self._per_s = at_once, per_s
        self._left: dict[str, tuple[float, float]] = {}
        """Subject -> (what was left, when)."""

    def take(self, subject: str, now_s: float) -> bool:
        """Whether one more may be said now; it is said then."""
        left, at_s = self._left.get(subject, (self._at_once, now_s))
        left = min(self._at_once, left + (now_s - at_s) * self._per_s)
        self._left[subject] = (left - 1, now_s) if left >= 1 else (left, now_s)
        return left >= 1

    def forget(self, kept: Iterable[str]) -> None:
        """Forget all subjects but these."""
        self._left = {subject: self._left[subject] for subject in kept if subject in self._left}


def place_of(frame: Logged, names: dict[int, str]) -> tuple[Place, str, str] | None:
    """Where a frame was logged, and the rule and what it did with it in words; None when it is none of a list's."""
    words = frame.prefix.split()
    if len(words) not in (3, 4) or words[0] != LOG_PREFIX or words[2] not in ("allow", "deny"):
        return None
    side, _, weight = words[1].partition("/")
    if side not in ("in", "out") or not weight.isascii() or not weight.isdigit():
        return None
    direction: Direction = "in" if side == "in" else "out"
    tap = names.get(frame.in_index if direction == "out" else frame.out_index)
    if tap is None:
        return None
    rule = f"rule {words[1]}" + (f" of acl {words[3]}" if len(words) == 4 else "")
    return (tap, direction), rule, "allowed" if words[2] == "allow" else "denied"


class AclLog:
    """Hears what rules log for as long as the daemon lives."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner) -> None:
        self._rooms = rooms
        self._runner = runner
        self._budget = Budget(SENTENCES_AT_ONCE, SENTENCES_PER_S)
        self._seen: dict[Place, int] = {}
        """What the rules had decided at the last look."""
        self._untold: Counter[Place] = Counter()
        """What had been decided by the last look, without what has been told: less than none where more was told."""
        self._turn = asyncio.Lock()
        self._hearing: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def settle(self) -> None:
        """What was decided before this daemon began is no longer told."""
        self._seen = await self._decided()
        if not lacking(ACL_LOG, kernel_parts(ACL_LOG.parts)):
            self._hearing = asyncio.create_task(self._keep_hearing())
            self._looking = asyncio.create_task(self._keep_counting())

    async def let_go(self) -> None:
        """The daemon ends."""
        for task in (self._hearing, self._looking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _keep_hearing(self) -> None:
        deaf = False
        while True:
            try:
                await self._hear()
            except Problem as refused:
                if not deaf:
                    self._rooms.journal.note("AclLogUnheard", HOST, str(refused), "warning")
                deaf = True
            except Exception:  # whatever it was, the next try may succeed
                log.exception("what rules log cannot be heard")
            await asyncio.sleep(RETRY_S)

    async def _hear(self) -> None:
        with closing(await self._runner.open_log()) as listening:
            while True:
                await readable([listening.fileno()], TELL_INTERVAL_S)
                await self.tell(list(received(listening, _MOST_MESSAGES)))
                await asyncio.sleep(GATHER_S)

    async def _keep_counting(self) -> None:
        while True:
            await asyncio.sleep(TELL_INTERVAL_S)
            try:
                await self.count()
            except Exception:  # whatever it was, the next look may succeed
                log.exception("what rules logged cannot be counted")

    async def tell(self, frames: list[Logged]) -> None:
        """Write down what was logged, as far as the budget goes."""
        if not frames:
            return
        names = await self._runner.link_names({index for one in frames for index in (one.in_index, one.out_index)})
        said: Counter[tuple[Place, str, str]] = Counter()
        for frame in frames:
            if (found := place_of(frame, names)) is not None:
                place, rule, done = found
                tag = f" in VLAN {frame.vlan_id}" if frame.vlan_id is not None else ""
                said[place, done, f"{rule} {done} {words_of(frame.ethertype, frame.packet)}{tag}"] += 1
        cards, vms = self._cards()
        notes = []
        for (place, done, sentence), count in said.items():
            nic = cards.get(place[0])
            if nic is not None and self._budget.take(nic.id, time.monotonic()):
                reason = "AclAllowed" if done == "allowed" else "AclDenied"
                notes.append(Note(reason, nic, f"{sentence} at {_port(place, nic, vms)}", "info", count))
                self._untold[place] -= count
        if notes:
            self._rooms.journal.note_all(notes)

    async def count(self) -> None:
        """Write down how much has not been told of what was decided by the look before this one.

        What was decided since then may be on its way still.
        """
        async with self._turn:
            decided = await self._decided()
            left = {place: count for place, count in self._untold.items() if count > 0}
            owed = {place: count for place, count in self._untold.items() if count < 0 and place in decided}
            self._untold = Counter(owed)
            self._add(decided)
        cards = self._write(left)
        self._budget.forget(nic.id for nic in cards.values())

    async def unplug(self, nic: Nic) -> None:
        """Write down what is left untold of the card's port: its counters go with it."""
        tap = self._rooms.paths.tap(nic.number)
        async with self._turn:
            decided = await self._decided()
            mine = {place: count for place, count in decided.items() if place[0] == tap}
            if not mine:
                return
            self._add({**self._seen, **mine})
            left = {place: self._untold.pop(place) for place in mine if self._untold[place] > 0}
        self._write(left)

    def _add(self, decided: dict[Place, int]) -> None:
        """A counter that shows less than it did was made anew."""
        for place, count in decided.items():
            known = self._seen.get(place, 0)
            self._untold[place] += count - (known if count >= known else 0)
        self._seen = decided

    async def _decided(self) -> dict[Place, int]:
        try:
            found = await self._runner.logged()
        except Problem as refused:
            log.debug("what rules logged cannot be counted: %s", refused)
            return self._seen
        except Exception:  # whatever it was, the next look may succeed, and a daemon starts without
            log.exception("what rules logged cannot be counted")
            return self._seen
        return {(tap, side): count for tap, sides in found.items() for side, count in sides.items()}

    def _cards(self) -> tuple[dict[str, Nic], dict[str, str]]:
        """Cards by tap, names of vms by id."""
        cards = {self._rooms.paths.tap(nic.number): nic for nic in self._rooms.store.ls(Nic)}
        return cards, {vm.id: vm.name for vm in self._rooms.store.ls(Vm)}

    def _write(self, left: dict[Place, int]) -> dict[str, Nic]:
        cards, vms = self._cards()
        notes = []
        for place, count in left.items():
            if (nic := cards.get(place[0])) is not None:
                sentence = f"rules that log decided more ({place[1]}) than is told one by one"
                notes.append(Note("AclLogSuppressed", nic, f"{sentence} at {_port(place, nic, vms)}", "info", count))
        if notes:
            self._rooms.journal.note_all(notes)
        return cards


def _port(place: Place, nic: Nic, vms: dict[str, str]) -> str:
    return f"port {place[0]} (card {nic.name}, vm {vms.get(nic.vm_id, nic.vm_id)})"
