"""Snapshots that serve one request: noted before they are taken, so that a killed daemon leaves none for ever."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from innkeeper.daemon.rooms import Rooms
from innkeeper.model.problems import Unavailable
from innkeeper.model.resources import new_id

log = logging.getLogger(__name__)


def _notes(rooms: Rooms) -> Path:
    return rooms.paths.state / "temporary"


@asynccontextmanager
async def snapshot_of(rooms: Rooms, disk_id: str) -> AsyncIterator[str]:
    """A snapshot of the disk as it is now, by its id, while the context is open."""
    snapshot_id = new_id()
    note = _notes(rooms) / snapshot_id
    note.parent.mkdir(mode=0o700, exist_ok=True)
    note.touch()
    try:
        await rooms.fabric.snapshot_create({snapshot_id: disk_id})
        yield snapshot_id
    finally:
        await rooms.fabric.snapshot_rm(snapshot_id)
        note.unlink()


async def settle(rooms: Rooms) -> None:
    """Remove the snapshots of requests that a daemon died in."""
    for note in _notes(rooms).iterdir() if _notes(rooms).is_dir() else ():
        try:
            await rooms.fabric.snapshot_rm(note.name)
        except Unavailable as closed:  # its pool may be: the note stays for the next start
            log.warning("snapshot %s of a request that was cut short stays: %s", note.name, closed)
        else:
            note.unlink()
