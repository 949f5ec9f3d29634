"""Guests' processes by identity: told apart from a reused pid, watched to their end, killed when nothing else helps.

A process is named by its pid and its start time; a pidfd holds it, so that no signal ever reaches a stranger.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from innkeeper.model.problems import Failed, NotFound


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process for as long as the host is up: pid, and start time in clock ticks since boot (proc(5), field 22)."""

    pid: int
    start_ticks: int


def start_ticks(pid: int) -> int | None:
    """When the process with that pid began, in clock ticks since boot; None when there is none or it is a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


class HeldProcess:
    """A running process held by a pidfd. ``ended`` is set once it has gone; a child is reaped then.

    Raises ``NotFound`` (``vm.process_gone``) when the process with that identity does not run.
    """

    def __init__(self, identity: ProcessIdentity, child: subprocess.Popen[bytes] | None = None) -> None:
        self.identity = identity
        self.ended = asyncio.Event()
        self._child = child
        self._watchers: list[Callable[[], None]] = []
        gone = NotFound("vm.process_gone", f"process {identity.pid} has ended", remedy="start the vm again")
        try:
            self._pidfd = os.pidfd_open(identity.pid)
        except ProcessLookupError:
            raise gone from None
        if start_ticks(identity.pid) != identity.start_ticks:
            os.close(self._pidfd)
            raise gone
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._pidfd, self._has_ended)

    @classmethod
    def of_child(cls, child: subprocess.Popen[bytes]) -> HeldProcess:
        """Hold a process that was just started. Raises ``NotFound`` (``vm.process_gone``) when it is over already."""
        ticks = start_ticks(child.pid)
        if ticks is not None:
            with contextlib.suppress(NotFound):
                return cls(ProcessIdentity(child.pid, ticks), child)
        child.wait()
        raise NotFound("vm.process_gone", f"process {child.pid} ended at once with status {child.returncode}")

    def on_end(self, watcher: Callable[[], None]) -> None:
        """Call ``watcher`` once when the process ends, or now if it has."""
        if self.ended.is_set():
            watcher()
        else:
            self._watchers.append(watcher)

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing happens when the process has ended."""
        if not self.ended.is_set() and self._pidfd >= 0:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass

    async def wait(self, timeout_s: float) -> bool:
        """Wait for the end; False when ``timeout_s`` passed first."""
        try:
            await asyncio.wait_for(self.ended.wait(), timeout_s)
        except TimeoutError:
            return False
        return True

    async def fence(self, timeout_s: float = 20.0) -> None:
        """SIGKILL and wait. Raises ``Failed`` (``vm.unkillable``) when the kernel does not let it go."""
        self.kill()
        if not await self.wait(timeout_s):
            raise Failed(
                "vm.unkillable",
                f"process {self.identity.pid} does not end after SIGKILL",
                cause="the kernel holds it, usually in storage I/O",
                remedy="look at the host's storage, or restart the host; do not start the vm elsewhere",
            )

    def release(self) -> None:
        """Let go without touching the process."""
        if not self.ended.is_set() and self._pidfd >= 0:
            self._close()
            self._watchers.clear()
            if self._child is not None:
                self._child.poll()

    @property
    def exit_status(self) -> int | None:
        """The status of a child that has ended (negative: the signal); None for a process that was adopted."""
        return self._child.returncode if self._child is not None else None

    def _close(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1

    def _has_ended(self) -> None:
        self._close()
        if self._child is not None:
            self._child.wait()
        self.ended.set()
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            watcher()
