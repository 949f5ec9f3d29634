"""What all sessions staged in one turn of the event loop is appended to the log at once; flushes share one sync.

A write is answered after ``submit`` (the kernel has it); a flush, or a request with FUA, after the log has been synced
up to the sequence number that stood when it came.
"""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from innkeeper.fabric.meters import Histogram
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Problem
from innkeeper.system.priority import level

if TYPE_CHECKING:
    from innkeeper.fabric.nbd.session import Session

log = logging.getLogger(__name__)


class Due(NamedTuple):
    """Requests that wait for one answer, since when the first does, and where that is counted."""

    cookies: list[bytes]
    since: float
    latency: Histogram


Waiting = list[tuple["Session", Due]]
"""Requests, by session, that wait for a sync."""


class Turn:
    """Gathers the requests of one turn; one for all sessions of a pool."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="nbd-sync", initializer=level)
        self._loop = asyncio.get_running_loop()
        self._staged: dict[Session, None] = {}
        self._ready: dict[Session, None] = {}
        self._scheduled = False
        self._flushes: Waiting = []
        self._sequence = 0
        self._awaiting: Waiting = []
        """Those that the sync under way is for."""
        self._syncing = False
        self._closed = False

    def close(self) -> None:
        """Append what was staged; blocks while a sync is under way."""
        self.commit()
        self._closed = True
        self._syncer.shutdown()

    def staged(self, session: Session) -> None:
        """The session has staged something, or wants a sync: ``take_staged`` tells what is to be answered."""
        self._staged[session] = None
        if not self._scheduled:
            self._schedule()

    def owes(self, session: Session) -> bool:
        """Whether something that the session asked for waits for an append or a sync."""
        waiting = any(each is session for each, _ in (*self._flushes, *self._awaiting))
        return waiting or session in self._staged

    def at_end(self, session: Session) -> None:
        """Let the session send what it has, at the end of this turn, after the answers."""
        self._ready[session] = None
        if not self._scheduled:
            self._schedule()

    def _schedule(self) -> None:
        self._scheduled = True
        self._loop.call_soon(self.commit)

    def commit(self) -> None:
        """Append what was staged and answer; also called early by a session whose buffer must be free again."""
        self._scheduled = False
        if self._staged:
            staged, self._staged = self._staged, {}
            problem: Problem | None = None
            try:
                self._sequence = self._pool.submit()
            except Problem as refused:
                problem = refused
            for session in staged:
                kernel, medium = session.take_staged()
                session.answer(kernel, problem)
                if medium.cookies and problem is None:
                    self._flushes.append((session, medium))
                else:
                    session.answer(medium, problem)
            self._sync()
        ready, self._ready = self._ready, {}
        for session in ready:
            session.flush()

    def _sync(self) -> None:
        """Sync for all who wait, unless a sync is under way: those wait for the next one."""
        if self._syncing or self._closed or not self._flushes:
            return
        waiting, self._flushes = self._flushes, []
        if not self._pool.needs_sync(self._sequence):
            for session, due in waiting:
                session.answer(due, None)
            return
        self._syncing, self._awaiting = True, waiting
        future = self._loop.run_in_executor(self._syncer, self._pool.sync_blocking, self._sequence)
        future.add_done_callback(lambda done: self._synced(done, waiting))

    def _synced(self, done: asyncio.Future[None], waiting: Waiting) -> None:
        self._syncing, self._awaiting = False, []
        if done.cancelled():
            return
        failure = done.exception()
        if failure is not None and not isinstance(failure, Problem):
            raise failure
        if failure is not None:
            log.error("the log cannot be synced: %s", failure)
        for session, due in waiting:
            session.answer(due, failure)
        self._sync()
