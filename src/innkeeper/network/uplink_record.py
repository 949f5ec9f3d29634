"""What the daemon and the guard of an uplink's move know in common: one small file, changed under a lock.

It lives below /run, so that after a reboot there is none: an unconfirmed move is then undone by the reboot itself.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ValidationError

from innkeeper.model.uplink import HostNetwork


class Record(BaseModel):
    """A move that waits to be confirmed. ``deadline_s`` is of the clock that counts since boot (``boot_time_s``)."""

    uplink: str
    bridge: str
    network: HostNetwork
    deadline_s: float
    state: Literal["pending", "confirmed", "returned"] = "pending"
    refused: list[str] = []


def records(directory: Path) -> Path:
    """Where the records of an inn are whose runner's directory is ``directory``."""
    return directory.parent / "uplinks"


def boot_time_s() -> float:
    """Seconds since boot, those asleep included: nobody sets this clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class RecordFile:
    """The record of the move to ``bridge``, and the ready mark of its guard."""

    def __init__(self, directory: Path, bridge: str) -> None:
        self.path = directory / f"{bridge}.json"
        self._lock = directory / f"{bridge}.lock"
        self.ready = directory / f"{bridge}.ready"

    @classmethod
    def at(cls, path: Path) -> RecordFile:
        return cls(path.parent, path.stem)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the record against the other party."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def mark_ready(self) -> None:
        """This process is the guard, and waits."""
        fresh = self.ready.with_suffix(f".{os.getpid()}")
        fresh.write_text(str(os.getpid()))
        fresh.rename(self.ready)

    def guarded(self) -> bool:
        """Whether a guard waits for it."""
        try:
            pid = int(self.ready.read_text())
            return str(self.path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return False

    def read(self) -> Record | None:
        """The record; None when there is none."""
        try:
            return Record.model_validate_json(self.path.read_bytes())
        except (FileNotFoundError, ValidationError):  # a file that is not whole was never in force
            return None

    def write(self, record: Record) -> None:
        """Put ``record`` in force, whole or not at all."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self.path.with_suffix(".new")
        fresh.write_text(record.model_dump_json())
        fresh.rename(self.path)

    def remove(self) -> None:
        """Forget it; its guard ends. The lock's file stays: who waits for it must find the same."""
        for path in (self.path, self.ready, self.path.with_suffix(".new")):
            path.unlink(missing_ok=True)
