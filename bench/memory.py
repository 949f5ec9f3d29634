"""Resident memory of the fabric for each TiB written, caches excluded.

A process of its own writes blocks of 64 KiB, all different, through log and drain, and reports its resident memory as
it goes. The blocks compress to some 100 bytes and the groups are made so small that each holds 1,024 of them, as one of
64 MiB holds of incompressible data: so groups, slot tables, fingerprints and maps are as many as that much data
makes, without its bytes. The memory grows in a straight line (least squares) once the caches of map pages and slot
tables, which are bounded, have filled; what they hold is taken off. The slope is scaled to a TiB.
"""

from __future__ import annotations

import gc
import json
import random
import sys
from pathlib import Path
from uuid import uuid4

import numpy as np

from bench.report import Context, Row, at_most
from bench.serve import GIB, MIB
from innkeeper.fabric.layout import BLOCK, PAGE
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.system import process
from innkeeper.system.files import Io

LIMIT_MIB = 200.0
OTHERS = (("VDO", 268e6 / MIB), ("Longhorn", 256e6 / MIB))
_STEPS = 16
_BATCH_BLOCKS = 1024


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def _cached_bytes(pool: Pool) -> int:
    """What the caches of map pages, slot tables and extents hold."""
    return pool.store.content.facts().used_bytes + sum(each["used_bytes"] for each in pool.store.lookups().values())


def _write(path: str, total_bytes: int) -> list[tuple[int, int]]:
    """(bytes written, resident bytes without caches) as the pool fills."""
    chance = random.Random(1)
    limits = Limits(group_bytes=_BATCH_BLOCKS * 110 + 2 * PAGE)
    pool = Pool.open(Io(), path, limits=limits, background=False)
    storage, disk, attachment = (str(uuid4()) for _ in range(3))
    pool.storage_create(storage)
    pool.disk_create(disk, 16 << 40, storage)
    pool.attach(attachment, disk_id=disk)
    volume = pool.volume(attachment)
    rest = bytes(BLOCK - 32)
    points = []
    try:
        for step in range(_STEPS):
            for start in range(step * total_bytes // _STEPS, (step + 1) * total_bytes // _STEPS, _BATCH_BLOCKS * BLOCK):
                for offset in range(start, start + _BATCH_BLOCKS * BLOCK, BLOCK):
                    volume.stage_write(offset, chance.randbytes(32) + rest)
                pool.submit()
                if pool.log_room() < 128 * MIB:
                    pool.drain()
            pool.drain()
            gc.collect()
            points.append(((step + 1) * total_bytes // _STEPS, _resident_bytes() - _cached_bytes(pool)))
        return points
    finally:
        pool.close()


def rows(context: Context) -> list[Row]:
    """The row of memory."""
    total = (32 if context.quick else 64) * GIB
    command = [sys.executable, "-m", "bench.memory", str(context.work / "pool"), str(total)]
    ended = process.run(command, cwd=Path(__file__).parents[1], timeout_s=3600)
    written, resident = np.array(json.loads(ended.stdout)).T[:, _STEPS // 2 :]
    slope, _ = np.polyfit(written, resident, 1)
    grown = max(0.0, float(slope) * (1 << 40) / MIB)
    name = f"resident memory for each TiB written, of {total >> 30} GiB"
    return [at_most(name, grown, "MiB", LIMIT_MIB, other, peer) for other, peer in OTHERS]


if __name__ == "__main__":
    print(json.dumps(_write(sys.argv[1], int(sys.argv[2]))))
