"""Scrub: damage is found before it is needed, repaired from a copy, or told with all that stands on it."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import CLONE, DISK, LIMITS, SNAPSHOT, STORAGE, WRITER, digests, write
from tiered_world import TieredWorld

from innkeeper.fabric.layout import BLOCK, PAGE
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.scrub import PASS_S
from innkeeper.fabric.tiering import Move
from innkeeper.model.problems import Corrupt, Invalid, NotFound
from innkeeper.system.files import Io

BLOCKS = [bytes([number]) * 100 + os.urandom(BLOCK // 2) + bytes(BLOCK // 2 - 100) for number in range(8)]
RAW = os.urandom(BLOCK)
OTHER = str(uuid4())


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    """``DISK`` with 8 compressed extents, one raw and a piece, its snapshot and clone; ``OTHER`` stands by itself."""
    opened = Pool.open(Io(), str(tmp_path / "pool"), limits=LIMITS, background=False)
    opened.storage_create(STORAGE)
    opened.disk_create(DISK, 64 << 20, STORAGE)
    opened.disk_create(OTHER, 1 << 20, STORAGE)
    write(opened, DISK, {number * BLOCK: block for number, block in enumerate(BLOCKS)} | {32 * BLOCK: RAW})
    write(opened, OTHER, {0: os.urandom(BLOCK)})
    opened.drain()
    write(opened, DISK, {40 * BLOCK: os.urandom(PAGE)})
    opened.drain()
    opened.snapshot_create({SNAPSHOT: DISK})
    opened.disk_clone(CLONE, SNAPSHOT)
    opened.drain()
    yield opened
    opened.close()


def place_of(pool: Pool, block: int) -> tuple[int, int]:
    """(group, slot) of a block's extent."""
    answer = pool.changed_blocks(SNAPSHOT, None, block, 1)["blocks"][0]
    for number in pool.store.rows:
        table = pool.store.table(number)
        for slot in range(table.slots):
            digest = table.extent_hash(slot)
            if digest is not None and digest.hex() == answer[2]:
                return number, slot
    raise AssertionError(f"block {block} has no extent")


def spoil(pool: Pool, block: int) -> tuple[int, int]:
    """Change a stored byte of a block's extent; where it is."""
    number, slot = place_of(pool, block)
    row = pool.store.table(number).row(slot)
    with Path(pool.store.path(number)).open("r+b") as file:
        file.seek(row.offset + 50)
        byte = file.read(1)
        file.seek(row.offset + 50)
        file.write(bytes([byte[0] ^ 0xFF]))
    return number, slot


def scrub(pool: Pool, limit_bytes: int = 1) -> int:
    """A whole pass in small slices; how many groups were read."""
    after: int | None = 0
    groups = 0
    while after is not None:
        done = pool.scrub(after, limit_bytes)
        after, groups = done["next"], groups + done["groups"]
    return groups


def read(pool: Pool, disk: str, block: int) -> bytes:
    pool.attach(WRITER, disk_id=disk, role="reader")
    volume = pool.volume(WRITER)
    try:
        return volume.read_blocking(block * BLOCK, BLOCK)
    finally:
        volume.close()
        pool.detach(WRITER)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_sound_pool_has_no_damage(pool: Pool) -> None:
    assert scrub(pool) == len(pool.store.rows)
    assert pool.damage_ls() == []
    assert pool.scrubbed_at is not None


def test_damage_is_told_with_all_that_stands_on_it(pool: Pool) -> None:
    group, slot = spoil(pool, 3)
    scrub(pool)
    (found,) = pool.damage_ls()
    assert (found["group"], found["slot"], found["item"]) == (group, slot, "extent")
    assert found["subjects"] == sorted([DISK, CLONE, SNAPSHOT])
    assert found["path"] == pool.store.path(group)
    assert "checksum" in found["what"]
    write(pool, CLONE, {3 * BLOCK: bytes(BLOCK)})
    pool.drain()
    assert pool.damage_ls()[0]["subjects"] == sorted([DISK, SNAPSHOT])


@pytest.mark.parametrize("block", [3, 32])
def test_a_copy_puts_it_right(pool: Pool, block: int) -> None:
    before = digests(pool)
    group, slot = spoil(pool, block)
    with pytest.raises(Corrupt):
        read(pool, DISK, block)
    scrub(pool)
    content = (BLOCKS + [b""] * 24 + [RAW])[block]
    for wrong in (b"", content[:-1], bytes(BLOCK)):
        with pytest.raises(Invalid) as refused:
            pool.repair(group, slot, encoded(wrong))
        assert refused.value.code == "repair.hash"
    assert pool.repair(group, slot, encoded(content)) == {"repaired": True}
    assert pool.repair(group, slot, encoded(content)) == {"repaired": False}
    assert pool.damage_ls() == []
    assert digests(pool) == before
    scrub(pool)
    assert pool.damage_ls() == []
    assert pool.check()["problems"] == []
    assert pool.repaired == 1
    for place in ((10**6, 0), (group, 10**5)):
        with pytest.raises(NotFound):
            pool.repair(*place, encoded(content))


