"""Backup and restore over a real pool: full, incremental, every kind of block, sizes, idempotence, cancel."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import uuid4

import pytest

from innkeeper.fabric.tiering import Move
from innkeeper.model.problems import Corrupt, Invalid, NoSpace, NotFound
from innkeeper.protect.backup import BackupInputs, backup_vm
from innkeeper.protect.repository import Repository
from innkeeper.protect.restore import read_file, restore_disks
from innkeeper.protect.verify import verify

BLOCK = 65536
MIB = 1 << 20


def assert_nothing_left(lab) -> None:
    pool = lab.fabric.pool
    assert pool.attachment_ls() == []
    assert pool.pool_show()["holds"] == 0
    assert list(lab.repository.blobs.ls("leases/")) == []


def test_full_then_incremental(lab) -> None:
    disk = lab.fabric.disk(200 * MIB)
    lab.fabric.write(disk, {0: lab.some(4 * MIB), 100 * MIB: lab.some(2 * MIB)})
    lab.fabric.pool.drain()
    (first,) = lab.fabric.snapshot(disk)
    one = lab.backup({disk: first})
    assert one.logical_bytes == 6 * MIB
    assert one.base_backup_id is None
    assert 2 * MIB < one.stored_bytes < 5 * MIB

    lab.fabric.write(disk, {150 * MIB + 4096: lab.some(4096)})
    lab.fabric.zero(disk, 0, MIB)
    (second,) = lab.fabric.snapshot(disk)
    lab.fabric.pool.drain()
    two = lab.backup({disk: second}, base=one.backup_id)
    assert two.base_backup_id == one.backup_id
    assert two.changed_bytes == 17 * BLOCK
    assert two.read_bytes <= BLOCK
    assert two.stored_bytes < 100_000
    assert two.logical_bytes == 5 * MIB + BLOCK

    assert lab.restored(one.backup_id, disk) == lab.fabric.content(snapshot_id=first)
    assert lab.restored(two.backup_id, disk) == lab.fabric.content(snapshot_id=second)
    assert asyncio.run(verify(lab.repository)).ok
    assert_nothing_left(lab)


def test_undrained_split_and_zero_blocks(lab) -> None:
    disk = lab.fabric.disk(8 * MIB)
    lab.fabric.write(disk, {0: lab.some(MIB), 3 * MIB: bytes(2 * BLOCK), 5 * MIB + 8192: lab.some(4096)})
    (undrained,) = lab.fabric.snapshot(disk)
    one = lab.backup({disk: undrained})
    assert one.logical_bytes == MIB + BLOCK
    lab.fabric.pool.drain()
    (drained,) = lab.fabric.snapshot(disk)
    two = lab.backup({disk: drained})
    # The pool now names its extents by hash: what was stored from plain reads is found again.
    assert two.stored_bytes < 20_000
    assert lab.restored(one.backup_id, disk) == lab.restored(two.backup_id, disk)
    assert lab.restored(two.backup_id, disk) == lab.fabric.content(snapshot_id=drained)
    assert_nothing_left(lab)


@pytest.mark.parametrize("size", [512, 4096, BLOCK - 512, BLOCK + 512, 3 * BLOCK + 4096 + 512, 64 * MIB + 1536])
def test_sizes_that_are_no_multiple_of_a_block(lab, size: int) -> None:
    disk = lab.fabric.disk(size)
    lab.fabric.write(disk, {0: lab.some(min(size, 10_000)), size - 512: lab.some(512)})
    (undrained,) = lab.fabric.snapshot(disk)
    one = lab.backup({disk: undrained})
    lab.fabric.pool.drain()
    (drained,) = lab.fabric.snapshot(disk)
    two = lab.backup({disk: drained})
    expected = lab.fabric.content(snapshot_id=drained)
    assert len(expected) == size
    assert lab.restored(one.backup_id, disk) == lab.restored(two.backup_id, disk) == expected


def test_empty_disk(lab) -> None:
    disk = lab.fabric.disk(MIB)
    (snapshot,) = lab.fabric.snapshot(disk)
    one = lab.backup({disk: snapshot})
    assert one.logical_bytes == 0
    assert lab.restored(one.backup_id, disk) == bytes(MIB)


def test_several_disks_tpm_and_document(lab) -> None:
    disks = [lab.fabric.disk(MIB), lab.fabric.disk(2 * MIB)]
    for disk in disks:
        lab.fabric.write(disk, {BLOCK: lab.some(BLOCK)})
    snapshots = lab.fabric.snapshot(*disks)
    tpm = lab.some(3 * MIB + 17)
    done = lab.backup(dict(zip(disks, snapshots, strict=True)), tpm=tpm)
    point = lab.repository.point(done.backup_id)
    assert point.vm == {"name": "web", "spec": {"cpus": 2}}
    assert read_file(lab.repository, point, "tpm.tar") == tpm
    assert read_file(lab.repository, point, "other") is None
    for disk, snapshot in zip(disks, snapshots, strict=True):
        assert lab.restored(done.backup_id, disk) == lab.fabric.content(snapshot_id=snapshot)


def test_the_base_is_gone(lab) -> None:
    """Without the base's snapshot hashes are compared: nothing that is known is read."""
    disk = lab.fabric.disk(16 * MIB)
    lab.fabric.write(disk, {0: lab.some(8 * MIB)})
    lab.fabric.pool.drain()
    (first,) = lab.fabric.snapshot(disk)
    one = lab.backup({disk: first})
    lab.fabric.pool.snapshot_rm(first)
    lab.fabric.write(disk, {BLOCK: lab.some(BLOCK)})
    lab.fabric.pool.drain()
    (second,) = lab.fabric.snapshot(disk)
    two = lab.backup({disk: second}, base=one.backup_id)
    assert two.base_backup_id is None
    assert two.read_bytes < 2 * BLOCK
    assert lab.restored(two.backup_id, disk) == lab.fabric.content(snapshot_id=second)
    three = lab.backup({disk: second}, base=str(uuid4()))
    assert three.read_bytes == 0


