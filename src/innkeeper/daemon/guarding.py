"""What guards drop, told in the journal: which guard, at which port, of which vm, and how much; and what lists log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from innkeeper.daemon.acl_log import AclLog
from innkeeper.daemon.journal import Note
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.guards import GuardName
from innkeeper.model.problems import Problem
from innkeeper.model.resources import Nic, Vm
from innkeeper.network.switch import SwitchRunner

log = logging.getLogger(__name__)

TELL_INTERVAL_S = 10.0
WHAT: Mapping[GuardName, str] = {
    "mac": "frames from, or DHCP requests for, a mac that is not its own",
    "ip": "packets from an address that is not its own",
    "arp": "ARP that binds a mac or an address that is not its own",
    "nd": "neighbour discovery that binds a mac or an address that is not its own",
    "dhcp": "DHCP as only a server may send it",
    "router": "router advertisements or redirects",
    "frame": "frames in a form made to get around guards (tags, lengths, ethertypes, broken headers, fragments)",
    "storm": "broadcasts or multicasts above its rate",
}

Counters = Mapping[str, Mapping[str, int]]
"""Tap -> guard -> packets dropped."""


def fresh(before: Counters, after: Counters) -> dict[str, dict[str, int]]:
    """What was dropped between two looks; a counter that shows less than it did was made anew."""
    found: dict[str, dict[str, int]] = {}
    for tap, guards in after.items():
        known = before.get(tap, {})
        more = {
            name: count - (known.get(name, 0) if count >= known.get(name, 0) else 0) for name, count in guards.items()
        }
        if any(more.values()):
            found[tap] = {name: count for name, count in more.items() if count}
    return found


class Guarding:
    """Looks at the guards' counters now and then, for as long as the daemon lives."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner) -> None:
        self._rooms = rooms
        self._runner = runner
        self.acl_log = AclLog(rooms, runner)
        self._seen: Counters = {}
        self._turn = asyncio.Lock()
        self._looking: asyncio.Task[None] | None = None

    async def settle(self) -> None:
        """What was dropped before this daemon began was told by the one before, but for its last seconds."""
        self._seen = await self._counters()
        await self.acl_log.settle()
        self._looking = asyncio.create_task(self._keep_telling())

    async def let_go(self) -> None:
        """The daemon ends."""
        await self.acl_log.let_go()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _keep_telling(self) -> None:
        while True:
            await asyncio.sleep(TELL_INTERVAL_S)
            try:
                await self.tell()
            except Exception:  # whatever it was, the next look may succeed
                log.exception("what the guards dropped cannot be told")

    async def _counters(self) -> Counters:
        try:
            return await self._runner.all_counters()
        except Problem as refused:
            log.warning("the guards' counters cannot be read: %s", refused)
        except Exception:  # whatever it was, the next look may succeed, and a daemon starts without
            log.exception("the guards' counters cannot be read")
        return self._seen

    async def tell(self) -> None:
        """Write down what was dropped since the last look."""
        async with self._turn:
            now = await self._counters()
            dropped, self._seen = fresh(self._seen, now), now
        self._write(dropped)

    async def unplug(self, nic: Nic) -> None:
        """Write down what the card's port has dropped and logged since the last look: its counters go with it."""
        await self.acl_log.unplug(nic)
        tap = self._rooms.paths.tap(nic.number)
        async with self._turn:
            try:
                now = {tap: await self._runner.counters(tap)}
            except Problem:  # no such port, or no rules: there is nothing to tell
                return
            dropped, self._seen = fresh(self._seen, now), {**self._seen, **now}
        self._write(dropped)

    def _write(self, dropped: Counters) -> None:
        if not dropped:
            return
        cards = {self._rooms.paths.tap(nic.number): nic for nic in self._rooms.store.ls(Nic)}
        names = {vm.id: vm.name for vm in self._rooms.store.ls(Vm)}
        notes = []
        for tap, guards in dropped.items():
            if (nic := cards.get(tap)) is None:
                continue
            for guard, what in WHAT.items():
                if (count := guards.get(guard, 0)) == 0:
                    continue
                vm = names.get(nic.vm_id, nic.vm_id)
                message = f"guard {guard} of port {tap} (card {nic.name}, vm {vm}) dropped {what}"
                notes.append(Note("GuardDropped", nic, message, "warning", count))
        if notes:
            self._rooms.journal.note_all(notes)