def test_the_cache_puts_it_right_by_itself(pool: Pool) -> None:
    assert read(pool, DISK, 5) == BLOCKS[5]
    spoil(pool, 5)
    scrub(pool)
    assert pool.damage_ls() == []
    assert pool.repaired == 1
    pool.cache_resize(8 << 20)
    assert pool.check()["problems"] == []


def test_the_same_content_written_again_is_stored_anew_and_puts_it_right(pool: Pool) -> None:
    spoil(pool, 6)
    scrub(pool)
    assert len(pool.damage_ls()) == 1
    write(pool, OTHER, {4 * BLOCK: BLOCKS[6]})
    pool.drain()
    assert read(pool, OTHER, 4) == BLOCKS[6]
    scrub(pool)
    assert pool.damage_ls() == []
    assert read(pool, CLONE, 6) == BLOCKS[6]


def test_damage_that_nothing_needs_is_no_damage(pool: Pool) -> None:
    spoil(pool, 3)
    pool.snapshot_rm(SNAPSHOT)
    for disk in (DISK, CLONE):
        pool.disk_rm(disk)
    scrub(pool)
    assert pool.damage_ls() == []
    assert pool.pool_show()["damaged"] == 0


def test_one_of_several_is_repaired_and_the_others_stay_told(pool: Pool) -> None:
    group, slot = spoil(pool, 1)
    spoil(pool, 2)
    scrub(pool)
    assert len(pool.damage_ls()) == 2
    assert pool.repair(group, slot, encoded(BLOCKS[1])) == {"repaired": True}
    assert read(pool, DISK, 1) == BLOCKS[1]
    with pytest.raises(Corrupt):
        read(pool, DISK, 2)
    scrub(pool)
    assert [found["slot"] for found in pool.damage_ls()] == [place_of(pool, 2)[1]]


def test_damage_goes_along_when_its_group_moves_and_stays_damage(pool: Pool, tmp_path: Path) -> None:
    group, slot = spoil(pool, 4)
    device = str(uuid4())
    pool.device_add(device, str(tmp_path / "slow"), "slow")
    pool.writers.leave("")
    pool._moves = [Move(group, device)]
    assert pool._move_next() == 1
    with pytest.raises(Corrupt):
        read(pool, DISK, 4)
    scrub(pool)
    assert [found["slot"] for found in pool.damage_ls()] == [slot]
    assert pool.repair(group, slot, encoded(BLOCKS[4]))["repaired"]
    assert read(pool, CLONE, 4) == BLOCKS[4]


def test_damage_that_was_swept_is_forgotten(pool: Pool) -> None:
    spoil(pool, 3)
    scrub(pool)
    assert len(pool.damage_ls()) == 1
    pool.writers.leave("")
    pool.snapshot_rm(SNAPSHOT)
    for disk in (DISK, CLONE):
        pool.disk_rm(disk)
    pool.sweep(1.0)
    assert pool.damage_ls() == []
    assert pool.pool_show()["damaged"] == 0


def test_a_lost_group_and_a_damaged_index_are_told(pool: Pool) -> None:
    group, _ = place_of(pool, 3)
    path = Path(pool.store.path(group))
    whole = path.read_bytes()
    path.unlink()
    scrub(pool)
    assert [(found["group"], found["slot"]) for found in pool.damage_ls()] == [(group, None)]
    path.write_bytes(whole[:PAGE] + bytes(len(whole) - PAGE))
    scrub(pool)
    (found,) = pool.damage_ls()
    assert "index" in found["what"]
    path.write_bytes(whole)
    scrub(pool)
    assert pool.damage_ls() == []


def test_a_pass_goes_on_where_it_was_after_a_restart(tmp_path: Path) -> None:
    pool = Pool.open(Io(), str(tmp_path), limits=LIMITS, background=False)
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, 64 << 20, STORAGE)
    write(pool, DISK, {number * BLOCK: os.urandom(BLOCK) for number in range(60)})
    pool.drain()
    numbers = sorted(pool.store.rows)
    assert len(numbers) > 3
    assert pool._scrub_step() > 1, "it is not due"
    assert pool._scrubbed_upto == 0
    for _ in range(2):
        pool._last_group_at -= PASS_S
        pool._scrub_step()
    pool.close()
    pool = Pool.open(Io(), str(tmp_path), limits=LIMITS, background=False)
    assert pool._scrubbed_upto == numbers[1]
    for _ in numbers[2:]:
        assert pool.scrubbed_at is None
        pool._last_group_at -= PASS_S
        pool._scrub_step()
    assert pool.scrubbed_at is not None
    pool._last_group_at += 2 * PASS_S
    pool._scrub_step()
    assert pool._last_group_at <= time.time(), "a clock that was set back holds nothing up"
    pool.close()


class ScrubbedWorld(TieredWorld):
    ACTIONS = (*TieredWorld.ACTIONS, ("scrub", 4))

    def scrub(self) -> None:
        self.pool.scrub(0, self.random.choice((1, 1 << 30)))
        assert self.pool.damage_ls() == [], self.story()


@pytest.mark.parametrize("seed", range(3_600_000, 3_600_010))
def test_nothing_is_told_that_is_not_damaged(seed: int) -> None:
    world = ScrubbedWorld(seed, faults=False)
    for _ in range(120):
        world.step()
    world.crash(power=False)
    world.verify()
    world.close()
