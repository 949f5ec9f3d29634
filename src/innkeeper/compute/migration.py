"""A stopped guest's memory into a file and back, through a descriptor that root opened."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

from innkeeper.compute.memory import MemoryImage
from innkeeper.compute.monitor import Monitor
from innkeeper.model.problems import Failed, NoSpace, Problem

log = logging.getLogger(__name__)

Progress = Callable[[float], None]
_POLL_S = 0.02
_UNBOUNDED = 2**40


async def write_memory(monitor: Monitor, image: MemoryImage, progress: Progress | None = None) -> None:
    """Write the memory of the stopped guest to ``image.stream``; the image does not yet exist after it.

    Raises ``NoSpace`` (``memory.no_space``), ``Failed`` (``memory.failed``) and what the monitor raises; a cancelled
    caller cancels the writing. The guest can be continued in every case.
    """
    try:
        descriptor = image.begin()
    except OSError as refused:
        raise Failed("memory.failed", f"{image.stream} cannot be written", cause=str(refused)) from refused
    fdset = None
    try:
        fdset = await monitor.lend(descriptor)
        await monitor.execute("migrate-set-parameters", max_bandwidth=_UNBOUNDED)
        await monitor.execute("migrate", uri=f"file:/dev/fdset/{fdset}")
        await _finished(monitor, progress)
    except Failed as failed:
        space = os.fstatvfs(descriptor)
        if space.f_bavail * space.f_frsize < 16 * 1024 * 1024:
            raise NoSpace(
                "memory.no_space", f"no space for memory in {image.directory}", cause=failed.cause, remedy="free some"
            ) from failed
        raise
    finally:
        os.close(descriptor)
        if fdset is not None:
            await monitor.take_back(fdset)


async def read_memory(monitor: Monitor, image: MemoryImage, progress: Progress | None = None) -> None:
    """Load ``image.stream`` into a process that was started for restoring; it stays stopped.

    Raises ``Failed`` (``memory.failed``) and what the monitor raises.
    """
    descriptor = os.open(image.stream, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fdset = await monitor.lend(descriptor)
    finally:
        os.close(descriptor)
    uri = {"uri": f"file:/dev/fdset/{fdset}", "exit-on-error": False}
    await monitor.command("migrate-incoming", uri, timeout_s=60.0)
    await _finished(monitor, progress)
    await monitor.take_back(fdset)


async def _finished(monitor: Monitor, progress: Progress | None) -> None:
    """Wait for the migration's end."""
    try:
        while True:
            state = await monitor.execute("query-migrate", timeout_s=60.0)
            status, ram = state.get("status"), state.get("ram", {})
            if progress is not None and ram.get("total"):
                progress(1.0 - ram.get("remaining", 0) / ram["total"])
            if status == "completed":
                return
            if status in ("failed", "cancelled"):
                raise Failed("memory.failed", "the guest's memory could not be moved", cause=state.get("error-desc"))
            await asyncio.sleep(_POLL_S)
    except asyncio.CancelledError:
        await asyncio.shield(_cancel(monitor))
        raise


async def _cancel(monitor: Monitor) -> None:
    try:
        await monitor.execute("migrate_cancel")
        for _ in range(500):
            if (await monitor.execute("query-migrate")).get("status") in ("cancelled", "completed", "failed", None):
                return
            await asyncio.sleep(_POLL_S)
    except Problem as gone:
        log.warning("cancelling the writing of memory: %s", gone)
