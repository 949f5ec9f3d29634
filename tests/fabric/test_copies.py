"""Fast copies of hot groups that stay on slow devices: made, read, verified, found again, and dropped first."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import DISK, digests, write
from store_lab import STORE, Far, far_io, filled, move, opened, where
from tiered_world import TieredWorld

from innkeeper.fabric.devices import DRAINING, FAST, HOME, ONLINE, SLOW
from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.tiering import TOUCH_S, DeviceFacts, GroupFacts, copy_budget, plan_copies, wants_copy
from innkeeper.system.blobs import Address
from innkeeper.system.clock import SimulatedClock

MIB = 1 << 20


# -- what is to be copied ----------------------------------------------------------------------------------------------


def group(number: int, *, at: float = 0.0, hot: bool = True, bound: str = "", size: int = 10) -> GroupFacts:
    return GroupFacts(number, "s", size, at, hot, bound)


@pytest.mark.parametrize(
    ("facts", "device", "wanted"),
    [
        (group(1), DeviceFacts("s", SLOW, ONLINE, 100, 50, remote=True), True),
        (group(1, hot=False), DeviceFacts("s", SLOW, ONLINE, 100, 50, remote=True), False),
        (group(1, bound=FAST), DeviceFacts("s", SLOW, ONLINE, 100, 50, remote=True), False),  # it moves
        (group(1, bound=SLOW), DeviceFacts("s", SLOW, ONLINE, 100, 50, remote=True), True),
        (group(1), DeviceFacts("s", SLOW, ONLINE, 100, 50), False),  # it moves
        (group(1, bound=SLOW), DeviceFacts("s", SLOW, ONLINE, 100, 50), True),
        (group(1, bound=SLOW), DeviceFacts("s", FAST, ONLINE, 100, 50), False),
        (group(1), DeviceFacts("s", SLOW, DRAINING, 100, 50, remote=True), False),
    ],
)
def test_what_is_hot_where_it_stays_wants_a_copy(facts: GroupFacts, device: DeviceFacts, wanted: bool) -> None:
    assert wants_copy(facts, device) is wanted


def test_the_budget_is_a_share_of_the_fast_tier_and_shrinks_as_that_fills() -> None:
    def budget(free: int, copied: int = 0) -> int:
        fast = DeviceFacts("a", FAST, ONLINE, 1000, free, 1)
        same, slow = DeviceFacts("b", FAST, ONLINE, 1000, free, 1), DeviceFacts("s", SLOW, ONLINE, 5000, 5000, 2)
        return copy_budget([fast, same, slow], copied)

    assert budget(1000) == 200
    assert budget(500) == 200
    assert budget(400) == 150
    assert budget(300, copied=50) == 100
    assert budget(100) == 0


def test_the_coldest_copies_go_and_hot_ones_are_not_exchanged_for_others() -> None:
    held = [group(1, at=1, hot=False), group(2, at=2, hot=False), group(3, at=3)]
    assert plan_copies([group(3, at=3)], held, 30) == ([], [])
    assert plan_copies([group(3, at=3), group(4, at=9)], held, 30) == ([1], [4])
    assert plan_copies([group(3, at=3), group(4, at=8), group(5, at=9)], held, 30) == ([1, 2], [5, 4])
    assert plan_copies([group(3, at=3)], held, 15) == ([1, 2], [])
    assert plan_copies([group(3, at=3), group(4, at=9)], [group(3, at=3)], 10) == ([], [])
    assert plan_copies([group(3, at=3)], held, 0) == ([1, 2, 3], [])
    assert plan_copies([group(6, size=50)], [], 30) == ([], [])


# -- copies at work ----------------------------------------------------------------------------------------------------


@pytest.fixture
def far(tmp_path: Path) -> tuple[Pool, Far]:
    """A pool with all groups in a store."""
    stores: dict[str, Far] = {}
    address = Address(f"far://{tmp_path}/store")
    pool = filled(tmp_path / "pool", address, far_io(stores, SimulatedClock(2e9)))
    move(pool, STORE)
    return reopened(pool), stores[address.url]


def reopened(pool: Pool) -> Pool:
    """The pool after a restart: nothing of it is in memory."""
    pool.close()
    return opened(Path(pool.path), pool.io)


def read(pool: Pool, *, times: int, long: bool = False) -> None:
    """Read the disk so often, each time in a span of its own, with nothing in memory before."""
    for _ in range(times):
        pool.store.content.resize(1)
        for block in range(50):
            entry_read(pool, block, long)
        pool.io.clock.sleep(TOUCH_S)
        pool._sample()


def entry_read(pool: Pool, block: int, long: bool) -> None:
    view = pool.catalog.disk(DISK).open.view
    if long:
        for number in {row.number for row in pool.store.rows.values()}:
            pool.store.scanned.add(number)
    else:
        pool.reader.pages(view, block * 16, 16)


def copied(pool: Pool) -> dict[str, int]:
    (home,) = [each for each in pool.device_ls() if each["id"] == HOME]
    return {"copies": home["copies"], "copy_bytes": home["copy_bytes"]}


def hot(pool: Pool) -> None:
    read(pool, times=3)
    pool.tier()
    assert copied(pool)["copies"] == where(pool)[STORE] > 0


def test_what_is_hot_in_a_store_is_read_from_a_copy(far: tuple[Pool, Far]) -> None:
    pool, store = far
    before, used = digests(pool), pool.used_bytes()
    read(pool, times=2)
    pool.tier()
    assert copied(pool)["copies"] == 0
    hot(pool)
    assert where(pool)[HOME] == 0
    assert pool.used_bytes() == used  # a copy is nobody's data
    assert pool.meters.copies_made == where(pool)[STORE]
    pool = reopened(pool)  # and is found again
    assert copied(pool)["copies"] == where(pool)[STORE]
    store.asked.clear()
    store.away = True
    assert digests(pool) == before
    assert store.asked == []
    pool.close()


def test_a_scan_makes_no_copies(far: tuple[Pool, Far]) -> None:
    pool, _ = far
    read(pool, times=9, long=True)
    pool.tier()
    assert copied(pool)["copies"] == 0
    pool.close()


def test_a_damaged_copy_is_dropped_and_the_owner_read(far: tuple[Pool, Far]) -> None:
    pool, store = far
    before = digests(pool)
    hot(pool)
    pool = reopened(pool)
    for path in (Path(pool.path) / "copies").iterdir():
        with path.open("r+b") as file:
            file.seek(20_000)
            file.write(b"\xff" * 30_000)
    assert digests(pool) == before
    assert copied(pool)["copies"] < where(pool)[STORE]
    assert pool.damage() == []
    pool.close()
    assert store.asked.count("get") > 0


@pytest.mark.parametrize("cut", [0, 100, 9000])
def test_a_copy_that_is_cut_off_is_no_copy(far: tuple[Pool, Far], cut: int) -> None:
    pool, _ = far
    before = digests(pool)
    hot(pool)
    pool.close()
    for path in (Path(pool.path) / "copies").iterdir():
        path.write_bytes(path.read_bytes()[:cut])
    pool = opened(Path(pool.path), pool.io)
    assert copied(pool)["copies"] == 0
    assert list((Path(pool.path) / "copies").iterdir()) == []
    assert digests(pool) == before
    pool.close()


def test_damage_of_a_copy_goes_no_further(far: tuple[Pool, Far]) -> None:
    """Moved, compacted, repacked or repaired is what the owner has."""
    pool, _ = far
    before = digests(pool)
    hot(pool)
    for number in sorted(pool.store.rows):
        pool.store.table(number)
    for path in (Path(pool.path) / "copies").iterdir():
        with path.open("r+b") as file:
            file.seek(5_000)
            file.write(b"\xff" * 3_000)
    pool.device_rm(STORE)
    pool.tier()
    assert set(where(pool)) == {HOME}
    assert copied(pool)["copies"] == 0
    assert pool.check()["problems"] == []
    assert digests(pool) == before
    pool.close()


def test_damage_in_the_store_is_repaired_from_a_copy(far: tuple[Pool, Far]) -> None:
    pool, store = far
    before = digests(pool)
    hot(pool)
    pool.store.content.resize(1)
    number = min(pool.store.rows)
    name = pool.store.path(number).removeprefix(pool.devices.all[STORE].path + "/")
    data = bytearray(store.inner.get(name))
    data[70_000:70_100] = bytes(100)
    store.inner.delete(name)
    store.inner.put(name, [data])
    pool.scrub()
    assert pool.repaired > 0
    assert pool.damage() == []
    pool = reopened(pool)
    assert digests(pool) == before
    assert pool.check()["problems"] == []
    pool.close()


def test_copies_go_before_anything_else_when_the_fast_tier_fills(far: tuple[Pool, Far]) -> None:
    pool, _ = far
    hot(pool)
    room: list[int] = []
    pool.on_room = lambda: room.append(1)
    pool.devices.room = lambda device: (-1, 0, 0) if device.remote else (1, 100 * MIB, 10 * MIB)  # type: ignore[method-assign]
    pool.tier()
    assert copied(pool)["copies"] == 0
    assert room
    pool.close()


def test_a_group_that_changes_loses_its_copy(far: tuple[Pool, Far]) -> None:
    pool, _ = far
    hot(pool)
    count = copied(pool)["copies"]
    write(pool, DISK, {number * BLOCK: b"other" * 13107 for number in range(40)})
    pool.drain()
    after = digests(pool)
    pool.sweep()
    assert copied(pool)["copies"] < count
    assert digests(pool) == after
    pool.close()


def test_what_is_pinned_to_a_slow_directory_is_copied_and_stays(tmp_path: Path) -> None:
    pool = filled(tmp_path / "pool", Address(f"file://{tmp_path}/store"), far_io({}, SimulatedClock(2e9)))
    slow = str(uuid4())
    pool.device_add(slow, str(tmp_path / "slow"), "slow")
    pool.disk_set(DISK, tier="slow")
    pool.curate_plan()
    volumes = {slow: 2, HOME: 1}
    pool.devices.room = lambda device: (volumes.get(device.id, -1), 1 << 34, 1 << 33)  # type: ignore[method-assign]
    pool.tier()
    assert where(pool)[slow] >= 3
    before = digests(pool)
    pool = reopened(pool)
    pool.devices.room = lambda device: (volumes.get(device.id, -1), 1 << 34, 1 << 33)  # type: ignore[method-assign]
    read(pool, times=3)
    pool.tier()
    assert copied(pool)["copies"] == where(pool)[slow] >= 3
    assert digests(pool) == before
    pool.close()


# -- chance ------------------------------------------------------------------------------------------------------------


class CopyingWorld(TieredWorld):
    """The random world with stores, and copies of whatever chance wants; ``copied`` counts them."""

    copied = 0
    ACTIONS = (*TieredWorld.ACTIONS, ("store_add", 3), ("copy", 10), ("rot", 3))

    def store_add(self) -> None:
        if not self.pool.devices.remote():
            name = self.uuid()
            self.pool.device_add(name, f"file:///stores/{name}", "slow")

    def copy(self) -> None:
        far = [row.number for row in self.pool.store.rows.values() if row.device != HOME]
        self.pool._to_copy = self.random.sample(far, min(2, len(far)))
        while self.pool._to_copy:
            self.pool._copy_next()
            self.copied += 1

    def rot(self) -> None:
        """Change bytes of a copy behind everybody's back."""
        copies = [copy for copy in self.pool.copies.held().values() if copy.path in self.files.paths()]
        if copies:
            copy = self.random.choice(copies)
            self.files.damage(copy.path, self.random.randrange(max(1, copy.size_bytes - 600)), bytes(600))


@pytest.mark.parametrize("seed", range(3_500_000, 3_500_010))
@pytest.mark.parametrize("faults", [False, True], ids=["sound", "failing"])
def test_random_operations_and_crashes_with_copies(seed: int, faults: bool) -> None:
    world = CopyingWorld(seed, faults=faults)
    for _ in range(140):
        world.step()
    world.crash(power=False)
    world.verify()
    assert not world.pool.check()["problems"], world.story()
    world.close()


def test_copies_are_made_in_that_world() -> None:
    made = 0
    for seed in range(3_600_000, 3_600_003):
        world = CopyingWorld(seed, faults=False)
        for _ in range(140):
            world.step()
        made += world.copied
        world.close()
    assert made > 10
