"""What a session has worker threads do: reads that wait for the medium, blocks of streams, block status."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from innkeeper.fabric.nbd.protocol import NbdError, error_of
from innkeeper.model.problems import Invalid, Problem

log = logging.getLogger(__name__)
T = TypeVar("T")


class Work:
    """The work of one session: how many requests a worker has, or that wait for one, and of what size together."""

    def __init__(self, workers: Callable[[], ThreadPoolExecutor], at_end: Callable[[], None]) -> None:
        self._workers = workers
        self._at_end = at_end
        self._loop = asyncio.get_running_loop()
        self.requests = 0
        self.size_bytes = 0
        self.closed = False
        """The client is gone."""

    def begin(
        self,
        size_bytes: int,
        work: Callable[[], T],
        use: Callable[[T], None],
        fail: Callable[[NbdError], None],
        give_up: Callable[[T], None] = lambda _found: None,
        workers: ThreadPoolExecutor | None = None,
    ) -> None:
        """Have a worker do something for a request of that size; then ``use`` or ``fail`` is called in the loop.

        ``give_up`` is called instead of ``use`` when the client has gone meanwhile. ``workers``: not the usual ones.
        """
        self.size_bytes += size_bytes
        self.requests += 1

        def done(future: asyncio.Future[T]) -> None:
            self.size_bytes -= size_bytes
            self.requests -= 1
            if future.cancelled():
                return
            failure = future.exception()
            if self.closed:
                if failure is None:
                    give_up(future.result())
            elif failure is None:
                use(future.result())
            elif isinstance(failure, Problem):
                if not isinstance(failure, Invalid):  # what a client asks wrongly fills no log
                    log.error("a request fails: %s", failure)
                fail(error_of(failure))
            else:
                fail(NbdError.EIO)
                raise failure
            self._at_end()

        self._loop.run_in_executor(workers or self._workers(), work).add_done_callback(done)
