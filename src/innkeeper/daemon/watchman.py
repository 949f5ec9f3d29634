"""Keeping the switches as they shall be: at once when others touch them, and by a look now and then."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Mapping

from innkeeper.daemon.journal import HOST
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.problems import Failed, Problem, Unavailable
from innkeeper.model.resources import Nic, Resource, Switch
from innkeeper.network.report import Report
from innkeeper.network.switch import SwitchRunner

log = logging.getLogger(__name__)

LOOK_INTERVAL_S = 30.0
SETTLE_S = 0.2
"""Who flushes rules or deletes links often does more within the same moment."""
REPAIR_INTERVAL_S = 1.0
"""Between two repairs: somebody who undoes each of them at once must not keep the inn busy."""


class Watchman:
    """``repair`` brings the kernel to what is desired."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner, repair: Callable[[], Awaitable[Report]]) -> None:
        self._rooms = rooms
        self._runner = runner
        self._repair = repair
        self._deaf = False

    async def run(self) -> None:
        """For as long as the daemon lives."""
        while True:
            touched = await self._touched()
            try:
                self._tell(await self._repair(), touched)
            except Problem as refused:
                log.warning("the switches cannot be repaired: %s", refused)
            except Exception:  # whatever it was, the next look may succeed
                log.exception("the switches cannot be repaired")
            if touched:
                await asyncio.sleep(REPAIR_INTERVAL_S)

    async def _touched(self) -> frozenset[str]:
        """What others have touched; nothing when it is time for a look."""
        if not self._deaf:
            try:
                if touched := await self._runner.touched(LOOK_INTERVAL_S):
                    await asyncio.sleep(SETTLE_S)
                return touched
            except Failed as refused:
                log.warning("%s; changes by others are found within %d s", refused, LOOK_INTERVAL_S)
                self._deaf = True
            except Unavailable:  # there are no switches yet: they are tried again at the next look
                pass
            except Exception:  # whatever it was, looking now and then goes on
                log.exception("changes by others are found within %d s", LOOK_INTERVAL_S)
                self._deaf = True
        await asyncio.sleep(LOOK_INTERVAL_S)
        return frozenset()

    def _tell(self, report: Report, touched: frozenset[str]) -> None:
        if touched and report.done:
            log.warning("others changed %s", ", ".join(sorted(touched)))
        devices: dict[str, Resource] = {
            self._rooms.paths.bridge(switch.number): switch for switch in self._rooms.store.ls(Switch)
        }
        devices |= {self._rooms.paths.tap(nic.number): nic for nic in self._rooms.store.ls(Nic)}
        for done in report.done:
            self._rooms.journal.note("SwitchRepaired", subject_of(done, devices) or HOST, done, "warning")


def subject_of(sentence: str, devices: Mapping[str, Resource]) -> Resource | None:
    """The card or switch that a sentence of a repair is about; None when it is about all of them."""
    named = [devices[word] for word in re.findall(r"[\w-]+", sentence) if word in devices]
    return named[0] if named else None
