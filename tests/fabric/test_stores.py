"""Object stores as devices: what may be added, where the keys are, and chance with power cuts."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import digests
from s3_server import KEYS, S3Server, new_prefix
from store_lab import STORE, Far, add, far_io, filled, move, opened, where
from tiered_world import TieredWorld

from innkeeper.fabric.devices import HOME
from innkeeper.fabric.objects import ORPHAN_S
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Conflict, Failed, Invalid, NoSpace, Problem
from innkeeper.system.blobs import Address
from innkeeper.system.clock import SimulatedClock


@pytest.fixture
def far(tmp_path: Path) -> tuple[Pool, Far]:
    stores: dict[str, Far] = {}
    address = Address(f"far://{tmp_path}/store")
    pool = filled(tmp_path / "pool", address, far_io(stores, SimulatedClock(2e9)))
    return pool, stores[address.url]


# -- what may not be added ---------------------------------------------------------------------------------------------


def test_keys_are_in_one_file_and_nowhere_else(tmp_path: Path, s3: S3Server) -> None:
    home = tmp_path / "pool"
    pool = filled(home, s3.address(new_prefix(s3)))
    move(pool, STORE)
    told = json.dumps([pool.device_ls(), pool.pool_show(), pool.metrics()], default=str)
    pool.close()
    assert KEYS.secret_access_key not in told
    assert KEYS.secret_access_key not in (home / "pool.json").read_text()
    path = home / "credentials" / f"{STORE}.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert json.loads(path.read_text())["secret_access_key"] == KEYS.secret_access_key


def test_wrong_keys_change_nothing_and_new_ones_count_at_once(tmp_path: Path, s3: S3Server) -> None:
    address = s3.address(new_prefix(s3))
    wrong = replace(address, credentials=replace(KEYS, secret_access_key="wrong-secret"))
    pool = opened(tmp_path / "pool")
    with pytest.raises(Failed, match="blob.denied"):
        add(pool, wrong)
    assert set(where(pool)) == {HOME}
    pool.close()
    pool = filled(tmp_path / "pool", address)
    before = digests(pool)
    move(pool, STORE)
    with pytest.raises(Failed, match="blob.denied"):
        add(pool, wrong)
    assert digests(pool) == before
    add(pool, address)
    assert digests(pool) == before
    pool.close()


def test_stores_that_cannot_be_devices_are_refused(tmp_path: Path, s3: S3Server) -> None:
    address = s3.address(new_prefix(s3))
    pool = opened(tmp_path / "pool")
    nobody = replace(address, endpoint="http://127.0.0.1:1")
    for wanted, code in (
        (replace(address, url="s3://no-such-bucket/x"), "blob.bucket"),
        (replace(address, url="gopher://x/y"), "blob.url"),
        (nobody, "blob.unreachable"),
    ):
        with pytest.raises(Problem) as refused:
            add(pool, wanted)
        assert refused.value.code == code
        assert refused.value.remedy
        assert set(where(pool)) == {HOME}
    with pytest.raises(Invalid, match="device.tier"):
        pool.device_add(STORE, address.url, "fast", endpoint=address.endpoint)
    add(pool, address)
    with pytest.raises(Conflict, match="device.exists"):
        add(pool, address, str(uuid4()))
    pool.close()


def test_a_copy_of_the_pool_does_not_get_the_store(tmp_path: Path, address: Address) -> None:
    pool = filled(tmp_path / "pool", address)
    move(pool, STORE)
    other = opened(tmp_path / "other")
    other.pool_id = other.devices._pool_id = pool.pool_id
    with pytest.raises(Conflict, match="device.not_empty"):
        add(other, address, str(uuid4()))
    other.close()
    pool.close()


def test_a_store_that_is_another_device_s_is_told(far: tuple[Pool, Far]) -> None:
    pool, store = far
    name = f"{pool.pool_id}/device.json"
    mark = json.loads(store.inner.get(name))
    store.inner.delete(name)
    pool._look_at_stores()
    assert pool.away[STORE].code == "device.missing"
    store.inner.put(name, [json.dumps({**mark, "device": str(uuid4())}).encode()])
    pool.io.clock.sleep(60)
    pool._look_at_stores()
    assert pool.away[STORE].code == "device.foreign"
    assert pool.away[STORE].remedy
    pool.close()


def test_a_store_is_not_drained_where_there_is_no_room(tmp_path: Path, local: Address) -> None:
    pool = filled(tmp_path / "pool", local)
    move(pool, STORE)
    pool.devices.room = lambda device: (1, 1 << 30, 1 << 20)  # type: ignore[method-assign]
    with pytest.raises(NoSpace, match="device.no_room"):
        pool.device_rm(STORE)
    pool.close()


# -- chance ------------------------------------------------------------------------------------------------------------


class FarWorld(TieredWorld):
    """The random world with object stores among the devices."""

    ACTIONS = (*TieredWorld.ACTIONS, ("store_add", 3), ("look", 2))

    def store_add(self) -> None:
        if len(self.pool.devices.remote()) < 2:
            name = self.uuid()
            self.pool.device_add(name, f"file:///stores/{name}", "slow")

    def look(self) -> None:
        self.io.clock.sleep(2 * ORPHAN_S)
        self.pool._look_at_stores()


@pytest.mark.parametrize("seed", range(3_300_000, 3_300_012))
@pytest.mark.parametrize("faults", [False, True], ids=["sound", "failing"])
def test_random_operations_and_crashes_with_stores(seed: int, faults: bool) -> None:
    world = FarWorld(seed, faults=faults)
    for _ in range(140):
        world.step()
    world.crash(power=False)
    world.verify()
    assert not world.pool.check()["problems"], world.story()
    assert world.pool.read_only is None
    world.close()


def test_groups_do_go_far_in_that_world() -> None:
    far = 0
    for seed in range(3_400_000, 3_400_004):
        world = FarWorld(seed, faults=False)
        for _ in range(140):
            world.step()
            far += any(
                row.device == device.id
                for device, _ in world.pool.devices.remote()
                for row in world.pool.store.rows.values()
            )
        world.close()
    assert far > 40
