"""Processes beside this one that do work for it on memory that both have: what they do holds nobody's interpreter lock.

A helper runs ``python -m MODULE`` with a socket and an area of shared memory (memfd_create(2)) as its first two
inherited files; ``serve`` is its main loop. It answers one message after another and ends when the socket does, so
none outlives the process that it helps. Whoever takes one has to get along without: it may end at any time.
"""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from innkeeper.model.problems import Problem
from innkeeper.system import process
from innkeeper.system.priority import behind

MESSAGE_BYTES = 64 << 10
MOST_FILES = 200
"""Open files that go with a message; Linux takes 253 (SCM_MAX_FD)."""
PATIENCE_S = 60.0
"""A helper that takes longer for an answer is taken for lost."""
IDLE_S = 30.0
"""A helper that nobody has needed for so long is ended."""
REST_S = 10.0
"""After one could not be started none is tried for so long."""
_READY = b"ready"
Read = Callable[[int, int], bytes]
"""(length, offset) -> the bytes of a file there; fewer at its end. Raises ``OSError``."""
Work = Callable[[memoryview, bytes, Sequence[Read]], bytes]
"""(shared area, message, the files that came with it) -> answer."""


class HelperLost(Exception):
    """The helper has ended, or does not answer: what it was asked has to be done without it."""


class Helper:
    """One helper process; one thread at a time uses it."""

    def __init__(self, module: str, area_bytes: int, log: Path | None) -> None:
        """Raises ``OSError``, ``Problem`` where it cannot be started."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        memory = os.memfd_create("helper")
        try:
            os.ftruncate(memory, area_bytes)
            self.area = memoryview(mmap.mmap(memory, area_bytes))
            self._socket = ours
            command = (sys.executable, "-m", module, str(theirs.fileno()), str(memory))
            self._process: subprocess.Popen[bytes] = process.spawn(command, log=log, pass_fds=(theirs.fileno(), memory))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            os.close(memory)
        self.idle_since = 0.0
        self._ready = False

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> bool:
        """Whether it has said that it can work; does not wait. Raises ``HelperLost``."""
        if not self._ready:
            try:
                said = self._socket.recv(len(_READY), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return False
            except OSError as gone:
                raise HelperLost from gone
            if said != _READY:
                raise HelperLost
            self._ready = True
            self._socket.settimeout(PATIENCE_S)
        return True

    def ask(self, message: bytes, files: Sequence[int] = ()) -> bytes:
        """Its answer to a message, with which open files may go. Raises ``HelperLost``."""
        try:
            socket.send_fds(self._socket, [message], files) if files else self._socket.send(message)
            answer = self._socket.recv(MESSAGE_BYTES)
        except OSError as gone:
            raise HelperLost from gone
        if not answer:
            raise HelperLost
        return answer

    def end(self) -> None:
        """End it and wait for it. The area stays for whoever has a view of it."""
        self._socket.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Helpers:
    """At most ``most`` helpers of one kind, started when they are first wanted. Safe for threads."""

    def __init__(
        self, module: str, area_bytes: int, *, most: int, log: Path | None = None, idle_s: float = IDLE_S
    ) -> None:
        self._idle_s = idle_s
        self._module = module
        self._area_bytes = area_bytes
        self._most = most
        self._log = log
        self._lock = threading.Lock()
        self._free: list[Helper] = []
        self._starting: list[Helper] = []
        self._taken: set[Helper] = set()
        self._rests_until = 0.0
        self._closed = False

    def take(self) -> Helper | None:
        """A helper of one's own until ``give_back``; None, without waiting, where none is free now."""
        with self._lock:
            self._welcome()
            if self._free:
                helper = self._free.pop()
                self._taken.add(helper)
                return helper
            if self._closed or self._starting or len(self._taken) >= self._most:
                return None
            if time.monotonic() >= self._rests_until:
                try:
                    self._starting.append(Helper(self._module, self._area_bytes, self._log))
                except (OSError, Problem):  # memory or processes are used up: it goes without
                    self._rests_until = time.monotonic() + REST_S
            return None

    def give_back(self, helper: Helper, *, lost: bool = False) -> None:
        """Let others have it; ``lost``: it is of no use any more."""
        with self._lock:
            self._taken.discard(helper)
            if not lost and not self._closed:
                helper.idle_since = time.monotonic()
                self._free.append(helper)
                return
        helper.end()

    def _welcome(self) -> None:
        """Those that were started and are ready now become free; under the lock."""
        for helper in self._starting[:]:
            try:
                if not helper.ready():
                    continue
                self._free.append(helper)
                helper.idle_since = time.monotonic()
            except HelperLost:
                self._rests_until = time.monotonic() + REST_S
                helper.end()
            self._starting.remove(helper)

    def tidy(self) -> None:
        """End helpers that nobody has needed for a while; called now and then."""
        with self._lock:
            self._welcome()
            now = time.monotonic()
            idle = [helper for helper in self._free if now - helper.idle_since > self._idle_s]
            self._free = [helper for helper in self._free if helper not in idle]
        for helper in idle:
            helper.end()

    def pids(self) -> list[int]:
        """Of all that run now."""
        with self._lock:
            return sorted(helper.pid for helper in (*self._free, *self._starting, *self._taken))

    def close(self) -> None:
        """End all of them; those that are taken when they are given back."""
        with self._lock:
            self._closed = True
            gone = self._free + self._starting
            self._free, self._starting = [], []
        for helper in gone:
            helper.end()


def serve(work: Work) -> None:
    """The main loop of a helper process: answers messages until whom it helps has gone."""
    behind()
    connection, memory = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    area = memoryview(mmap.mmap(memory, os.fstat(memory).st_size))
    os.close(memory)
    with suppress(OSError):
        connection.send(_READY)
        while True:
            message, files, _, _ = socket.recv_fds(connection, MESSAGE_BYTES, MOST_FILES)
            if not message:
                return
            try:
                answer = work(area, message, [partial(_read, file) for file in files])
            finally:
                for file in files:
                    os.close(file)
            connection.send(answer)


def _read(file: int, length: int, offset: int) -> bytes:
    return os.pread(file, length, offset)
