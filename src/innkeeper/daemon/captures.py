"""Captures of cards' ports: how many run, and that none outlives the daemon."""

from __future__ import annotations

import logging
import sys
from weakref import WeakSet

from innkeeper.daemon.rooms import Rooms
from innkeeper.model.capturing import CaptureStart
from innkeeper.model.problems import Conflict
from innkeeper.model.resources import Nic
from innkeeper.network.capture import Capture, Limits
from innkeeper.network.switch import SwitchRunner

log = logging.getLogger(__name__)

MAX_CAPTURES = 8


class Captures:
    """Those that run."""

    def __init__(self, rooms: Rooms, runner: SwitchRunner) -> None:
        self._rooms = rooms
        self._runner = runner
        self._all: WeakSet[Capture] = WeakSet()

    async def start(self, nic: Nic, request: CaptureStart) -> Capture:
        """What passes the card's port from now on.

        Raises ``Invalid`` (``capture.filter``), ``NotFound`` (``nic.not_plugged``), ``Conflict``
        (``capture.too_many``).
        """
        if sum(not capture.closed for capture in self._all) >= MAX_CAPTURES:
            raise Conflict(
                "capture.too_many",
                f"{MAX_CAPTURES} captures run already",
                remedy="wait for one of them to end",
            )
        limits = Limits(request.seconds, request.max_bytes, request.count or sys.maxsize)
        capture = await self._runner.capture(self._rooms.paths.tap(nic.number), request.filter, limits)
        log.info("capture of nic %s, filter %r, %s s at most", nic.name, request.filter, request.seconds)
        self._all.add(capture)
        return capture

    def close(self) -> None:
        """End them all."""
        for capture in self._all:
            capture.close()
