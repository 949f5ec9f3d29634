"""Snapshot and clone of a small and of a huge disk: their cost must not follow the size."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from bench.nbd import GIB, Fabric, fabric
from bench.report import Context, Row
from innkeeper.fabric.nbd.client import NbdClient

LIMIT_MS = 20.0
TIB = 1 << 40
_PAGE = 4096
_WRITES = 2000
_ROUNDS = 15


def _milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def _write(nbd_socket: Path, export: str, size_bytes: int) -> None:
    """Write and flush pages all over the disk."""
    chance = random.Random(1)
    with NbdClient(nbd_socket, export) as client:
        for _ in range(_WRITES):
            client.submit_write(chance.randrange(size_bytes // _PAGE) * _PAGE, [chance.randbytes(_PAGE)])
        client.flush()


def measure(running: Fabric, size_bytes: int) -> dict[str, float]:
    """Medians in milliseconds, at the control socket, of a disk with undrained writes."""
    storage, disk, attachment = (str(uuid4()) for _ in range(3))
    running.ask("storage_create", storage)
    running.ask("disk_create", disk, size_bytes, storage)
    running.ask("attach", attachment, disk_id=disk, role="writer", uid=os.getuid())
    snapshots, clones = [], []
    for _ in range(_ROUNDS):
        _write(running.paths.nbd_socket, attachment, size_bytes)
        snapshot, clone = str(uuid4()), str(uuid4())
        snapshots.append(_milliseconds(lambda made={snapshot: disk}: running.ask("snapshot_create", made)))
        clones.append(_milliseconds(lambda ids=(clone, snapshot): running.ask("disk_clone", *ids)))
    return {"snapshot": statistics.median(snapshots), "clone": statistics.median(clones)}


def rows(context: Context) -> list[Row]:
    """Milliseconds for 1 TiB beside 1 GiB."""
    with fabric(context.work) as paths, Fabric(paths) as running:
        small, huge = measure(running, GIB), measure(running, TIB)
    found = []
    for what in ("snapshot", "clone"):
        flat = huge[what] <= 2 * small[what] + 1
        met = flat and huge[what] <= LIMIT_MS
        ratio = small[what] / huge[what]
        goal = f"flat, <= {LIMIT_MS:g} ms"
        found.append(Row(f"{what} of a 1 TiB disk", huge[what], "ms", "1 GiB disk", small[what], ratio, goal, met))
    return found
