"""What all sessions staged in one turn of the event loop is appended to the log at once; flushes share one sync.

A write is answered after ``submit`` (the kernel has it); a flush, or a request with FUA, after the log has been synced
up to the sequence number that stood when it came.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Problem

log = logging.getLogger(__name__)

Answer = Callable[[Problem | None], None]
"""Called once with the outcome of a request."""


class Turn:
    """Gathers the requests of one turn; one for all sessions of a pool."""

    def __init__(self, pool: Pool, workers: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._workers = workers
        self._loop = asyncio.get_running_loop()
        self._staged: list[tuple[Answer, bool]] = []
        self._ready: dict[int, Callable[[], None]] = {}
        self._scheduled = False
        self._flushes: list[tuple[int, Answer]] = []
        self._syncing = False

    def staged(self, answer: Answer, durable: bool) -> None:
        """A request has been staged (or, for a flush, needs nothing staged): answer it when it is safe."""
        self._staged.append((answer, durable))
        self._schedule()

    def at_end(self, key: int, call: Callable[[], None]) -> None:
        """Call ``call`` once at the end of this turn, after the answers."""
        self._ready[key] = call
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.commit)

    def commit(self) -> None:
        """Append what was staged and answer; also called early by a session whose buffer must be free again."""
        self._scheduled = False
        if self._staged:
            staged, self._staged = self._staged, []
            problem: Problem | None = None
            sequence = 0
            try:
                sequence = self._pool.submit()
            except Problem as refused:
                problem = refused
            for answer, durable in staged:
                if durable and problem is None:
                    self._flushes.append((sequence, answer))
                else:
                    answer(problem)
            self._sync()
        ready, self._ready = self._ready, {}
        for call in ready.values():
            call()

    def _sync(self) -> None:
        """Sync for all who wait, unless a sync is under way: those wait for the next one."""
        if self._syncing or not self._flushes:
            return
        waiting, self._flushes = self._flushes, []
        highest = max(sequence for sequence, _answer in waiting)
        if not self._pool.needs_sync(highest):
            for _sequence, answer in waiting:
                answer(None)
            return
        self._syncing = True
        future = self._loop.run_in_executor(self._workers, self._pool.sync_blocking, highest)
        future.add_done_callback(lambda done: self._synced(done, waiting))

    def _synced(self, done: asyncio.Future[None], waiting: list[tuple[int, Answer]]) -> None:
        self._syncing = False
        if done.cancelled():
            return
        failure = done.exception()
        if failure is not None and not isinstance(failure, Problem):
            raise failure
        if failure is not None:
            log.error("the log cannot be synced: %s", failure)
        for _sequence, answer in waiting:
            answer(failure)
        self._sync()
