"""The curator: stored data follows policies that have changed, cold data is packed harder, disks stay on their tier."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import CLONE, DISK, HOLD, LIMITS, SNAPSHOT, STORAGE, digests, write
from tiered_world import TieredWorld

from innkeeper.fabric.curator import PASS_EVERY_S, rest_s, strength
from innkeeper.fabric.layout import BLOCK, CODEC_LZ4, CODEC_NAMES, CODEC_RAW, CODEC_ZSTD, PAGE
from innkeeper.fabric.meters import Histogram
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.tiering import DeviceFacts, GroupFacts, Move, plan
from innkeeper.system.clock import SimulatedClock
from innkeeper.system.files import Io

RAW, LZ4, ZSTD = CODEC_NAMES[CODEC_RAW], CODEC_NAMES[CODEC_LZ4], CODEC_NAMES[CODEC_ZSTD]
OTHER, LAZY = str(uuid4()), str(uuid4())
TEXT = b"".join(b"%06d what the guest wrote; " % number for number in range(60_000))


@pytest.fixture
def clock() -> SimulatedClock:
    return SimulatedClock()


@pytest.fixture
def pool(tmp_path: Path, clock: SimulatedClock) -> Iterator[Pool]:
    """``DISK`` of a storage that packs with lz4: 16 blocks of text, one of noise, a piece."""
    opened = Pool.open(Io(clock=clock), str(tmp_path / "pool"), limits=LIMITS, background=False)
    opened.storage_create(STORAGE)
    opened.storage_create(OTHER, compression="zstd", level=9)
    opened.disk_create(DISK, 64 << 20, STORAGE)
    write(opened, DISK, {0: TEXT[: 16 * BLOCK], 20 * BLOCK: os.urandom(BLOCK)})
    opened.drain()
    write(opened, DISK, {30 * BLOCK: os.urandom(PAGE)})
    opened.drain()
    opened.writers.leave("")
    yield opened
    opened.close()


def codecs(pool: Pool, disk: str = DISK) -> list[str]:
    """The codec of each extent of a disk, in address order."""
    snapshot = str(uuid4())
    pool.snapshot_create({snapshot: disk})
    blocks = pool.changed_blocks(snapshot)["blocks"]
    pool.snapshot_rm(snapshot)
    return [place[3] for _, kind, _, place in blocks if kind == "extent"]


def curate(pool: Pool) -> int:
    """A whole pass; how many groups were packed anew."""
    before = pool.meters.groups_recoded
    left = pool.curate_plan()["left_groups"]
    while left:
        left = pool.curate_next()["left_groups"]
    return pool.meters.groups_recoded - before


def test_stored_data_follows_a_changed_policy_and_once_is_enough(pool: Pool) -> None:
    before = digests(pool)
    assert codecs(pool) == [LZ4] * 16 + [RAW]
    assert curate(pool) == 0, "all is as it should be"
    pool.storage_set(STORAGE, compression="zstd", level=12)
    size = sum(row.size_bytes for row in pool.store.rows.values())
    assert curate(pool) > 0
    assert codecs(pool) == [ZSTD] * 16 + [RAW]
    assert sum(row.size_bytes for row in pool.store.rows.values()) < size
    assert digests(pool) == before
    assert pool.check()["problems"] == []
    assert curate(pool) == 0
    pool.storage_set(STORAGE, compression="off")
    curate(pool)
    assert codecs(pool) == [RAW] * 17
    pool.storage_set(STORAGE, compression="lz4")
    curate(pool)
    assert codecs(pool) == [LZ4] * 16 + [RAW]
    assert digests(pool) == before


def test_what_storages_share_has_the_stronger_policy(pool: Pool) -> None:
    pool.disk_create(LAZY, 64 << 20, OTHER)
    write(pool, LAZY, {0: TEXT[: 4 * BLOCK]})
    pool.drain()
    pool.writers.leave("")
    assert codecs(pool, LAZY) == [LZ4] * 4, "the same content was stored once"
    curate(pool)
    assert codecs(pool, LAZY) == [ZSTD] * 4
    assert codecs(pool) == [ZSTD] * 4 + [LZ4] * 12 + [RAW]
    assert curate(pool) == 0
    pool.disk_rm(LAZY)
    pool.sweep(1.0)
    assert pool.check()["problems"] == []


def test_a_moved_disk_follows_its_new_storage(pool: Pool) -> None:
    before = digests(pool)
    pool.disk_set(DISK, storage_id=OTHER)
    assert pool.recode_wanted
    curate(pool)
    assert codecs(pool) == [ZSTD] * 16 + [RAW]
    assert digests(pool) == before


def test_cold_data_is_packed_harder_and_stays_so(pool: Pool, clock: SimulatedClock) -> None:
    pool.storage_set(STORAGE, cold_level=15, cold_after_s=1000)
    pool._curate_step()
    assert codecs(pool)[0] == LZ4, "it is not known to be cold"
    clock.advance(PASS_EVERY_S + 1)
    digests(pool)
    pool.cache_resize(8 << 20)
    pool._curate_step()
    assert codecs(pool)[0] == LZ4, "it was read just now"
    pool.store.read_of_late.clear()
    clock.advance(PASS_EVERY_S + 1)
    for _ in range(5):
        pool._curate_step()
    assert codecs(pool) == [ZSTD] * 16 + [RAW]
    recoded = pool.meters.groups_recoded
    digests(pool)
    clock.advance(PASS_EVERY_S + 1)
    for _ in range(5):
        pool._curate_step()
    assert pool.meters.groups_recoded == recoded, "reading it again makes it no work"


def test_touches_survive_a_restart(tmp_path: Path) -> None:
    clock = SimulatedClock()
    io = Io(clock=clock)
    pool = Pool.open(io, str(tmp_path), limits=LIMITS, background=False)
    pool.storage_create(STORAGE, cold_level=15, cold_after_s=3 * PASS_EVERY_S)
    pool.disk_create(DISK, 64 << 20, STORAGE)
    write(pool, DISK, {0: TEXT[: 16 * BLOCK]})
    pool.drain()
    pool._curate_step()
    pool.close()
    clock.advance(4 * PASS_EVERY_S)
    pool = Pool.open(io, str(tmp_path), limits=LIMITS, background=False)
    for _ in range(5):
        pool._curate_step()
    assert codecs(pool) == [ZSTD] * 16
    pool.close()


def test_a_paused_curator_rests_and_stays_paused_after_a_restart(pool: Pool, clock: SimulatedClock) -> None:
    pool.storage_set(STORAGE, compression="zstd")
    assert pool.curator_pause(True)["paused"]
    for _ in range(5):
        pool._curate_step()
        pool._sweep_step()
        pool._scrub_step()
        pool._tier_step()
    assert pool.meters.groups_recoded == 0
    path = pool.path
    pool.close()
    again = Pool.open(Io(clock=clock), path, limits=LIMITS, background=False)
    assert again.paused
    again.curator_pause(False)
    again.recode_wanted = True
    for _ in range(5):
        again._curate_step()
    assert again.meters.groups_recoded > 0
    again.close()


def test_a_held_snapshot_keeps_its_groups_as_they_are(pool: Pool) -> None:
    pool.snapshot_create({SNAPSHOT: DISK})
    pool.hold(HOLD, SNAPSHOT)
    pool.storage_set(STORAGE, compression="zstd")
    assert curate(pool) == 0
    assert list(Path(pool.path).glob("groups/*.new")) == []
    pool.release(HOLD)
    assert curate(pool) > 0


def test_a_group_that_changed_meanwhile_is_left_alone(pool: Pool) -> None:
    before = digests(pool)
    pool.storage_set(STORAGE, compression="zstd")
    pool.curate_plan()
    pool.disk_rm(CLONE)
    write(pool, DISK, {0: os.urandom(12 * BLOCK)})
    pool.drain()
    pool.sweep(1.0)
    pool.curate_next()
    assert pool.check()["problems"] == []
    assert digests(pool).keys() == before.keys()


def test_remains_of_a_crash_go(pool: Pool, clock: SimulatedClock) -> None:
    path = pool.path
    pool.close()
    left = Path(path) / "groups" / "00000001.0001.grp.new"
    left.write_bytes(b"half")
    Pool.open(Io(clock=clock), path, limits=LIMITS, background=False).close()
    assert not left.exists()


def test_disks_that_are_bound_to_a_tier_go_there_and_stay(pool: Pool, tmp_path: Path) -> None:
    slow = str(uuid4())
    pool.device_add(slow, str(tmp_path / "slow"), "slow")
    before = digests(pool)
    pool.disk_set(DISK, tier="slow")
    curate(pool)
    assert {row.tier for row in pool.store.rows.values()} == {"slow"}
    write(pool, DISK, {40 * BLOCK: os.urandom(2 * BLOCK)})
    pool.drain()
    fresh = max(pool.store.rows)
    assert (pool.store.rows[fresh].device, pool.store.rows[fresh].tier) == (slow, "slow"), "new data goes there at once"
    pool.disk_set(DISK, tier="")
    pool.disk_clone(CLONE, _snapshot(pool))
    pool.disk_set(CLONE, tier="fast")
    pool.writers.leave(slow)
    curate(pool)
    assert {row.tier for row in pool.store.rows.values()} == {"fast"}
    write(pool, DISK, {40 * BLOCK: bytes(2 * BLOCK)})
    assert digests(pool)[DISK] == before[DISK]


def _snapshot(pool: Pool) -> str:
    snapshot = str(uuid4())
    pool.snapshot_create({snapshot: DISK})
    pool.drain()
    return snapshot


def test_the_plan_moves_what_is_bound_and_leaves_it_there() -> None:
    fast = DeviceFacts("fast", "fast", "online", 1000, 100)
    slow = DeviceFacts("slow", "slow", "online", 1000, 900)
    groups = [
        GroupFacts(1, "fast", 50, 0.0, False, "fast"),
        GroupFacts(2, "fast", 50, 0.0, True, "slow"),
        GroupFacts(3, "slow", 50, 0.0, True, "slow"),
        GroupFacts(4, "slow", 20, 0.0, False, "fast"),
    ]
    moves = plan([fast, slow], groups)
    assert Move(2, "slow") in moves
    assert Move(4, "fast") in moves
    assert {move.number for move in moves} == {2, 4}


def test_rests_follow_the_foreground() -> None:
    assert rest_s(0.5, 0, 0.0) == 0.0
    assert rest_s(0.5, 100, 1e-4) == 0.5
    assert rest_s(0.5, 100, 0.1) == 10.0


def test_rests_look_at_what_was_appended_since(pool: Pool) -> None:
    pool.rest_after(1.0)
    assert pool.rest_after(1.0) == 0.0
    pool.meters.append_s.add(1e-4, 50)
    assert pool.rest_after(1.0) == 1.0
    pool.meters.append_s.add(0.5)
    assert pool.rest_after(1.0) == 20.0


def test_policies_are_ordered_by_how_hard_they_pack() -> None:
    ordered = [Policy("off"), Policy("lz4"), Policy("zstd", 1), Policy("zstd", 19)]
    assert sorted([ordered[2], ordered[0], ordered[3], ordered[1]], key=strength) == ordered


def test_a_histogram_finds_its_buckets() -> None:
    histogram = Histogram()
    for seconds in (0.0, 15e-6, 17e-6, 33e-6, 1000.0):
        histogram.add(seconds)
    assert histogram.counts[:3] == [2, 1, 1]
    assert histogram.counts[-1] == 1
    assert histogram.sum_s == pytest.approx(1000.0, abs=0.01)


class CuratedWorld(TieredWorld):
    ACTIONS = (*TieredWorld.ACTIONS, ("curate", 4), ("change_policy", 3), ("bind", 2))

    def curate(self) -> None:
        left = self.pool.curate_plan()["left_groups"]
        for _ in range(self.random.choice((0, 1, left))):
            self.pool.curate_next()

    def change_policy(self) -> None:
        storage = self.random.choice(self.pool.storage_ls())["id"]
        self.pool.storage_set(storage, compression=self.random.choice(("off", "lz4", "zstd")))

    def bind(self) -> None:
        disks = self.pool.disk_ls()
        if disks:
            self.pool.disk_set(self.random.choice(disks)["id"], tier=self.random.choice(("", "fast", "slow")))


@pytest.mark.parametrize("faults", [False, True])
@pytest.mark.parametrize("seed", range(3_700_000, 3_700_010))
def test_a_curated_world_loses_nothing(seed: int, faults: bool) -> None:
    world = CuratedWorld(seed, faults=faults)
    for _ in range(120):
        world.step()
    world.crash(power=False)
    world.verify()
    world.close()
