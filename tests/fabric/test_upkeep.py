"""The log always gets room again, whatever becomes of what was written into it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from innkeeper.fabric import sweep, upkeep
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.model.problems import Problem
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


def test_what_nobody_flushes_gets_onto_the_medium(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "SYNC_BYTES", 256 << 10)
    io, files = simulated_io(11)
    pool = Pool.open(io, "/pool", limits=LIMITS, background=False)
    pool.storage_create(STORAGE)
    pool.disk_create(KEPT, 16 << 20, STORAGE)
    pool.attach(WRITER, disk_id=KEPT)
    volume = pool.volume(WRITER)
    for number, expected in ((16, False), (48, True)):
        synced = pool.log.synced_upto
        for page in range(number):
            volume.stage_write(page * 4096, bytes([page + 1]) * 4096)
            pool.submit()
        pool._write_out_step()
        assert (pool.log.synced_upto == pool.log.sequence) == expected
        assert (pool.log.synced_upto > synced) == expected
    files.cut_power()
    with suppress(Problem):
        pool._release()
    pool = Pool.open(replace(io, files=files.process()), "/pool", limits=LIMITS, background=False)
    pool.attach(WRITER, disk_id=KEPT)
    volume = pool.volume(WRITER)
    assert all(volume.read_blocking(page * 4096, 4096) == bytes([page + 1]) * 4096 for page in range(48))
    volume.close()
    pool.close()


def test_what_is_read_often_is_still_in_memory_once_it_was_written_anew_and_drained() -> None:
    io, _ = simulated_io(12)
    pool = Pool.open(io, "/pool", limits=LIMITS, background=False)
    pool.storage_create(STORAGE)
    pool.disk_create(KEPT, 16 << 20, STORAGE)
    pool.attach(WRITER, disk_id=KEPT)
    volume = pool.volume(WRITER)

    def write(pages: range, byte: int) -> None:
        for page in pages:
            volume.stage_write(page * 4096, (bytes([byte, page]) * 4096)[:4096])
        pool.submit()
        pool.drain()

    def misses() -> int:
        return pool.store.content.facts().misses

    write(range(48), 1)
    for page in (0, 0, 17):
        volume.read_blocking(page * 4096, 4096)
    known = misses()
    write(range(8), 2)  # half of a block, the whole of another, and one that nobody has read
    write(range(16, 48), 3)
    for page, byte in ((0, 2), (15, 1), (20, 3)):
        assert volume.read_blocking(page * 4096, 4096) == (bytes([byte, page]) * 4096)[:4096]
    assert misses() == known
    volume.read_blocking(33 * 4096, 4096)
    assert misses() == known + 1
    volume.close()
    pool.close()


@given(st.integers(0, 1 << 44), st.integers(0, 1 << 44))
def test_the_more_is_dead_the_less_a_sweep_rests(stored: int, live: int) -> None:
    share = sweep.leisure(stored, live)
    assert 0 <= share <= 1
    assert sweep.leisure(stored + (1 << 30), live) <= share
    due = int(sweep.SWEEP_AT * live + sweep.SWEEP_FROM_BYTES)
    assert sweep.leisure(due, live) == 1
    assert sweep.leisure(due + max(live, sweep.SWEEP_FROM_BYTES) + 1, live) == 0


@pytest.mark.parametrize(
    ("from_bytes", "short_bytes", "most", "least"),
    [(1 << 30, 0, 1.0, 1.0), (1 << 10, 0, 0.5, 0.0), (1 << 30, 1 << 60, 0.0, 0.0)],
    ids=["little is dead", "much is dead", "room is short"],
)
def test_a_sweep_under_a_foreground_in_need_rests_while_space_is_not_needed(
    from_bytes: int, short_bytes: int, most: float, least: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "SWEEP_FROM_BYTES", from_bytes)
    monkeypatch.setattr(upkeep, "SHORT_BYTES", short_bytes)
    monkeypatch.setattr(Pool, "rest_after", lambda *_: 1.0)
    io, _ = simulated_io(13)
    slept = list[float]()
    monkeypatch.setattr(io.clock, "sleep", slept.append)
    pool = Pool.open(io, "/pool", limits=LIMITS, background=False)
    pool.storage_create(STORAGE)
    pool.disk_create(KEPT, 16 << 20, STORAGE)
    pool.attach(WRITER, disk_id=KEPT)
    volume = pool.volume(WRITER)
    chance = random.Random(5)
    for _ in range(16):
        for block in range(4):
            volume.stage_write(block * 65536, chance.randbytes(65536))
        pool.submit()
        pool.drain()
    swept = pool.sweep(gentle=True)
    assert swept["groups_removed"] > 4
    assert least <= sum(slept) / (swept["groups_removed"] + swept["groups_compacted"]) <= most
    volume.close()
    pool.close()
