"""Time, randomness and scheduling, injectable.

The fabric asks these objects and nothing else; a test passes simulated ones and decides itself when time goes on, what
chance says and which background step runs next.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Protocol

from innkeeper.system import priority

log = logging.getLogger(__name__)

AFTER_FAILURE_S = 5.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Clock(Protocol):
    """Sources of time."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def monotonic(self) -> float:
        """Seconds that never go backwards."""

    def busy(self) -> float:
        """Seconds of processor time that this process has taken, and that this thread has waited for a processor."""

    def idle(self) -> float:
        """Seconds in which the machine's processors had nothing to do, of all of them together; in steps of 10 ms."""

    def stolen(self) -> float:
        """Seconds that a host kept the machine's processors from it, of each on average; in steps of 10 ms or less."""

    def sleep(self, seconds: float) -> None:
        """Let so much time pass."""


class RealClock:
    """The machine's clocks."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def busy(self) -> float:
        return time.process_time() + _waited_for_a_processor()

    def idle(self) -> float:
        times = _times()
        return sum(times[3:5]) if times else time.monotonic()  # as if one always were

    def stolen(self) -> float:
        times = _times()
        return times[7] / (os.cpu_count() or 1) if times else 0.0

    def sleep(self, seconds: float) -> None:
        if seconds > 0:
            time.sleep(seconds)


def _waited_for_a_processor() -> float:
    """Seconds that this thread was ready to run and was not let (proc_pid_schedstat(5)); 0 where the kernel does not
    say."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def _times() -> list[float]:
    """Seconds that the processors spent in each state, idle at 3, waiting for devices at 4, stolen at 7 (proc_stat(5));
    nothing where the kernel does not say."""
    with suppress(OSError, ValueError), open("/proc/stat", encoding="ascii") as stat:
        times = [int(ticks) / _TICKS_PER_S for ticks in stat.readline().split()[1:]]
        return times if len(times) > 7 else []
    return []


class SimulatedClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self, start: float = 1_000_000.0) -> None:
        self._now = start

    def now(self) -> float:
        return self._now

    def monotonic(self) -> float:
        return self._now

    def busy(self) -> float:
        return 0.0

    def idle(self) -> float:
        return self._now

    def stolen(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self._now += seconds


class Randomness(Protocol):
    """A source of bytes."""

    def token(self, length: int) -> bytes:
        """``length`` bytes that nobody can guess (simulated: that the seed decides)."""


class RealRandomness:
    """The kernel's random numbers."""

    def token(self, length: int) -> bytes:
        return os.urandom(length)


class SeededRandomness:
    """Repeatable bytes from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def token(self, length: int) -> bytes:
        return self._random.randbytes(length)


class Background:
    """A named background activity: ``step`` is called until it is stopped.

    ``step`` does one unit of work and returns the seconds it may rest before the next one; ``kick`` cuts the rest
    short.
    """

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        self._step = step
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        priority.level()
        while not self._stopping:
            try:
                rest_s = self._step()
            except Exception:  # whoever waits for its work must not wait for ever
                log.exception("a step of %s failed; it goes on", self._thread.name)
                rest_s = AFTER_FAILURE_S
            if rest_s > 0:
                self._wake.wait(rest_s)
            self._wake.clear()

    def kick(self) -> None:
        """Let the next step begin at once."""
        self._wake.set()

    def stop(self) -> None:
        """Wait for the running step to end; none follows."""
        self._stopping = True
        self._wake.set()
        self._thread.join()


class Scheduler(Protocol):
    """Who runs background activities."""

    def start(self, name: str, step: Callable[[], float]) -> Activity:
        """Begin to call ``step``; see ``Background``."""


class Activity(Protocol):
    """A running background activity."""

    def kick(self) -> None: ...

    def stop(self) -> None: ...


class RealScheduler:
    """Threads."""

    def start(self, name: str, step: Callable[[], float]) -> Activity:
        return Background(name, step)


class SimulatedActivity:
    """An activity whose steps a test runs by hand."""

    def __init__(self, name: str, step: Callable[[], float]) -> None:
        self.name = name
        self.step = step
        self.kicked = 0
        self.stopped = False

    def kick(self) -> None:
        self.kicked += 1

    def stop(self) -> None:
        self.stopped = True


class SimulatedScheduler:
    """Keeps activities without running them."""

    def __init__(self) -> None:
        self.activities: list[SimulatedActivity] = []

    def start(self, name: str, step: Callable[[], float]) -> Activity:
        activity = SimulatedActivity(name, step)
        self.activities.append(activity)
        return activity
