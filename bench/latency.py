"""The 99th and 99.9th percentile of 4 KiB random writes while the drain, snapshots and the curator run, beside the same
without them: one client at QD 1, and four disks at half the load that they sustain.

Without them means: everything is drained, no snapshot is made, the curator rests, and so little is written that the log
does not get long enough to be drained. With them: every disk gets a snapshot each second (the last but one goes), a
drain is asked for right after, and the policy's compression changes to and fro, so that the curator always has groups
to pack anew, at the rate it allows itself.
"""

from __future__ import annotations

import asyncio
import statistics
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from bench.report import Context, Row
from bench.serve import FILL, MIB, RANDOM, Job, Served, fio, iops, ours
from innkeeper.fabric.client import FabricClient

DISKS = 4
LIMIT = 3.0
_QUIET_BYTES = 144 * MIB
"""Less than the share of the log from which the drain works unasked."""
_PERCENTILES = ("99.000000", "99.900000")


class Background:
    """Drains, snapshots and the curator at work on all disks of a fabric; use in a ``with``."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(1)
        self.done: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._running = self._thread.submit(asyncio.run, self._work())
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._running.result()
        self._thread.shutdown()
        for what in ("snapshots", "drains", "curated groups"):
            if not self.done[what]:
                raise RuntimeError(f"the background did no {what}: there was nothing to measure")

    async def _work(self) -> None:
        client = FabricClient(self._socket, patience_s=30)
        await client.connect()
        try:
            before = (await client.pool_show())["curator"]["groups_recoded"]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._snapshots(client))
                tasks.create_task(self._curate(client))
            self.done["curated groups"] = (await client.pool_show())["curator"]["groups_recoded"] - before
        finally:
            await client.close()

    async def _snapshots(self, client: FabricClient) -> None:
        kept: list[list[str]] = []
        while not self._stop.is_set():
            made = {str(uuid4()): disk["id"] for disk in await client.disk_ls()}
            await client.snapshot_create(made)
            self.done["snapshots"] += len(made)
            await client.drain()
            self.done["drains"] += 1
            kept.append(list(made))
            if len(kept) > 2:
                for old in kept.pop(0):
                    await client.snapshot_rm(old)
            await asyncio.sleep(1)
        for each in kept:
            for old in each:
                await client.snapshot_rm(old)

    async def _curate(self, client: FabricClient) -> None:
        flip = 0
        while not self._stop.is_set():
            for storage in await client.storage_ls():
                await client.storage_set(storage["id"], compression=("zstd", "lz4")[flip])
            flip = 1 - flip
            await client.curate_plan()
            await client.curator_pause(False)
            while not self._stop.is_set() and (await client.pool_show())["curator"]["left_groups"]:
                await asyncio.sleep(0.2)


def _percentiles(result: dict[str, Any]) -> list[float]:
    """In milliseconds."""
    found = result["write"]["clat_ns"]["percentile"]
    return [found[each] / 1e6 for each in _PERCENTILES]


def _pair(served: Served, job: Job, context: Context) -> tuple[list[float], list[float]]:
    """Percentiles (with, without) the background's work."""
    assert served.fabric is not None
    quiet = []
    served.fabric.ask("curator_pause", True)
    few = job | {"number_ios": _QUIET_BYTES // 4096 // len(served.uris)}
    for _ in range(1 if context.quick else 5):
        served.drain()
        quiet.append(_percentiles(fio(served, few)))
    with Background(served.fabric.paths.fabric_socket) as background:
        busy = _percentiles(fio(served, job | {"time_based": 1, "runtime": 10 if context.quick else 60}))
    print(f"  the background did {dict(background.done)}", flush=True)
    return busy, [statistics.median(each) for each in zip(*quiet, strict=True)]


def rows(context: Context) -> list[Row]:
    """The rows of latency."""
    size = (128 if context.quick else 1024) * MIB
    found = []
    with ours(context.work, size, DISKS) as served:
        fio(served, FILL | {"size": size})
        served.drain()
        one = Served(served.work, served.uris[:1], served.sockets[:1], served.fabric)
        write: Job = {"rw": "randwrite", "bs": "4k", "size": size}
        alone = _pair(one, write | {"iodepth": 1}, context)
        most = RANDOM | write | {"ramp_time": 5, "runtime": 5 if context.quick else 60}
        half = round(iops(fio(served, most)) / 2)
        together = _pair(served, write | {"iodepth": 32, "rate_iops": half // DISKS}, context)
    for what, (busy, quiet) in (("QD 1", alone), (f"{DISKS} disks at half load ({half:,} IOPS)", together)):
        for name, loaded, still in zip(("p99", "p99.9"), busy, quiet, strict=True):
            row = f"{name} of a 4 KiB write, {what}, background work"
            ratio, goal = still / loaded, f"<= {LIMIT:g} x as long"
            found.append(Row(row, loaded, "ms", "without", still, ratio, goal, loaded <= LIMIT * still))
    return found
