"""Processes of a vm that nobody recorded: a daemon died between starting one and writing its pid down.

Each vm has a uid of its own and a directory of its own for its sockets, which its processes name in their command
lines. Both must agree: another inn may have the same block of uids.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from innkeeper.compute import launcher
from innkeeper.compute.adoption import HeldProcess, ProcessIdentity, start_ticks
from innkeeper.compute.launcher import GuestPlace
from innkeeper.model.problems import NotFound

log = logging.getLogger(__name__)


def of_place(place: GuestPlace, proc: Path = Path("/proc")) -> list[ProcessIdentity]:
    """The processes that run under the vm's uid and name its directory."""
    needle = os.fsencode(place.run_dir)
    found = []
    for directory in proc.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            ours = directory.stat().st_uid == place.uid and needle in (directory / "cmdline").read_bytes()
        except OSError:
            continue  # it has ended meanwhile
        ticks = start_ticks(int(directory.name)) if ours else None
        if ticks is not None:
            found.append(ProcessIdentity(int(directory.name), ticks))
    return found


async def fence_strays(place: GuestPlace) -> None:
    """Kill what still runs of the vm and remove what it leaves."""
    for identity in of_place(place):
        log.warning("process %s is of a vm that has ended; killing it", identity.pid)
        try:
            await HeldProcess(identity).fence()
        except NotFound:
            log.info("process %s ended by itself", identity.pid)
    launcher.clear(place)
