"""A lock that does not stay with the thread that has it most."""

from __future__ import annotations

import threading


class FairLock:
    """A reentrant lock for ``with``: who waits gets it before the thread that has just let it go and wants it again.

    ``threading.RLock`` promises no order, and a thread that takes it again and again keeps all others out.
    """

    def __init__(self) -> None:
        self._turn = threading.Lock()
        """Held by whoever is next: the others, the last owner too, wait for this one."""
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._depth = 0

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for it."""
        return self._turn.locked()

    def __enter__(self) -> None:
        me = threading.get_ident()
        if self._owner != me:
            with self._turn:
                self._lock.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            self._lock.release()
