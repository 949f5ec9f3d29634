"""The log always gets room again, whatever becomes of what was written into it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from uuid import UUID

import pytest

from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.system.simulation import simulated_io

LIMITS = Limits(log_bytes=1 << 20, segment_bytes=256 << 10, group_bytes=384 << 10, headroom_bytes=0)
STORAGE, REMOVED, KEPT, WRITER = (str(UUID(int=number, version=4)) for number in range(1, 5))


def fill_log(pool: Pool, disk_id: str) -> None:
    """Write to a disk until the log pushes back."""
    pool.attach(WRITER, disk_id=disk_id)
    volume = pool.volume(WRITER)
    chance = random.Random(4)
    page = 0
    while pool.log_room() > 0:
        volume.stage_write(page % 4096 * 4096, chance.randbytes(4096))
        pool.submit()
        page += 1
    volume.close()
    pool.detach(WRITER)


def by_the_background(pool: Pool) -> None:
    for _ in range(10):
        pool._drain_step()


@pytest.mark.parametrize("upkeep", [Pool.drain, by_the_background])
def test_a_log_full_of_what_was_removed_takes_writes_again(upkeep: Callable[[Pool], object]) -> None:
    pool = Pool.open(simulated_io(9)[0], "/pool", limits=LIMITS, background=False)
    told = threading.Event()
    pool.on_room = told.set
    pool.storage_create(STORAGE)
    for disk_id in (REMOVED, KEPT):
        pool.disk_create(disk_id, 16 << 20, STORAGE)
    fill_log(pool, REMOVED)
    pool.disk_rm(REMOVED)
    upkeep(pool)
    assert pool.log_room() > 0, "nothing is left that a drain could drain"
    assert told.is_set(), "those who wait for the log are told"
    fill_log(pool, KEPT)
    pool.close()
