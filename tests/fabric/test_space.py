"""Space: what is promised to thick disks and storages is theirs, and nobody is promised what is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import DISK, SNAPSHOT, STORAGE, WRITER, write

from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import GRANT_BYTES, Limits
from innkeeper.model.problems import Invalid, NoSpace, NotFound
from innkeeper.system.files import Io

MIB = 1 << 20
LIMITS = Limits(
    log_bytes=8 * MIB,
    segment_bytes=2 * MIB,
    group_bytes=4 * MIB,
    capacity_bytes=200 * MIB,
    headroom_bytes=8 * MIB,
)
OTHER, SECOND = str(uuid4()), str(uuid4())


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    opened = Pool.open(Io(), str(tmp_path), limits=LIMITS, background=False)
    opened.storage_create(STORAGE)
    opened.storage_create(OTHER)
    yield opened
    opened.close()


def fill(pool: Pool, disk: str, until: int, start: int = 0) -> int:
    """Write random MiB after MiB, drained each, up to ``until`` or the problem; the MiB that were taken."""
    for number in range(start, until):
        try:
            write(pool, disk, {number * MIB: os.urandom(MIB)})
        except NoSpace:
            pool.detach(WRITER)
            return number
        pool.drain()
    return until


def test_a_thick_disk_can_always_be_filled(pool: Pool) -> None:
    pool.disk_create(DISK, 100 * MIB, STORAGE, thick=True)
    assert pool.disk_show(DISK)["promised_bytes"] >= 100 * MIB
    pool.disk_create(SECOND, 400 * MIB, STORAGE)
    taken = fill(pool, SECOND, 300)
    assert 30 <= taken <= 100
    assert fill(pool, DISK, 100) == 100
    assert pool.disk_show(DISK)["promised_bytes"] == 0
    assert pool.disk_show(DISK)["data_bytes"] == 100 * MIB
    assert pool.check()["problems"] == []


def test_a_promise_that_cannot_be_kept_is_refused_and_changes_nothing(pool: Pool) -> None:
    with pytest.raises(NoSpace) as refused:
        pool.disk_create(DISK, 300 * MIB, STORAGE, thick=True)
    assert refused.value.code == "pool.promised"
    assert pool.disk_ls() == []
    pool.disk_create(DISK, 150 * MIB, STORAGE)
    pool.disk_set(DISK, thick=True)
    with pytest.raises(NoSpace):
        pool.disk_resize(DISK, 300 * MIB)
    with pytest.raises(NoSpace):
        pool.storage_set(OTHER, reservation_bytes=100 * MIB)
    with pytest.raises(NoSpace):
        pool.storage_create(str(uuid4()), reservation_bytes=100 * MIB)
    assert pool.disk_show(DISK)["size_bytes"] == 150 * MIB
    assert [each["reservation_bytes"] for each in pool.storage_ls()] == [0, 0]
    pool.disk_set(DISK, thick=False)
    pool.storage_set(OTHER, reservation_bytes=100 * MIB)
    with pytest.raises(NoSpace):
        pool.disk_set(DISK, thick=True)
    assert pool.disk_show(DISK)["thick"] is False


def test_what_a_storage_reserves_is_for_its_disks(pool: Pool) -> None:
    pool.storage_set(OTHER, reservation_bytes=80 * MIB)
    pool.disk_create(DISK, 400 * MIB, STORAGE)
    pool.disk_create(SECOND, 400 * MIB, OTHER)
    assert fill(pool, DISK, 300) <= 110
    assert fill(pool, SECOND, 80) == 80


def test_a_quota_is_told_where_nothing_waits_for_a_drain(pool: Pool) -> None:
    pool.storage_set(STORAGE, quota_bytes=20 * MIB)
    pool.disk_create(DISK, 64 * MIB, STORAGE)
    assert fill(pool, DISK, 60) in (18, 19)
    with pytest.raises(NoSpace) as refused:
        write(pool, DISK, {40 * MIB: os.urandom(2 * MIB)})
    assert refused.value.code == "storage.quota"
    pool.detach(WRITER)
    pool.attach(WRITER, disk_id=DISK)
    volume = pool.volume(WRITER)
    volume.stage_trim(0, 10 * MIB)
    pool.submit()
    pool.drain()
    assert pool.disk_show(DISK)["data_bytes"] <= 10 * MIB
    volume.stage_write(50 * MIB, os.urandom(4 * MIB))
    pool.submit()
    assert not volume.waits_for_room(MIB)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"quota_bytes": -1}, "storage.quota"),
        ({"quota_bytes": MIB, "reservation_bytes": 2 * MIB}, "storage.quota"),
        ({"cold_level": 99}, "storage.level"),
        ({"tier": "warm"}, "disk.tier"),
    ],
)
def test_wrong_policies_are_refused(pool: Pool, wrong: dict[str, int | str], code: str) -> None:
    with pytest.raises(Invalid) as refused:
        pool.storage_set(STORAGE, **wrong)
    assert refused.value.code == code
    with pytest.raises(NotFound):
        pool.storage_set(STORAGE, qos_id=str(uuid4()))


def test_settings_survive_a_restart_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    pool = Pool.open(Io(), str(tmp_path), limits=LIMITS, background=False)
    policy = str(uuid4())
    pool.qos_set(policy, max_iops=100)
    pool.storage_create(STORAGE, quota_bytes=50 * MIB, cold_level=12)
    pool.disk_create(DISK, 10 * MIB, STORAGE, thick=True, tier="slow", qos_id=policy)
    with pytest.raises(Invalid):
        pool.disk_set(DISK, colour="blue")
    with pytest.raises(Invalid):
        pool.disk_set(DISK, tier="warm")
    with pytest.raises(NotFound):
        pool.disk_set(DISK, qos_id=str(uuid4()))
    pool.snapshot_create({SNAPSHOT: DISK})
    write(pool, DISK, {0: os.urandom(3 * BLOCK)})
    pool.drain()
    pool.close()
    pool = Pool.open(Io(), str(tmp_path), limits=LIMITS, background=False)
    facts = pool.disk_show(DISK)
    assert (facts["thick"], facts["tier"], facts["qos_id"]) == (True, "slow", policy)
    assert facts["data_bytes"] == 3 * BLOCK
    assert pool.qos_ls()[0]["disks"] == [DISK]
    pool.storage_create(OTHER)
    assert pool.disk_set(DISK, storage_id=OTHER)["storage_id"] == OTHER
    pool.close()


def test_credit_is_small_enough_to_be_taken_back(pool: Pool) -> None:
    """Disks that were granted room and do not use it keep none from one that needs it."""
    pool.storage_set(STORAGE, quota_bytes=4 * GRANT_BYTES)
    disks = [str(uuid4()) for _ in range(8)]
    for disk in disks:
        pool.disk_create(disk, 64 * MIB, STORAGE)
        write(pool, disk, {0: os.urandom(BLOCK)})
    pool.drain()
    assert fill(pool, disks[0], 30, 1) == 30
