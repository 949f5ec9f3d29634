"""Relief: what a write waits for that finds no room, and when it is told that there is none.

Who falls short asks, and gets a ticket. A drain of what the disks held when he asked is tried, and where that is not
enough a sweep that began after it; both are numbered by the last ticket that they count for. After them he has his
answer, whatever others write meanwhile. Nothing here waits or works: ``space`` asks, ``upkeep`` and ``sweep`` work.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

MOST_TRIES = 8
"""So often a sweep that made room for others is tried again, for one who did not get any of it."""
MOST_WAIT_S = 45.0
"""Nobody waits longer, whatever becomes of drains and sweeps."""
REFUSED_S = 10.0
"""So long a disk that could not be helped is refused at once, unless something is removed or trimmed meanwhile."""


class Relief:
    """Tickets of one pool. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given = 0
        self._disks: set[str] = set()
        self.drained = 0
        """The last ticket that a drain was tried for; below, that a sweep is asked for, and was tried for."""
        self._sweep_for = 0
        self.swept = 0
        self.freed_bytes = 0
        """By the last of these sweeps."""

    def ask(self, disk_ids: Iterable[str]) -> int:
        """A new ticket: those disks are to be drained."""
        with self._lock:
            self._given += 1
            self._disks.update(disk_ids)
            return self._given

    @property
    def wants_drain(self) -> bool:
        return self.drained < self._given

    def begin_drain(self) -> tuple[int, set[str]]:
        """The last ticket that a drain which begins now counts for, and the disks that it is of."""
        with self._lock:
            disks, self._disks = self._disks, set()
            return self._given, disks

    def ask_sweep(self, ticket: int) -> None:
        with self._lock:
            self._sweep_for = max(self._sweep_for, ticket)

    @property
    def wants_sweep(self) -> bool:
        return self.swept < self._sweep_for

    def begin_sweep(self) -> int:
        """The last ticket that a sweep which begins now counts for."""
        with self._lock:
            return self._sweep_for

    def end_sweep(self, ticket: int, freed_bytes: int) -> None:
        self.freed_bytes = freed_bytes
        self.swept = ticket


class Plight:
    """What a disk that falls short waits for, and how often it has tried; until when it is refused at once."""

    __slots__ = ("removals", "since", "ticket", "tries", "until")

    def __init__(self) -> None:
        self.ticket: int | None = None
        self.since = 0.0
        """When it fell short."""
        self.tries = 0
        self.until = 0.0
        self.removals = -1

    def over(self) -> None:
        """It has room, or may hope again."""
        self.ticket, self.tries, self.until = None, 0, 0.0
