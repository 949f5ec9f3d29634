"""Processes of a vm that nobody recorded: a daemon died between starting one and writing its pid down.

Each vm has a uid of its own, so whatever runs under it is the vm's.
"""

from __future__ import annotations

import logging
from pathlib import Path

from innkeeper.compute import launcher
from innkeeper.compute.adoption import HeldProcess, ProcessIdentity, start_ticks
from innkeeper.compute.launcher import GuestPlace
from innkeeper.model.problems import NotFound

log = logging.getLogger(__name__)


def of_uid(uid: int, proc: Path = Path("/proc")) -> list[ProcessIdentity]:
    """The processes that run under ``uid``."""
    found = []
    for directory in proc.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            owner = directory.stat().st_uid
        except OSError:
            continue  # it has ended meanwhile
        ticks = start_ticks(int(directory.name)) if owner == uid else None
        if ticks is not None:
            found.append(ProcessIdentity(int(directory.name), ticks))
    return found


async def fence_strays(place: GuestPlace) -> None:
    """Kill what runs under the vm's uid and remove what it leaves."""
    for identity in of_uid(place.uid):
        log.warning("process %s runs under the uid of a vm that has ended; killing it", identity.pid)
        try:
            await HeldProcess(identity).fence()
        except NotFound:
            log.info("process %s ended by itself", identity.pid)
    launcher.clear(place)
