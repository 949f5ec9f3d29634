"""Long blocking work beside the event loop: a worker thread that may ask the fabric, report progress and be
cancelled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


class FabricApi(Protocol):
    """What protection asks of ``fabric.client.FabricClient``; the contracts are in docs/architecture.md."""

    async def pool_show(self) -> dict[str, Any]: ...
    async def disk_create(self, disk_id: str, size_bytes: int, storage_id: str) -> Any: ...
    async def snapshot_show(self, snapshot_id: str) -> dict[str, Any]: ...
    async def changed_blocks(
        self, snapshot_id: str, base_snapshot_id: str | None = None, start_block: int = 0, limit: int = 65536
    ) -> dict[str, Any]: ...
    async def attach(
        self,
        attachment_id: str,
        *,
        disk_id: str | None = None,
        snapshot_id: str | None = None,
        role: str = "writer",
        uid: int | None = None,
    ) -> dict[str, Any]: ...
    async def detach(self, attachment_id: str) -> Any: ...
    async def hold(self, hold_id: str, snapshot_id: str) -> Any: ...
    async def release(self, hold_id: str) -> Any: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """How far long work is."""

    done_bytes: int
    total_bytes: int
    text: str = ""

    @property
    def fraction(self) -> float:
        return min(1.0, self.done_bytes / self.total_bytes) if self.total_bytes else 1.0


ProgressCallback = Callable[[Progress], None]


class Stopped(Exception):
    """The work was cancelled; never leaves ``in_thread``."""


class Worker:
    """What blocking work sees of the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: ProgressCallback | None) -> None:
        self._loop = loop
        self._progress = progress
        self.stop = threading.Event()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the coroutine on the event loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def check(self) -> None:
        """Raises ``Stopped`` once the work was cancelled."""
        if self.stop.is_set():
            raise Stopped

    def report(self, done_bytes: int, total_bytes: int, text: str = "") -> None:
        """Tell progress, on the event loop; then ``check``."""
        self.check()
        if self._progress is not None:
            self._loop.call_soon_threadsafe(self._progress, Progress(done_bytes, total_bytes, text))


async def in_thread(work: Callable[[Worker], T], progress: ProgressCallback | None = None) -> T:
    """Run ``work`` in a thread. When cancelled, it is told to stop and has ended before ``CancelledError`` is
    raised."""
    worker = Worker(asyncio.get_running_loop(), progress)
    running = asyncio.ensure_future(asyncio.to_thread(work, worker))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        worker.stop.set()
        await asyncio.wait([running])
        if not running.cancelled():
            running.exception()  # seen: cancelling is what is reported
        raise