def test_the_disk_grew_and_shrank(lab) -> None:
    disk = lab.fabric.disk(10 * MIB)
    lab.fabric.write(disk, {9 * MIB: lab.some(MIB)})
    (first,) = lab.fabric.snapshot(disk)
    one = lab.backup({disk: first})
    lab.fabric.pool.disk_resize(disk, 100 * MIB)
    lab.fabric.write(disk, {90 * MIB: lab.some(BLOCK)})
    (second,) = lab.fabric.snapshot(disk)
    two = lab.backup({disk: second}, base=one.backup_id)
    assert two.base_backup_id == one.backup_id
    lab.fabric.pool.disk_resize(disk, 9 * MIB + 4096)
    (third,) = lab.fabric.snapshot(disk)
    three = lab.backup({disk: third}, base=two.backup_id)
    assert three.base_backup_id is None
    for done, snapshot in ((one, first), (two, second), (three, third)):
        assert lab.restored(done.backup_id, disk) == lab.fabric.content(snapshot_id=snapshot)


def test_a_backup_is_idempotent(lab) -> None:
    disk = lab.fabric.disk(MIB)
    lab.fabric.write(disk, {0: lab.some(BLOCK)})
    (snapshot,) = lab.fabric.snapshot(disk)
    backup_id = str(uuid4())
    assert lab.backup({disk: snapshot}, backup_id=backup_id) == lab.backup({disk: snapshot}, backup_id=backup_id)
    assert lab.repository.point_ids() == [backup_id]


def test_restore_points_are_removable_in_any_order(lab) -> None:
    disk = lab.fabric.disk(4 * MIB)
    made = []
    base = None
    for _ in range(4):
        lab.fabric.write(disk, {lab.random.randrange(60) * BLOCK: lab.some(BLOCK) for _ in range(8)})
        (snapshot,) = lab.fabric.snapshot(disk)
        base = lab.backup({disk: snapshot}, base=base).backup_id
        made.append((base, snapshot))
    for gone in (1, 0, 2):
        lab.repository.remove_point(made[gone][0])
        for number, (backup_id, snapshot) in enumerate(made):
            if backup_id in lab.repository.point_ids():
                assert lab.restored(backup_id, disk) == lab.fabric.content(snapshot_id=snapshot), number
    with pytest.raises(NotFound, match="backup.not_found"):
        lab.repository.remove_point(made[0][0])


def test_cancel_leaves_nothing(lab) -> None:
    disk = lab.fabric.disk(64 * MIB)
    lab.fabric.write(disk, {at * MIB: lab.some(MIB) for at in range(48)})
    lab.fabric.pool.drain()
    (snapshot,) = lab.fabric.snapshot(disk)
    inputs = BackupInputs(str(uuid4()), str(uuid4()), "web", {}, lab.taken, {disk: snapshot})

    async def run() -> None:
        first = asyncio.Event()
        task = asyncio.create_task(
            backup_vm(lab.repository, inputs, lab.fabric, lab.fabric.nbd_socket, lambda progress: first.set())
        )
        await first.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert lab.repository.point_ids() == []
    assert_nothing_left(lab)


