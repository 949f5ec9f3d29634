"""Snapshots of a disk form a tree that is right after reverts and removals, and each has its sizes."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from frozen_pool import CLONE, DISK, STORAGE, write

from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.rebuild import rebuild_meta
from innkeeper.system.files import Io

A, B, C, D = (str(UUID(int=number)) for number in range(101, 105))


def opened(place: Path) -> Pool:
    return Pool.open(Io(), str(place), background=False)


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    pool = opened(tmp_path)
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, 64 * BLOCK, STORAGE)
    return pool


def blocks(pool: Pool, first: int, count: int, disk: str = DISK) -> None:
    write(pool, disk, {first * BLOCK: os.urandom(count * BLOCK)})


def parents(pool: Pool) -> dict[str, str | None]:
    return {each["id"]: each["parent_id"] for each in pool.snapshot_ls()}


def sizes(pool: Pool, disk: str = DISK) -> dict[str, tuple[int, int]]:
    found = pool.snapshot_sizes(disk)
    return {each["id"]: (each["changed_bytes"] // BLOCK, each["own_bytes"] // BLOCK) for each in found}


def test_what_is_taken_after_a_revert_comes_after_what_was_reverted_to(pool: Pool, tmp_path: Path) -> None:
    for snapshot in (A, B):
        blocks(pool, 0, 1)
        pool.snapshot_create({snapshot: DISK})
    pool.disk_revert(DISK, A)
    assert pool.disk_show(DISK)["parent_id"] == A
    blocks(pool, 1, 1)
    pool.snapshot_create({C: DISK, D: DISK})
    wanted = {A: None, B: A, C: A, D: C}
    assert parents(pool) == wanted
    pool.close()
    pool = opened(tmp_path)
    assert parents(pool) == wanted
    assert pool.disk_show(DISK)["parent_id"] == D
    pool.snapshot_rm(A)
    pool.snapshot_rm(D)
    assert parents(pool) == {B: None, C: None}
    assert pool.disk_show(DISK)["parent_id"] == C
    pool.close()
    pool = opened(tmp_path)
    assert parents(pool) == {B: None, C: None}
    assert pool.disk_show(DISK)["parent_id"] == C
    pool.close()


@pytest.mark.parametrize("drained", [False, True])
def test_sizes_are_what_changed_and_what_only_the_snapshot_has(pool: Pool, drained: bool) -> None:
    def settle() -> None:
        if drained:
            pool.drain()

    blocks(pool, 0, 8)
    settle()
    pool.snapshot_create({A: DISK})
    blocks(pool, 0, 3)
    settle()
    pool.snapshot_create({B: DISK})
    assert sizes(pool) == {A: (8, 3), B: (3, 0)}
    blocks(pool, 2, 2)
    settle()
    assert sizes(pool) == {A: (8, 3), B: (3, 1)}
    pool.disk_clone(CLONE, B)
    assert sizes(pool) == {A: (8, 3), B: (3, 0)}, "the clone has what is B's"
    blocks(pool, 2, 1, CLONE)
    pool.snapshot_create({C: CLONE})
    settle()
    assert sizes(pool) == {A: (8, 3), B: (3, 1)}
    assert sizes(pool, CLONE) == {C: (1, 0)}
    pool.snapshot_rm(A)
    assert sizes(pool) == {B: (8, 1)}
    pool.close()


def test_a_clone_begins_a_tree_of_its_own(pool: Pool) -> None:
    pool.snapshot_create({A: DISK})
    pool.disk_clone(CLONE, A)
    assert pool.disk_show(CLONE)["parent_id"] is None
    pool.disk_revert(CLONE, A)
    assert pool.disk_show(CLONE)["parent_id"] is None
    pool.snapshot_create({B: CLONE})
    assert parents(pool) == {A: None, B: None}
    assert pool.snapshot_sizes(str(uuid4())) == []
    pool.close()


def test_a_rebuilt_pool_takes_snapshots_to_follow_each_other(pool: Pool, tmp_path: Path) -> None:
    for snapshot in (A, B):
        blocks(pool, 0, 1)
        pool.snapshot_create({snapshot: DISK})
    blocks(pool, 1, 1)
    pool.drain()
    pool.close()
    for left in tmp_path.glob("meta.db*"):
        left.unlink()
    rebuild_meta(Io(), str(tmp_path))
    pool = opened(tmp_path)
    assert parents(pool) == {A: None, B: A}
    assert pool.disk_show(DISK)["parent_id"] == B
    pool.close()
