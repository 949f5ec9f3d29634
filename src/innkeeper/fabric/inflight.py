"""What is being read at the moment, so that who asks for the same extent waits for it instead of reading it again."""

from __future__ import annotations

import threading


class InFlight:
    """Entries that one thread each is reading, with the lock that it holds meanwhile. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading: dict[int, threading.Lock] = {}

    def begin(self, entry: int) -> threading.Lock | None:
        """None: the caller reads it, and calls ``end`` whatever comes of it. Else the lock of the one that does."""
        with self._lock:
            other = self._reading.get(entry)
            if other is None:
                held = self._reading[entry] = threading.Lock()
                held.acquire()
            return other

    def end(self, entry: int) -> None:
        with self._lock:
            self._reading.pop(entry).release()