def test_progress_rises_to_its_end(lab) -> None:
    disks = [lab.fabric.disk(8 * MIB), lab.fabric.disk(4 * MIB)]
    lab.fabric.write(disks[0], {0: lab.some(6 * MIB)})
    snapshots = lab.fabric.snapshot(*disks)
    inputs = BackupInputs(str(uuid4()), str(uuid4()), "web", {}, lab.taken, dict(zip(disks, snapshots, strict=True)))
    seen: list[float] = []

    async def run() -> None:
        await backup_vm(
            lab.repository, inputs, lab.fabric, lab.fabric.nbd_socket, lambda progress: seen.append(progress.fraction)
        )
        await asyncio.sleep(0)

    asyncio.run(run())
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_what_is_in_an_object_store_is_backed_up_and_read_once(lab, tmp_path: Path) -> None:
    disk = lab.fabric.disk(16 * MIB)
    lab.fabric.write(disk, {0: lab.some(4 * MIB)})
    pool = lab.fabric.pool
    pool.drain()
    pool.writers.leave("")
    store = str(uuid4())
    pool.device_add(store, f"file://{tmp_path}/store", "slow")
    for number in sorted(pool.store.rows):
        pool._moves = [Move(number, store)]
        assert pool._move_next()
    (first,) = lab.fabric.snapshot(disk)
    assert {location for *_, location in pool.changed_blocks(first)["blocks"]} == {None}
    one = lab.backup({disk: first})
    assert one.logical_bytes == 4 * MIB
    assert lab.restored(one.backup_id, disk) == lab.fabric.content(snapshot_id=first)
    two = lab.backup({disk: first})
    assert two.read_bytes == 0
    assert lab.restored(two.backup_id, disk) == lab.fabric.content(snapshot_id=first)
    assert_nothing_left(lab)


def test_a_rotten_extent_of_the_pool_is_not_backed_up(lab) -> None:
    disk = lab.fabric.disk(MIB)
    lab.fabric.write(disk, {0: lab.some(2 * BLOCK)})
    lab.fabric.pool.drain()
    (snapshot,) = lab.fabric.snapshot(disk)
    path, offset, stored, _ = lab.fabric.pool.changed_blocks(snapshot)["blocks"][1][3]
    with Path(path).open("r+b") as file:
        file.seek(offset + stored // 2)
        byte = file.read(1)[0]
        file.seek(offset + stored // 2)
        file.write(bytes((byte ^ 1,)))
    with pytest.raises(Corrupt, match="fabric.corrupt") as caught:
        lab.backup({disk: snapshot})
    assert str(offset) in caught.value.detail
    assert lab.repository.point_ids() == []
    assert_nothing_left(lab)


def test_restore_into_a_full_pool_and_of_an_unknown_disk(lab) -> None:
    disk = lab.fabric.disk(4 * MIB)
    lab.fabric.write(disk, {0: lab.some(2 * MIB)})
    (snapshot,) = lab.fabric.snapshot(disk)
    done = lab.backup({disk: snapshot})

    def restore(disks: dict[str, str]) -> None:
        asyncio.run(
            restore_disks(
                lab.repository, done.backup_id, lab.fabric, lab.fabric.nbd_socket, disks, lab.fabric.storage_id
            )
        )

    with pytest.raises(Invalid, match="backup.disk"):
        restore({str(uuid4()): str(uuid4())})

    def full(*_arguments: object) -> int:
        raise NoSpace("pool.full", "the pool is full")

    real, lab.fabric.pool.submit = lab.fabric.pool.submit, full
    try:
        with pytest.raises(NoSpace):
            restore({disk: str(uuid4())})
    finally:
        lab.fabric.pool.submit = real
    assert_nothing_left(lab)


def test_two_inns_share_a_repository(lab, tmp_path: Path) -> None:
    disk = lab.fabric.disk(4 * MIB)
    lab.fabric.write(disk, {0: lab.some(2 * MIB)})
    lab.fabric.pool.drain()
    (snapshot,) = lab.fabric.snapshot(disk)
    other = Repository.open(tmp_path / "repository", uuid=lab.repository.uuid)
    one = lab.backup({disk: snapshot})
    two = lab.backup({disk: snapshot}, repository=other)
    assert two.read_bytes == 0
    assert lab.restored(one.backup_id, disk, other) == lab.restored(two.backup_id, disk)
