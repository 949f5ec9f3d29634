"""Fast copies: what is hot in an object store, or pinned to a slow device, has a copy on a fast one.

A copy is a file ``DEVICE/copies/<group>.<generation>.<nonce>`` with the bytes of the group as its owner, the slow
device, has them. It is a cache: whoever reads verifies what he reads as ever, and turns to the owner where the copy
fails; nothing is moved, repacked or repaired from it without a check. It may go at any time, counts as nobody's data,
and goes when its group is written anew. What is whole is found again after a restart.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from innkeeper.fabric.devices import FAST, ONLINE, Device, Devices
from innkeeper.fabric.meta import GroupRow
from innkeeper.system.files import File, FileSystem, write_all

PIECE_BYTES = 4 << 20
UNFINISHED = ".new"
NO_NONCE = "0"


class Copy(NamedTuple):
    """A copy: of which generation, on which device, its path and size."""

    generation: int
    nonce: str
    device: str
    path: str
    size_bytes: int


class Copies:
    """The copies of a pool's groups, by group number. Safe for threads."""

    def __init__(self, files: FileSystem, devices: Devices) -> None:
        self._files = files
        self._devices = devices
        self._lock = threading.Lock()
        self._held: dict[int, Copy] = {}

    def find(self, rows: Mapping[int, GroupRow]) -> None:
        """Take what lies on the fast devices and is a copy of a group as it is now; all else there goes."""
        for device in self._devices.local():
            directory = f"{device.path}/copies"
            if not self._files.exists(directory):
                continue
            for name in self._files.listdir(directory):
                copy = self._copy_of(rows, device, f"{directory}/{name}", name)
                if copy is None:
                    with suppress(OSError):  # it is nobody's; the next opening tries again
                        self._files.unlink(f"{directory}/{name}")
                else:
                    self._held[int(name.partition(".")[0], 16)] = copy

    def _copy_of(self, rows: Mapping[int, GroupRow], device: Device, path: str, name: str) -> Copy | None:
        parts = name.split(".")
        try:
            row = rows.get(int(parts[0], 16))
            if (
                row is None
                or name != _name(row)
                or (device.tier, device.state) != (FAST, ONLINE)
                or row.device == device.id
            ):
                return None
            size = self._files.open(path).size()
        except (ValueError, OSError):
            return None
        return Copy(row.generation, row.nonce, device.id, path, size) if size >= row.size_bytes else None

    def open(self, row: GroupRow) -> File | None:
        """The copy of a group as it is now; None where there is none."""
        copy = self._held.get(row.number)
        if copy is None or (copy.generation, copy.nonce) != (row.generation, row.nonce):
            return None
        try:
            return self._files.open(copy.path)
        except OSError:
            self.drop(row.number)
            return None

    def make(self, row: GroupRow, source: File, device: Device) -> Copy:
        """Copy a group from its owner's file. Raises ``OSError``; then nothing is left of it."""
        directory = f"{device.path}/copies"
        path = f"{directory}/{_name(row)}"
        self._files.mkdir(directory)
        try:
            fresh = self._files.open(path + UNFINISHED, create=True)
            fresh.truncate(0)
            for at in range(0, row.size_bytes, PIECE_BYTES):
                write_all(fresh, [source.pread(min(PIECE_BYTES, row.size_bytes - at), at)], at)
            fresh.fdatasync()
            fresh.close()
            self._files.rename(path + UNFINISHED, path)
        except OSError:
            with suppress(OSError):  # what stays goes at the next opening
                self._files.unlink(path + UNFINISHED)
            raise
        copy = Copy(row.generation, row.nonce, device.id, path, row.size_bytes)
        with self._lock:
            self._held[row.number] = copy
        return copy

    def drop(self, number: int) -> bool:
        """Remove the copy of a group; whether there was one."""
        with self._lock:
            copy = self._held.pop(number, None)
        if copy is None:
            return False
        with suppress(OSError):  # what stays goes at the next opening
            self._files.unlink(copy.path)
        return True

    def held(self) -> dict[int, Copy]:
        """All copies by group number."""
        with self._lock:
            return dict(self._held)

    def place(self, size_bytes: int, reserve: Mapping[str, int]) -> Device | None:
        """The fast device with most room beyond what is reserved there, if it has enough for a copy."""
        rooms = [
            (self._devices.room(device)[2] - reserve.get(device.id, 0), device.id)
            for device in self._devices.local()
            if device.tier == FAST and device.state == ONLINE
        ]
        room, device_id = max(rooms, default=(0, ""))
        return self._devices.all[device_id] if rooms and room >= size_bytes else None


def _name(row: GroupRow) -> str:
    return f"{row.number:08x}.{row.generation:04x}.{row.nonce or NO_NONCE}"


def total_bytes(copies: Iterable[Copy]) -> int:
    return sum(copy.size_bytes for copy in copies)
