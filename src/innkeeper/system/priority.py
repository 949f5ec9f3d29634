"""Which threads of a process go first where there is more work than processors.

A thread begins with the nice value of the one that started it (``sched(7)``): what runs beside a thread that is
``ahead`` has to step back by itself.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress

AHEAD = -10
_LEVEL = os.getpriority(os.PRIO_PROCESS, 0)


def ahead() -> None:
    """Let this thread have a processor as soon as it wants one; without the right to, nothing changes."""
    _set(max(-20, _LEVEL + AHEAD))


def level() -> None:
    """Let this thread go where the process began."""
    _set(_LEVEL)


def _set(nice: int) -> None:
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
