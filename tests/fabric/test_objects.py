"""Groups in an object store: moved there and back, read in parts, verified, and what stores do wrong."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import DISK, STORAGE, digests, write
from store_lab import STORE, Far, add, far_io, filled, move, objects, opened, where

from innkeeper.fabric.devices import HOME
from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.objects import ORPHAN_S
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.rebuild import rebuild_meta
from innkeeper.model.problems import Corrupt, Failed, Problem, Unavailable
from innkeeper.system.blobs import Address
from innkeeper.system.clock import SimulatedClock
from innkeeper.system.files import Io


def test_groups_go_there_and_come_back(tmp_path: Path, address: Address) -> None:
    pool = filled(tmp_path / "pool", address)
    before = digests(pool)
    move(pool, STORE)
    assert where(pool)[HOME] == 0 and where(pool)[STORE] >= 3
    assert len(objects(pool, address)) == where(pool)[STORE] + 1
    assert list((tmp_path / "pool" / "groups").iterdir()) == []
    assert digests(pool) == before
    assert pool.check()["problems"] == []
    pool.scrub()
    assert pool.damage_ls() == []
    pool.close()
    pool = opened(tmp_path / "pool")
    assert digests(pool) == before
    pool.device_rm(STORE)
    pool.tier()
    assert set(where(pool)) == {HOME}
    assert objects(pool, address) == []
    assert not list((tmp_path / "pool" / "credentials").glob("*"))
    assert digests(pool) == before
    pool.close()


def test_dead_groups_go_and_sparse_ones_shrink_there(tmp_path: Path, address: Address) -> None:
    pool = filled(tmp_path / "pool", address)
    move(pool, STORE)
    first = objects(pool, address)
    write(pool, DISK, {number * BLOCK: b"other" * 13107 for number in range(0, 40)})
    pool.drain()
    after = digests(pool)
    done = pool.sweep()
    assert done["groups_removed"] > 0 and done["freed_bytes"] > 0
    assert len(objects(pool, address)) < len(first)
    assert len(objects(pool, address)) == where(pool)[STORE] + 1
    assert digests(pool) == after
    assert pool.check()["problems"] == []
    pool.close()


def test_policies_reach_what_is_there(tmp_path: Path, address: Address) -> None:
    pool = opened(tmp_path / "pool")
    pool.storage_create(STORAGE, compression="off")
    pool.disk_create(DISK, 64 << 20, STORAGE)
    add(pool, address)
    write(pool, DISK, {number * BLOCK: b"%08d" % number * 8192 for number in range(50)})
    pool.drain()
    pool.writers.leave(HOME)
    move(pool, STORE)
    before, stored = digests(pool), sum(row.size_bytes for row in pool.store.rows.values())
    pool.storage_set(STORAGE, compression="zstd", level=3)
    facts = pool.curate_plan()
    while facts["left_groups"]:
        facts = pool.curate_next()
    assert sum(row.size_bytes for row in pool.store.rows.values()) < stored / 4
    assert len(objects(pool, address)) == where(pool)[STORE] + 1
    assert digests(pool) == before
    pool.close()


def test_meta_is_rebuilt_from_what_is_there(tmp_path: Path, address: Address) -> None:
    pool = filled(tmp_path / "pool", address)
    before = digests(pool)[DISK]
    move(pool, STORE)
    pool.close()
    (tmp_path / "pool" / "meta.db").unlink()
    with pytest.raises(Corrupt, match="meta.lost"):
        opened(tmp_path / "pool")
    assert rebuild_meta(Io(), str(tmp_path / "pool"))["disks"] == 1
    pool = opened(tmp_path / "pool")
    assert digests(pool)[DISK] == before
    pool.close()


def test_cold_groups_go_down_by_themselves_when_the_fast_tier_is_full(tmp_path: Path, local: Address) -> None:
    pool = filled(tmp_path / "pool", local)
    total, free = Io().files.space(str(tmp_path))
    held = sum(row.size_bytes for row in pool.store.rows.values())
    pool.devices.room = lambda device: (-1, 0, 0) if device.remote else (1, held + (1 << 20), 1 << 19)  # type: ignore[method-assign]
    assert pool.tier()["moved"] > 0
    assert where(pool)[STORE] > 0
    assert total >= free
    pool.close()


# -- what is asked of a store ------------------------------------------------------------------------------------------


@pytest.fixture
def far(tmp_path: Path) -> tuple[Pool, Far]:
    stores: dict[str, Far] = {}
    address = Address(f"far://{tmp_path}/store")
    pool = filled(tmp_path / "pool", address, far_io(stores, SimulatedClock(2e9)))
    return pool, stores[address.url]


def test_neighbours_come_in_one_request(far: tuple[Pool, Far]) -> None:
    pool, store = far
    before = digests(pool)
    move(pool, STORE)
    groups = where(pool)[STORE]
    pool.close()
    pool = opened(Path(pool.path), pool.io)
    store.asked.clear()
    assert digests(pool) == before
    held = sum(row.size_bytes for row in pool.store.rows.values())
    # 3 MiB in pieces of 64 KiB: some requests for each group, and not one for each block.
    assert store.asked.count("get") < 3 * groups + held // (256 << 10)
    store.asked.clear()
    assert digests(pool) == before
    assert store.asked == []
    pool.close()


def test_reading_does_not_block_the_event_loop(far: tuple[Pool, Far]) -> None:
    pool, store = far
    move(pool, STORE)
    pool.close()
    pool = opened(Path(pool.path), pool.io)
    pool.attach(STORE, disk_id=DISK, role="reader")
    volume = pool.volume(STORE)
    store.asked.clear()
    assert volume.read_nowait(0, BLOCK) is None
    assert store.asked == []
    data = volume.read_blocking(0, BLOCK)
    store.asked.clear()
    assert volume.read_nowait(0, BLOCK) == data
    assert store.asked == []
    volume.close()
    pool.detach(STORE)
    pool.close()


def test_a_store_that_is_away_fails_reads_and_loses_nothing(far: tuple[Pool, Far]) -> None:
    pool, store = far
    before = digests(pool)
    move(pool, STORE)
    pool.close()
    store.away = True
    pool = opened(Path(pool.path), pool.io)  # nothing waits for the store
    pool.attach(STORE, disk_id=DISK)
    volume = pool.volume(STORE)
    with pytest.raises(Failed, match="disk.read") as refused:
        volume.read_blocking(0, BLOCK)
    assert "does not answer" in str(refused.value.cause)
    volume.stage_write(60 * BLOCK, b"x" * BLOCK)  # what is new does not need it
    pool.sync_blocking(pool.submit())
    volume.close()
    pool.detach(STORE)
    pool._tier_step()
    (facts,) = [each for each in pool.device_ls() if each["id"] == STORE]
    assert "does not answer" in facts["problem"]
    assert pool.pool_show()["upkeep_problem"]["code"] == "blob.unreachable"
    with pytest.raises(Unavailable, match="device.unreachable"):
        pool.scrub()
    assert pool.damage() == []  # nobody can tell
    store.away = False
    pool.io.clock.sleep(60)
    pool._tier_step()
    assert pool.pool_show()["upkeep_problem"] is None
    pool.scrub()
    assert pool.damage() == []
    pool.drain()
    assert digests(pool) != before
    pool.close()


def test_a_move_to_a_store_that_goes_away_has_not_happened(far: tuple[Pool, Far]) -> None:
    pool, store = far
    before, held = digests(pool), where(pool)[HOME]
    store.away = True
    with pytest.raises(Problem) as refused:
        move(pool, STORE)
    assert refused.value.remedy
    assert where(pool)[HOME] == held
    store.away = False
    move(pool, STORE)
    assert where(pool)[STORE] == held
    assert digests(pool) == before
    pool.close()


def test_what_no_row_names_goes_after_a_day(far: tuple[Pool, Far]) -> None:
    pool, store = far
    move(pool, STORE)
    named = [found.name for found in store.inner.ls(f"{pool.pool_id}/")]
    number = min(pool.store.rows)
    orphan, foreign = f"{pool.pool_id}/{number:08x}.0009.0123456789ab", f"{uuid4()}/{number:08x}.0009.0123456789ab"
    store.inner.put(orphan, [b"of an upload that was cut short"])
    store.inner.put(foreign, [b"of another pool"])
    clock = pool.io.clock
    assert isinstance(clock, SimulatedClock)
    pool._look_at_stores()
    young = Io().clock.now() + ORPHAN_S > clock.now()
    assert (orphan in [found.name for found in store.inner.ls(f"{pool.pool_id}/")]) is young
    clock.advance(3 * ORPHAN_S)
    pool._look_at_stores()
    left = [found.name for found in store.inner.ls(f"{pool.pool_id}/")]
    assert (orphan in left) is (Io().clock.now() + ORPHAN_S > clock.now())
    assert set(named) <= set(left)
    assert store.inner.size(foreign) > 0
    pool.close()


def test_a_group_younger_than_meta_stops_all_writing(far: tuple[Pool, Far]) -> None:
    pool, store = far
    store.inner.put(f"{pool.pool_id}/00ffffff.0001.0123456789ab", [b"of a meta that is newer than ours"])
    pool._look_at_stores()
    assert "rolled back" in str(pool.read_only)
    assert store.inner.size(f"{pool.pool_id}/00ffffff.0001.0123456789ab") > 0
    pool.close()


# -- damage ------------------------------------------------------------------------------------------------------------


def damage(store: Far, name: str, change: bytes | None) -> None:
    """Put other bytes in the place of an object's, or cut it off."""
    data = bytearray(store.inner.get(name))
    store.inner.delete(name)
    store.inner.put(
        name, [data[: len(data) // 3] if change is None else data[:9000] + change + data[9000 + len(change) :]]
    )


@pytest.mark.parametrize("change", [None, b"\xff" * 100], ids=["cut off", "changed"])
def test_what_was_damaged_there_is_found_and_named(far: tuple[Pool, Far], change: bytes | None) -> None:
    pool, store = far
    move(pool, STORE)
    number = min(pool.store.rows)
    name = pool.store.path(number).removeprefix(pool.devices.all[STORE].path + "/")
    damage(store, name, change)
    pool.close()
    pool = opened(Path(pool.path), pool.io)
    with pytest.raises(Problem):
        digests(pool)
    pool.detach(pool.attachment_ls()[0]["id"])
    assert pool.check()["problems"]
    pool.scrub()
    found = pool.damage()
    assert found and all(name in each.path for each in found)
    pool.close()


def test_an_object_that_is_gone_is_found_and_named(far: tuple[Pool, Far]) -> None:
    pool, store = far
    move(pool, STORE)
    number = min(pool.store.rows)
    store.inner.delete(pool.store.path(number).removeprefix(pool.devices.all[STORE].path + "/"))
    pool.close()
    pool = opened(Path(pool.path), pool.io)
    with pytest.raises(Failed, match="disk.read"):
        digests(pool)
    pool.detach(pool.attachment_ls()[0]["id"])
    pool.scrub()
    assert [each.group for each in pool.damage()] == [number]
    pool.close()
