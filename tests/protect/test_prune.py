"""Prune: space comes back, nothing that is needed goes, and writers at work are waited for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Thread

import pytest
from memory_blobs import MemoryBlobs, ScriptedBlobs

from innkeeper.model.problems import Conflict, Corrupt, Unavailable
from innkeeper.protect.leases import RENEW_S, SKEW_S, TTL_S, live_leases
from innkeeper.protect.prune import prune
from innkeeper.protect.repository import Repository
from innkeeper.protect.verify import verify
from innkeeper.system.clock import SimulatedClock

BLOCK = 65536
MIB = 1 << 20


def run_prune(repository: Repository, **options: object):
    return asyncio.run(prune(repository, **options))


def packs(repository: Repository) -> set[str]:
    return {blob.name for blob in repository.blobs.ls("packs/")}


@pytest.fixture
def two(lab) -> tuple[str, list[str], list[bytes]]:
    """A disk, two restore points that share little, and their contents."""
    disk = lab.fabric.disk(8 * MIB)
    ids, contents = [], []
    for _ in range(2):
        lab.fabric.write(disk, {0: lab.some(3 * MIB)})
        lab.fabric.pool.drain()
        (snapshot,) = lab.fabric.snapshot(disk)
        ids.append(lab.backup({disk: snapshot}, base=ids[-1] if ids else None).backup_id)
        contents.append(lab.fabric.content(snapshot_id=snapshot))
    return disk, ids, contents


def test_nothing_to_do(lab, two) -> None:
    before = packs(lab.repository)
    done = run_prune(lab.repository)
    assert (done.freed_bytes, done.deleted_packs, done.pending_packs) == (0, 0, 0)
    assert packs(lab.repository) == before


@pytest.mark.parametrize("gone", [0, 1])
def test_space_comes_back(lab, two, gone: int) -> None:
    disk, ids, contents = two
    lab.repository.remove_point(ids[gone])
    plan = run_prune(lab.repository, dry_run=True)
    assert plan.dry_run
    assert plan.freed_bytes > MIB
    before = sum(blob.size_bytes for blob in lab.repository.blobs.ls("packs/"))
    done = run_prune(lab.repository)
    assert done.freed_bytes >= plan.freed_bytes
    after = sum(blob.size_bytes for blob in lab.repository.blobs.ls("packs/"))
    assert after < 0.7 * before
    assert lab.restored(ids[1 - gone], disk) == contents[1 - gone]
    assert asyncio.run(verify(lab.repository)).ok
    assert run_prune(lab.repository).freed_bytes == 0


def test_all_points_gone_leaves_no_pack(lab, two) -> None:
    for backup_id in two[1]:
        lab.repository.remove_point(backup_id)
    run_prune(lab.repository)
    assert packs(lab.repository) == set()
    assert lab.repository.load_index().packs == []
    assert list(lab.repository.blobs.ls("doomed/")) == []


def test_sparse_packs_are_rewritten(lab) -> None:
    disk = lab.fabric.disk(8 * MIB)
    lab.fabric.write(disk, {0: lab.some(3 * MIB)})
    lab.fabric.pool.drain()
    (first,) = lab.fabric.snapshot(disk)
    one = lab.backup({disk: first}).backup_id
    # Keep every sixth block only: every pack is mostly dead once the first point is gone.
    for block in range(48):
        if block % 6:
            lab.fabric.zero(disk, block * BLOCK, BLOCK)
    (second,) = lab.fabric.snapshot(disk)
    two = lab.backup({disk: second}, base=one).backup_id
    lab.repository.remove_point(one)
    done = run_prune(lab.repository)
    assert done.rewritten_bytes > 0
    assert done.freed_bytes > MIB
    assert lab.restored(two, disk) == lab.fabric.content(snapshot_id=second)
    assert asyncio.run(verify(lab.repository)).ok


def test_a_writer_at_work_is_waited_for(lab, two) -> None:
    disk, ids, contents = two
    lab.repository.remove_point(ids[0])
    with lab.repository.lease("writer"):
        done = run_prune(lab.repository)
        assert done.deleted_packs == 0
        assert done.pending_packs > 0
        assert lab.repository.marked("doomed")
    done = run_prune(lab.repository)
    assert done.deleted_packs > 0
    assert not lab.repository.marked("doomed")
    assert lab.restored(ids[1], disk) == contents[1]


def test_grace_is_kept_by_later_prunes(lab, two, tmp_path: Path) -> None:
    lab.repository.remove_point(two[1][0])
    done = run_prune(lab.repository, grace_s=3600)
    assert (done.deleted_packs, done.pending_packs > 0) == (0, True)
    lab.repository.clock = SimulatedClock(lab.repository.clock.now() + 3601)
    assert run_prune(lab.repository, grace_s=3600).deleted_packs > 0


def test_a_doomed_pack_that_is_needed_after_all_is_spared(lab, two) -> None:
    """A prune died after it doomed; then someone published a restore point that stands on the doomed packs."""
    disk, ids, contents = two
    point = lab.repository.point(ids[0])
    lab.repository.remove_point(ids[0])
    run_prune(lab.repository, grace_s=3600)
    assert lab.repository.marked("doomed")
    lab.repository.put_point(point)
    run_prune(lab.repository)
    assert not lab.repository.marked("doomed")
    assert lab.restored(ids[0], disk) == contents[0]


def test_what_a_reader_stands_on_stays(lab, two) -> None:
    _disk, ids, _contents = two
    point = lab.repository.point(ids[0])
    with lab.repository.lease("reader", [point]):
        lab.repository.remove_point(ids[0])
        assert run_prune(lab.repository).freed_bytes == 0
    assert run_prune(lab.repository).freed_bytes > 0


def test_a_backup_that_stands_on_doomed_packs_runs_again(lab, two) -> None:
    """Between the index being read and the restore point being published, a prune dooms what the backup found there."""
    disk, ids, contents = two
    first = lab.repository.point(ids[0]).disks[0].snapshot_id
    lab.repository.remove_point(ids[0])
    doomed: list[str] = []

    def prune_now(op: str) -> None:
        if op == "changed_blocks" and not doomed:
            doomed.append(op)
            before = lab.repository.load_index()
            for pack_id in before.packs:
                lab.repository.mark("doomed", pack_id)

    lab.fabric.before_call = prune_now
    again = lab.backup({disk: first})
    assert doomed
    assert again.stored_bytes > MIB
    assert lab.restored(again.backup_id, disk) == contents[0]
    run_prune(lab.repository)
    assert lab.restored(again.backup_id, disk) == contents[0]
    assert lab.restored(ids[1], disk) == contents[1]
    assert asyncio.run(verify(lab.repository)).ok


def test_one_prune_at_a_time(lab) -> None:
    with lab.repository.lease("prune"):
        with pytest.raises(Conflict, match="prune_running"):
            run_prune(lab.repository)


def test_a_prune_refuses_what_it_cannot_read(lab, two) -> None:
    path = Path(lab.repository.location) / "points" / two[1][0]
    path.write_bytes(path.read_bytes()[:-1])
    before = packs(lab.repository)
    with pytest.raises(Corrupt, match=two[1][0]):
        run_prune(lab.repository)
    assert packs(lab.repository) == before
    lab.repository.remove_point(two[1][0])
    run_prune(lab.repository)
    assert asyncio.run(verify(lab.repository)).ok


def test_a_restore_goes_on_while_a_prune_moves_entries(lab, two) -> None:
    disk, ids, contents = two
    lab.repository.remove_point(ids[0])

    def prune_once(op: str) -> None:
        if op == "disk_create":
            other = Repository.open(Path(lab.repository.location))
            thread = Thread(target=lambda: freed.append(run_prune(other).freed_bytes))
            thread.start()
            thread.join()

    freed: list[int] = []
    lab.fabric.before_call = prune_once
    assert lab.restored(ids[1], disk) == contents[1]
    assert freed[0] > 0


def test_packs_that_no_index_names_are_pruned(lab, two) -> None:
    """What a backup that died left behind."""
    memory = MemoryBlobs()
    clock = SimulatedClock()
    plain = Repository.create_on(memory, clock=clock)

    def no_index(call: str, name: str, count: int) -> None:
        if name.startswith("index/"):
            raise Unavailable("repository.unreachable", "gone")

    failing = Repository(ScriptedBlobs(memory, no_index), plain.uuid, plain.key, "repository", clock)
    disk = lab.fabric.disk(4 * MIB)
    lab.fabric.write(disk, {0: lab.some(MIB)})
    (snapshot,) = lab.fabric.snapshot(disk)
    with pytest.raises(Unavailable):
        lab.backup({disk: snapshot}, repository=failing)
    assert packs(plain)
    with plain.lease("writer"):
        run_prune(plain)
        assert packs(plain)
    run_prune(plain)
    assert not packs(plain)


def test_leases_end_renew_and_are_lost() -> None:
    clock = SimulatedClock()
    repository = Repository.create_on(MemoryBlobs(), clock=clock)
    with repository.lease("writer") as lease:
        assert [facts.id for facts in repository.leases()] == [lease.id]
        lease.check()
        clock.advance(TTL_S / 2 + 1)
        with pytest.raises(Unavailable, match="lease_lost"):
            lease.check()
        assert repository.leases()
        clock.advance(TTL_S / 2 + SKEW_S)
        assert not repository.leases()
        assert live_leases(repository.blobs, repository.key, clock, forget_dead=True) == []
        assert not list(repository.blobs.ls("leases/"))
        assert RENEW_S < TTL_S / 4
    assert repository.leases() == []


def test_a_backup_whose_lease_was_lost_publishes_nothing(lab) -> None:
    clock = SimulatedClock()
    repository = Repository.create_on(MemoryBlobs(), clock=clock)
    disk = lab.fabric.disk(MIB)
    (snapshot,) = lab.fabric.snapshot(disk)
    lab.fabric.before_call = lambda op: clock.advance(TTL_S) if op == "changed_blocks" else None
    with pytest.raises(Unavailable, match="lease_lost"):
        lab.backup({disk: snapshot}, repository=repository)
    assert repository.point_ids() == []
