"""What the fabric's core costs without sockets: microseconds per operation, one process, one thread and its drain.

Run: ``python bench/micro_fabric.py [directory] [--size-gib N] [--seconds N]``. The directory gets a pool and is
emptied.
"""

from __future__ import annotations

import argparse
import random
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from innkeeper.fabric.pool import Pool
from innkeeper.fabric.volume import Volume
from innkeeper.system.files import Io

PAGE = 4096
MIB = 1 << 20


def report(name: str, count: int, seconds: float, size: int) -> None:
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(
        f"{name:44} {seconds / count * 1e6:9.2f} us/op {count / seconds:10.0f} op/s"
        f" {count * size / seconds / MIB:8.0f} MiB/s   peak RSS {rss} MiB",
        flush=True,
    )


def timed(name: str, count: int, size: int, work: Callable[[], None]) -> None:
    start = time.perf_counter()
    work()
    report(name, count, time.perf_counter() - start, size)


def write(pool: Pool, volume: Volume, offsets: list[int], data: list[bytes], depth: int) -> None:
    """Write at the offsets, ``depth`` requests for each append, waiting for the drain where the log is full."""
    for first in range(0, len(offsets), depth):
        while pool.log_room() <= 0:
            time.sleep(0.001)
        for index, offset in enumerate(offsets[first : first + depth]):
            volume.stage_write(offset, data[(first + index) % len(data)])
        pool.submit()


def read(volume: Volume, offsets: list[int], size: int) -> int:
    slow = 0
    for offset in offsets:
        if volume.read_nowait(offset, size) is None:
            volume.read_blocking(offset, size)
            slow += 1
    return slow


def measure_sequential(pool: Pool, volume: Volume, size: int, chance: random.Random) -> None:
    """Write all of the disk twice, compressible and not, and read it."""
    half = [chance.randbytes(32768) + bytes(32768) for _ in range(64)]
    mib = [b"".join(chance.choices(half, k=16)) for _ in range(64)]
    unique = [bytes(memoryview(chance.randbytes(MIB))) for _ in range(64)]
    offsets = list(range(0, size, MIB))
    timed("1 MiB sequential write, compressible", len(offsets), MIB, lambda: write(pool, volume, offsets, mib, 4))
    timed("drain", 1, 0, lambda: pool.drain() and None)
    timed("1 MiB sequential write, unique", len(offsets), MIB, lambda: write(pool, volume, offsets, unique, 4))
    timed("drain", 1, 0, lambda: pool.drain() and None)
    timed("1 MiB sequential read, drained", len(offsets), MIB, lambda: print(read(volume, offsets, MIB), "slow"))


def measure_random(pool: Pool, volume: Volume, size: int, chance: random.Random, pages: list[bytes]) -> None:
    """A burst of small writes, read from the log and after its drain."""
    burst = [chance.randrange(size // PAGE) * PAGE for _ in range(60_000)]
    timed("4 KiB random write, burst, 32 an append", len(burst), PAGE, lambda: write(pool, volume, burst, pages, 32))
    timed("4 KiB random read, from the log", len(burst), PAGE, lambda: print(read(volume, burst, PAGE), "slow"))
    timed("drain of it", len(burst), PAGE, lambda: pool.drain() and None)
    timed("4 KiB random read, pieces", len(burst), PAGE, lambda: print(read(volume, burst, PAGE), "slow"))
    others = [chance.randrange(size // PAGE) * PAGE for _ in range(60_000)]
    timed("4 KiB random read, extents and pieces", len(others), PAGE, lambda: print(read(volume, others, PAGE), "slow"))


def measure_sustained(
    pool: Pool, volume: Volume, size: int, chance: random.Random, pages: list[bytes], seconds: float
) -> None:
    """Small writes for so long that the drain decides."""
    done, start, last = 0, time.perf_counter(), 0.0
    while (elapsed := time.perf_counter() - start) < seconds:
        offsets = [chance.randrange(size // PAGE) * PAGE for _ in range(3200)]
        write(pool, volume, offsets, pages, 32)
        done += len(offsets)
        if elapsed - last > 5:
            last = elapsed
            print(f"  {elapsed:5.1f} s {done / elapsed:8.0f} op/s  stored {pool.used_bytes() >> 20} MiB", flush=True)
    report("4 KiB random write, sustained", done, time.perf_counter() - start, PAGE)


def milliseconds(name: str, work: Callable[[], object]) -> None:
    """How long each of ten repetitions takes."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    print(f"{name}, ms:", " ".join(f"{each * 1000:.1f}" for each in times))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("directory", nargs="?", default="/tmp/fabric-micro")
    arguments.add_argument("--size-gib", type=int, default=2)
    arguments.add_argument("--seconds", type=float, default=30)
    options = arguments.parse_args()
    path = Path(options.directory)
    shutil.rmtree(path, ignore_errors=True)
    chance = random.Random(1)
    pool = Pool.open(Io(), str(path))
    storage, disk, attachment = (str(uuid4()) for _ in range(3))
    pool.storage_create(storage)
    size = options.size_gib << 30
    pool.disk_create(disk, size, storage)
    pool.attach(attachment, disk_id=disk)
    volume = pool.volume(attachment)
    report("(start)", 1, 1, 0)

    pages = [chance.randbytes(PAGE) for _ in range(1024)]
    measure_sequential(pool, volume, size, chance)
    measure_random(pool, volume, size, chance, pages)
    measure_sustained(pool, volume, size, chance, pages, options.seconds)
    milliseconds("snapshots", lambda: pool.snapshot_create({str(uuid4()): disk}))
    snapshot = pool.snapshot_ls(disk)[-1]["id"]
    milliseconds("clones", lambda: pool.disk_clone(str(uuid4()), snapshot))
    pool.close()
    begin = time.perf_counter()
    pool = Pool.open(Io(), str(path))
    print(f"recovery {time.perf_counter() - begin:.2f} s")
    pool.close()
    shutil.rmtree(path)


if __name__ == "__main__":
    main()
