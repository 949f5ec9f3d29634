"""Snapshots and clones of a disk of 1 GiB and of one of 16 TiB, at rest and while another client writes.

The huge disk's map is synthesised (``synthesis``): it is full to a tenth. The peer's image has as much data: a qcow2 of
that tenth whose metadata is preallocated. What `qemu-img` does needs the image unused, so it has no figure under load.
Under load a snapshot may take as long as a sync of the log takes then (a flush, measured beside it) and 10 ms.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from bench.report import Context, Row
from bench.serve import GIB, MIB, RANDOM, Fabric, fabric, fio_command
from bench.synthesis import LEAF_BYTES, TIB, SparseDisk, spread
from innkeeper.fabric.nbd.client import NbdClient
from innkeeper.fabric.pool import Pool
from innkeeper.system import process
from innkeeper.system.files import Io

LIMIT_MS = 10.0
SMALL_BYTES, HUGE_BYTES = GIB, 16 * TIB
_PAGE = 4096
_WRITES = 2000
_ROUNDS = 15


def milliseconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return 1000 * (time.perf_counter() - began)


def synthesise(pool_path: Path, full: float) -> dict[int, str]:
    """A new pool with a small and a huge disk, by their sizes; each is full to that share."""
    pool = Pool.open(Io(), str(pool_path), background=False)
    try:
        disks = {}
        for size in (SMALL_BYTES, HUGE_BYTES):
            disk = SparseDisk(pool, size)
            disk.fill_leaves(spread(disk, full))
            disks[size] = disk.id
        return disks
    finally:
        pool.close()


def _write(client: NbdClient, chance: random.Random) -> None:
    """Write pages all over the disk, flushed, so that the drain has something left to do."""
    for _ in range(_WRITES):
        client.submit_write(chance.randrange(client.size_bytes // _PAGE) * _PAGE, [chance.randbytes(_PAGE)])
    client.flush()


def measure(running: Fabric, disk_id: str) -> dict[str, float]:
    """Medians in milliseconds, at the control socket, of a disk with undrained writes; and of a flush."""
    chance = random.Random(1)
    export = running.attach(disk_id)
    taken: dict[str, list[float]] = {"snapshot": [], "clone": [], "flush": []}
    with NbdClient(running.paths.nbd_socket, export) as client:
        for _ in range(_ROUNDS):
            _write(client, chance)
            snapshot, clone = str(uuid4()), str(uuid4())
            snapshots = {snapshot: disk_id}
            client.submit_write(0, [chance.randbytes(_PAGE)])
            client.settle()
            taken["snapshot"].append(milliseconds(lambda made=snapshots: running.ask("snapshot_create", made)))
            taken["clone"].append(milliseconds(lambda ids=(clone, snapshot): running.ask("disk_clone", *ids)))
            client.submit_write(0, [chance.randbytes(_PAGE)])
            client.settle()
            taken["flush"].append(milliseconds(client.flush))
    running.ask("detach", export)
    return {what: statistics.median(each) for what, each in taken.items()}


@contextmanager
def load(running: Fabric, work: Path) -> Iterator[None]:
    """Random writes to a disk of its own, as fast as they go."""
    uri = running.uri(running.attach(running.disk(GIB)))
    job = RANDOM | {"rw": "randwrite", "size": 512 * MIB, "runtime": 3600}
    writer = process.spawn(fio_command([uri], job, work / "load.json"), log=work / "load.log")
    try:
        time.sleep(3)
        yield
        if writer.poll() is not None:
            raise RuntimeError("the load ended early: " + (work / "load.log").read_text())
    finally:
        writer.terminate()
        writer.wait(60)


def peers(work: Path, full: float) -> dict[int, dict[str, float]]:
    """The same of qcow2 images that hold as much."""
    found = {}
    for size in (SMALL_BYTES, HUGE_BYTES):
        image, overlay = work / "image.qcow2", work / "overlay.qcow2"
        data = str(max(LEAF_BYTES, int(size * full) // LEAF_BYTES * LEAF_BYTES))
        create = ("qemu-img", "create", "-q", "-f", "qcow2")
        process.run([*create, "-o", "preallocation=metadata", str(image), data], timeout_s=3600)
        taken: dict[str, list[float]] = {"snapshot": [], "clone": []}
        for number in range(3):
            snapshot = ["qemu-img", "snapshot", "-c", f"s{number}", str(image)]
            taken["snapshot"].append(milliseconds(lambda argv=snapshot: process.run(argv, timeout_s=3600)))
            clone = [*create, "-b", str(image), "-F", "qcow2", str(overlay)]
            taken["clone"].append(milliseconds(lambda argv=clone: process.run(argv)))
            overlay.unlink()
        image.unlink()
        found[size] = {what: statistics.median(each) for what, each in taken.items()}
    return found


def rows(context: Context) -> list[Row]:
    """Milliseconds for 16 TiB, beside those for 1 GiB and the peer's."""
    full = 0.01 if context.quick else 0.1
    theirs = peers(context.work, full)
    with fabric(context.work) as paths:
        pool_path = paths.pool
    process.run(["rm", "-rf", str(pool_path)], timeout_s=600)
    disks = synthesise(pool_path, full)
    with fabric(context.work) as paths, Fabric(paths) as running:
        idle = {size: measure(running, disk) for size, disk in disks.items()}
        with load(running, context.work):
            busy = {size: measure(running, disk) for size, disk in disks.items()}
    found = []
    for what, tool in (("snapshot", "qemu-img snapshot"), ("clone", "qemu-img create -b")):
        small, huge = idle[SMALL_BYTES][what], idle[HUGE_BYTES][what]
        name = f"{what} of a 16 TiB disk {full:.0%} full"
        met = huge <= LIMIT_MS and huge <= 2 * small + 1
        peer = theirs[HUGE_BYTES][what]
        found.append(Row(name, huge, "ms", tool, peer, peer / huge, f"<= {LIMIT_MS:g} ms, flat", met))
        found.append(Row(f"{what} of a 1 GiB disk", small, "ms", tool, peer := theirs[SMALL_BYTES][what], peer / small))
        huge, sync = busy[HUGE_BYTES][what], busy[HUGE_BYTES]["flush"]
        goal = f"<= {sync:.1f} + {LIMIT_MS:g} ms"
        found.append(Row(f"{name}, under load", huge, "ms", "a sync", sync, sync / huge, goal, huge <= sync + LIMIT_MS))
    return found
