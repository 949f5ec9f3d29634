"""A lost meta is rebuilt from the groups and the log."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from innkeeper.fabric.examine import examine
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.rebuild import rebuild_meta
from innkeeper.fabric.space import Limits
from innkeeper.system.simulation import simulated_io

LIMITS = Limits(log_bytes=1 << 20, segment_bytes=256 << 10, group_bytes=384 << 10, headroom_bytes=0)
PAGE = 4096


def name(number: int) -> str:
    return str(UUID(int=number, version=4))


STORAGE, DISK, WRITER, SNAPSHOT, READER, LATER = (name(number) for number in range(1, 7))


def test_disks_and_snapshots_come_back() -> None:
    io, files = simulated_io(3)
    pool = Pool.open(io, "/pool", limits=LIMITS, background=False)
    before = pool.incarnation
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, 3 << 20, STORAGE)
    pool.attach(WRITER, disk_id=DISK)
    volume = pool.volume(WRITER)
    first = files.random.randbytes(1 << 20)
    volume.stage_write(0, first)
    pool.submit()
    pool.snapshot_create({SNAPSHOT: DISK})
    volume.stage_write(0, b"\1" * PAGE * 20)
    pool.drain()
    volume.stage_write(PAGE, b"\2" * PAGE)
    pool.close()
    files.unlink("/pool/meta.db")
    io = replace(io, files=files.process())
    found = rebuild_meta(io, "/pool")
    assert (found["disks"], found["snapshots"]) == (1, 1)
    pool = Pool.open(io, "/pool", limits=LIMITS, background=False)
    assert pool.incarnation != before
    assert pool.check()["problems"] == []
    pool.attach(WRITER, disk_id=DISK)
    volume = pool.volume(WRITER)
    assert volume.size_bytes == 3 << 20
    expected = b"\1" * PAGE + b"\2" * PAGE + b"\1" * PAGE * 18 + first[20 * PAGE :]
    assert volume.read_blocking(0, 1 << 20) == expected
    pool.attach(READER, snapshot_id=SNAPSHOT, role="reader")
    assert pool.volume(READER).read_blocking(0, 1 << 20) == first
    volume.stage_write(0, b"\3" * PAGE)
    pool.drain()
    assert volume.read_blocking(0, PAGE) == b"\3" * PAGE
    pool.close()


def test_a_meta_of_use_is_left_alone() -> None:
    io, files = simulated_io(4)
    pool = Pool.open(io, "/pool", limits=LIMITS, background=False)
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, 1 << 20, STORAGE)
    pool.attach(WRITER, disk_id=DISK)
    pool.volume(WRITER).stage_write(0, b"\1" * PAGE)
    pool.drain()
    pool.close()
    assert examine(io, "/pool", repair=True, limits=LIMITS).sound
    files.damage("/pool/meta.db", 0, b"\xff" * 4096)
    report = examine(io, "/pool", repair=True, limits=LIMITS)
    assert "is rebuilt" in report.steps[0].what
    assert [verdict.id for verdict in report.after] == [DISK]
    assert files.exists(report.steps[0].aside[0])
