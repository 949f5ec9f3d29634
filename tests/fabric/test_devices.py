"""Devices of a pool: added and drained under way, found again, and refused when they are not what they were."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import DISK, LIMITS, STORAGE, digests, write
from tiered_world import TieredWorld

from innkeeper.fabric.devices import HOME
from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.rebuild import rebuild_meta
from innkeeper.fabric.tiering import Move
from innkeeper.model.problems import Conflict, Corrupt, Invalid, NotFound, Problem
from innkeeper.system.files import Io

A, B = str(uuid4()), str(uuid4())


def opened(home: Path) -> Pool:
    return Pool.open(Io(), str(home), limits=LIMITS, background=False)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A closed pool with a disk of some megabytes in several groups, and 2 devices: ``a`` fast, ``b`` slow."""
    pool = opened(tmp_path / "pool")
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, 64 << 20, STORAGE)
    pool.device_add(A, str(tmp_path / "a"), "fast")
    pool.device_add(B, str(tmp_path / "b"), "slow")
    write(pool, DISK, {number * BLOCK: os.urandom(BLOCK) for number in range(50)})
    pool.drain()
    pool.close()
    return tmp_path / "pool"


def spread(pool: Pool) -> None:
    """Put groups on every device in turn."""
    for index, number in enumerate(sorted(pool.store.rows)):
        pool._moves = [Move(number, (HOME, A, B)[index % 3])]
        pool._move_next()


def where(pool: Pool) -> dict[str, int]:
    return {facts["id"]: facts["groups"] for facts in pool.device_ls()}


def test_groups_are_found_again_wherever_they_are(home: Path) -> None:
    pool = opened(home)
    before = digests(pool)
    spread(pool)
    assert digests(pool) == before
    assert all(where(pool).values())
    assert len(list((home.parent / "b" / "groups").iterdir())) == where(pool)[B]
    pool.close()
    pool = opened(home)
    assert digests(pool) == before
    assert pool.check()["problems"] == []
    pool.close()


def test_a_device_is_drained_and_let_go(home: Path) -> None:
    pool = opened(home)
    spread(pool)
    before = digests(pool)
    pool.device_rm(A)
    assert [facts["state"] for facts in pool.device_ls() if facts["id"] == A] == ["draining"]
    write(pool, DISK, {60 * BLOCK: os.urandom(BLOCK)})
    pool.drain()
    pool.tier()
    assert set(where(pool)) == {HOME, B}
    assert not (home.parent / "a" / "device.json").exists()
    assert list((home.parent / "a" / "groups").iterdir()) == []
    assert digests(pool) != before
    after = digests(pool)
    pool.close()
    shutil.rmtree(home.parent / "a")
    pool = opened(home)
    assert digests(pool) == after
    pool.device_add(str(uuid4()), str(home.parent / "a"), "slow")
    pool.close()


def test_draining_is_called_off_by_adding_the_device_again(home: Path) -> None:
    pool = opened(home)
    spread(pool)
    pool.device_rm(B)
    pool.device_add(B, str(home.parent / "b"), "slow")
    pool.tier()
    assert [facts["state"] for facts in pool.device_ls() if facts["id"] == B] == ["online"]
    pool.close()


def test_what_a_held_snapshot_reaches_is_not_moved(home: Path) -> None:
    pool = opened(home)
    spread(pool)
    snapshot = str(uuid4())
    pool.snapshot_create({snapshot: DISK})
    pool.hold(A, snapshot)
    before = where(pool)
    pool.device_rm(B)
    pool.tier()
    assert where(pool) == before
    pool.release(A)
    pool.tier()
    assert B not in where(pool)
    pool.close()


def test_a_rebuilt_meta_finds_the_groups_of_all_devices(home: Path) -> None:
    pool = opened(home)
    pool.writers.leave(HOME)
    pool.writers.leave(A)
    spread(pool)
    before = digests(pool)[DISK]
    pool.close()
    (home / "meta.db").unlink()
    assert rebuild_meta(Io(), str(home))["disks"] == 1
    pool = opened(home)
    assert digests(pool)[DISK] == before
    pool.close()


def code_of(home: Path) -> str:
    with pytest.raises(Problem) as refused:
        opened(home)
    assert refused.value.remedy
    return refused.value.code


def test_a_pool_is_not_opened_without_all_of_itself(home: Path, tmp_path: Path) -> None:
    device = tmp_path / "b"
    device.rename(tmp_path / "gone")
    assert code_of(home) == "device.missing"
    other = opened(tmp_path / "other")
    other.device_add(B, str(device), "slow")
    other.close()
    assert code_of(home) == "device.foreign"
    shutil.rmtree(device)
    (tmp_path / "gone").rename(device)
    second = opened(home)
    with pytest.raises(Conflict, match="locked"):
        Io().files.lock(str(device / "lock"))
    second.close()


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"format": 9}', '{"format": 2}'])
def test_an_unreadable_identity_is_told(home: Path, broken: str) -> None:
    (home / "pool.json").write_text(broken)
    with pytest.raises(Corrupt) as refused:
        opened(home)
    assert refused.value.code == "pool.format"


def test_what_cannot_be_a_device_is_refused(home: Path, tmp_path: Path) -> None:
    pool = opened(home)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letters").write_text("")
    other = opened(tmp_path / "other")
    other.device_add(B, str(tmp_path / "taken"), "slow")
    for kind, code, arguments in (
        (Conflict, "device.not_empty", (str(uuid4()), str(tmp_path / "full"), "slow")),
        (Conflict, "device.not_empty", (str(uuid4()), str(tmp_path / "taken"), "slow")),
        (Conflict, "device.exists", (str(uuid4()), str(tmp_path / "b"), "slow")),
        (Conflict, "device.exists", (str(uuid4()), str(home), "slow")),
        (Invalid, "device.tier", (str(uuid4()), str(tmp_path / "new"), "medium")),
        (Invalid, "device.path", (str(uuid4()), "new", "slow")),
    ):
        with pytest.raises(kind) as refused:
            pool.device_add(*arguments)
        assert refused.value.code == code
        assert refused.value.remedy
    for kind, code, device in ((Conflict, "device.home", HOME), (NotFound, "device.not_found", str(uuid4()))):
        with pytest.raises(kind) as refused:
            pool.device_rm(device)
        assert refused.value.code == code
    assert set(where(pool)) == {HOME, A, B}
    other.close()
    pool.close()


def test_a_device_is_drained_in_the_background(home: Path) -> None:
    pool = Pool.open(Io(), str(home), limits=LIMITS)
    spread(pool)
    before = digests(pool)
    pool.device_rm(A)
    deadline = time.monotonic() + 30
    while A in where(pool):
        assert time.monotonic() < deadline, pool.tier_problem
        time.sleep(0.02)
    assert digests(pool) == before
    pool.close()


@pytest.mark.parametrize("seed", range(3_000_000, 3_000_016))
def test_random_operations_and_crashes_with_devices(seed: int) -> None:
    _run(seed, faults=False)


@pytest.mark.parametrize("seed", range(3_100_000, 3_100_016))
def test_random_operations_and_failing_io_with_devices(seed: int) -> None:
    _run(seed, faults=True)


def _run(seed: int, *, faults: bool) -> TieredWorld:
    world = TieredWorld(seed, faults=faults)
    for _ in range(140):
        world.step()
    world.crash(power=False)
    world.verify()
    assert not world.pool.check()["problems"], world.story()
    world.close()
    return world


def test_groups_do_move_in_that_world() -> None:
    assert sum(_run(seed, faults=False).moved for seed in range(3_200_000, 3_200_004)) > 20
