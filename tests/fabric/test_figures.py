"""Figures are what was written: data, equal blocks, compression, snapshots."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import CLONE, DISK, STORAGE, write

from innkeeper.fabric.layout import BLOCK, PAGE
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import NotFound
from innkeeper.system.files import Io


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    opened = Pool.open(Io(), str(tmp_path), background=False)
    opened.storage_create(STORAGE)
    opened.disk_create(DISK, 4 << 30, STORAGE)
    yield opened
    opened.close()


def half(seed: int) -> bytes:
    """A block that compresses to about a half."""
    return (seed.to_bytes(4, "big") + os.urandom(BLOCK // 2 - 4)).ljust(BLOCK, b"\0")


def test_an_empty_disk_takes_nothing(pool: Pool) -> None:
    assert pool.figures(disk_id=DISK) == {
        "data_bytes": 0,
        "distinct_bytes": 0,
        "stored_bytes": 0,
        "snapshot_bytes": 0,
        "undrained_bytes": 0,
        "dedup_ratio": 1.0,
        "compression_ratio": 1.0,
    }


def test_equal_blocks_count_once_in_what_is_distinct(pool: Pool) -> None:
    blocks = [half(seed) for seed in range(10)]
    write(pool, DISK, {number * BLOCK: blocks[number % 10] for number in range(30)})
    assert pool.figures(disk_id=DISK)["undrained_bytes"] == 30 * BLOCK
    pool.drain()
    found = pool.figures(disk_id=DISK)
    assert (found["data_bytes"], found["distinct_bytes"], found["undrained_bytes"]) == (30 * BLOCK, 10 * BLOCK, 0)
    assert found["dedup_ratio"] == 3.0
    assert 1.9 < found["compression_ratio"] < 2.0
    assert 5 * BLOCK < found["stored_bytes"] < 5.3 * BLOCK


def test_pages_of_split_blocks_and_holes(pool: Pool) -> None:
    write(pool, DISK, {0: half(1), 3 << 30: os.urandom(PAGE), (3 << 30) + 5 * PAGE: os.urandom(PAGE)})
    pool.drain()
    write(pool, DISK, {PAGE: os.urandom(2 * PAGE), BLOCK: bytes(BLOCK)})
    pool.drain()
    found = pool.figures(disk_id=DISK)
    assert found["data_bytes"] == BLOCK + 2 * PAGE
    assert found["distinct_bytes"] == BLOCK + 4 * PAGE, "the extent is kept for the pages that were not written anew"


def test_clones_and_snapshots(pool: Pool) -> None:
    write(pool, DISK, {number * BLOCK: half(number) for number in range(8)})
    snapshot = str(uuid4())
    pool.snapshot_create({snapshot: DISK})
    pool.drain()
    pool.disk_clone(CLONE, snapshot)
    before = pool.figures(disk_id=DISK)
    assert before["snapshot_bytes"] == 0
    everything = pool.figures()
    assert everything["dedup_ratio"] == 2.0
    assert everything["stored_bytes"] == before["stored_bytes"]
    write(pool, DISK, {number * BLOCK: half(100 + number) for number in range(4)})
    pool.drain()
    found = pool.figures(disk_id=DISK)
    assert found["data_bytes"] == 8 * BLOCK
    assert 1.9 * BLOCK < found["snapshot_bytes"] < 2.3 * BLOCK, "four blocks that only the snapshot still has"
    assert pool.figures(storage_id=STORAGE) == pool.figures()
    pool.snapshot_rm(snapshot)
    pool.disk_rm(DISK)
    assert pool.figures()["data_bytes"] == 8 * BLOCK


def test_what_is_unknown_is_said(pool: Pool) -> None:
    with pytest.raises(NotFound):
        pool.figures(disk_id=CLONE)
    with pytest.raises(NotFound):
        pool.figures(storage_id=CLONE)
