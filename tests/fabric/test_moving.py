"""A disk moves between pools with its snapshots while it is written; a crash leaves it whole in one of the two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from uuid import UUID

import pytest

from innkeeper.fabric.moving import Moves, settle_moves
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.fabric.routing import call
from innkeeper.fabric.space import Limits
from innkeeper.model.problems import Conflict, NoSpace, NotFound, Problem, Unavailable
from innkeeper.system.files import Io
from innkeeper.system.simulation import CRASH, EIO, SimulatedCrash, SimulatedFiles, simulated_io

LIMITS = Limits(log_bytes=2 << 20, segment_bytes=256 << 10, group_bytes=384 << 10, headroom_bytes=0)
PAGE, BLOCK = 4096, 65536
SIZE = (40 * BLOCK) + 512


def name(number: int) -> str:
    return str(UUID(int=number, version=4))


STORAGE, DISK, WRITER, FIRST, SECOND, MORE, QUICK, READER, HOLD = (name(number) for number in range(1, 10))
_GHOSTS: list[Pools] = []


@pytest.fixture(autouse=True)
def _no_ghosts() -> Iterator[None]:
    """Pools of processes that have ended give their handles back now, not when memory is tidied up."""
    yield
    release_ghosts()


def release_ghosts() -> None:
    while _GHOSTS:
        for pool in _GHOSTS.pop().all():
            with suppress(Problem):
                pool._release()


class World:
    """Two pools on a simulated machine, a disk in the first with two snapshots, and what each must read as."""

    def __init__(self, seed: int = 3) -> None:
        self.io, self.files = simulated_io(seed)
        self.content: dict[int, bytes] = {}
        self.snapshots: dict[str, dict[int, bytes]] = {}
        self.value = 0
        self.open()
        self.pools.pool_create(MORE, "/more")
        self.home.storage_create(STORAGE)
        self.more.storage_create(QUICK, compression="zstd", level=3)
        self.home.disk_create(DISK, SIZE, STORAGE)
        self.home.attach(WRITER, disk_id=DISK, uid=7)
        for snapshot in (FIRST, SECOND):
            for block in (0, 3, 17, 39):
                self.write(block * BLOCK // PAGE + len(self.snapshots))
            self.home.drain()
            self.write(5)
            self.snapshot(snapshot)
        self.write(SIZE // PAGE)  # the last, an eighth of a page

    def open(self) -> None:
        release_ghosts()
        io: Io = replace(self.io, files=self.files.process())
        default = Pool.open(io, "/home", limits=LIMITS, background=False)
        self.pools = Pools(default, "/pools.json", limits=LIMITS, background=False)
        _GHOSTS.append(self.pools)
        settle_moves(self.pools)
        self.moves = Moves(self.pools)

    @property
    def home(self) -> Pool:
        return self.pools.default

    @property
    def more(self) -> Pool:
        return self.pools.get(MORE)

    def write(self, page: int) -> None:
        """Write a page with a value of its own, and flush."""
        self.value += 1
        data = self.value.to_bytes(4, "big") * (PAGE // 4)
        data = data[: SIZE - page * PAGE]
        self.writing: int | None = page
        pool, volume = self.pools.volume(WRITER)
        volume.stage_write(page * PAGE, data)
        pool.sync_blocking(pool.submit())
        self.content[page] = data
        self.writing = None

    def snapshot(self, snapshot: str) -> None:
        call(self.pools, "snapshot_create", {"snapshots": {snapshot: DISK}})
        self.snapshots[snapshot] = dict(self.content)

    def move(self, *, busy: bool = True) -> None:
        """To the other pool, with writes between the steps."""
        if self.moves.begin(DISK, QUICK)["state"] == "moved":
            return
        for number in range(60):
            if self.moves.step(DISK)["state"] == "ready":
                break
            if busy and number < 4:
                self.write(8 * number)
        self.write(9)
        assert self.moves.switch(DISK) == {"state": "moved"}

    def check(self) -> Pool:
        """Everything reads as it must, where the disk is."""
        pool = self.pools.owner("disk", DISK)
        facts = call(self.pools, "disk_show", {"disk_id": DISK})
        assert facts["attachments"] == [WRITER]
        assert {each["id"] for each in call(self.pools, "disk_ls", {})} == {DISK}
        _, volume = self.pools.volume(WRITER)
        assert volume.attachment.uid == 7
        self._same(volume.read_blocking(0, SIZE), self.content, "the disk")
        for snapshot, content in self.snapshots.items():
            assert call(self.pools, "snapshot_show", {"snapshot_id": snapshot})["disk_id"] == DISK
            pool.attach(READER, snapshot_id=snapshot, role="reader")
            self._same(pool.volume(READER).read_blocking(0, SIZE), content, f"snapshot {snapshot}")
            pool.detach(READER)
        return pool

    def _same(self, found: bytes, content: dict[int, bytes], what: str) -> None:
        for page in range(-(-SIZE // PAGE)):
            wanted = content.get(page, bytes(PAGE))[: SIZE - page * PAGE]
            assert found[page * PAGE : page * PAGE + len(wanted)] == wanted, f"page {page} of {what}"

    def check_tidy(self) -> None:
        """The first pool has nothing of the disk any more."""
        assert (self.home.disk_ls(), self.home.snapshot_ls(), self.home.attachment_ls()) == ([], [], [])
        assert self.home.move_ls() == self.more.move_ls() == []
        assert {each["id"] for each in self.more.snapshot_ls()} == set(self.snapshots)


def test_a_disk_moves_with_its_snapshots_while_it_is_written() -> None:
    world = World()
    world.move()
    assert world.check() is world.more
    world.check_tidy()
    tree = {each["id"]: each["parent_id"] for each in world.more.snapshot_ls()}
    assert tree == {FIRST: None, SECOND: FIRST}
    times = [each["created_at"] for each in world.more.snapshot_ls()]
    assert times == sorted(times)
    shown = world.more.disk_show(DISK)
    assert (shown["parent_id"], shown["storage_id"], shown["epoch"]) == (SECOND, QUICK, 1)
    for pool in (world.home, world.more):
        pool.drain()
        pool.sweep()
        assert pool.check()["problems"] == []
    world.open()
    assert world.check() is world.more
    world.write(100)
    assert world.moves.begin(DISK, QUICK) == {"state": "moved"}
    world.pools.close()


def test_it_comes_back_and_within_a_pool_only_the_storage_changes() -> None:
    world = World()
    world.move()
    world.moves.begin(DISK, STORAGE)
    while world.moves.step(DISK)["state"] != "ready":
        pass
    world.moves.switch(DISK)
    assert world.check() is world.home
    assert world.more.disk_ls() == world.more.snapshot_ls() == []
    world.more.drain()
    world.more.sweep()
    other = name(50)
    world.home.storage_create(other)
    assert world.moves.begin(DISK, other) == {"state": "moved"}
    assert world.home.disk_show(DISK)["storage_id"] == other


def test_a_cancelled_move_leaves_the_disk_where_it_was() -> None:
    world = World()
    world.moves.begin(DISK, QUICK)
    for _ in range(4):
        world.moves.step(DISK)
    assert world.more.move_ls()[0]["role"] == "arriving"
    assert call(world.pools, "disk_show", {"disk_id": DISK})["pool_id"] == str(world.home.pool_id)
    world.moves.cancel(DISK)
    world.moves.cancel(DISK)
    assert world.check() is world.home
    assert world.more.disk_ls() == world.more.snapshot_ls() == world.more.move_ls() == []
    assert {each["id"] for each in world.home.snapshot_ls()} == {FIRST, SECOND}
    with pytest.raises(NotFound):
        world.moves.step(DISK)
    world.move()
    world.check()


def test_what_happens_to_snapshots_and_size_meanwhile_comes_along() -> None:
    world = World()
    world.moves.begin(DISK, QUICK)
    for _ in range(3):
        world.moves.step(DISK)
    third = name(60)
    world.write(77)
    world.snapshot(third)
    while world.moves.step(DISK)["state"] != "ready":
        pass
    world.home.snapshot_rm(FIRST)
    del world.snapshots[FIRST]
    world.write(78)
    world.moves.switch(DISK)
    world.check()
    assert {each["id"]: each["parent_id"] for each in world.more.snapshot_ls()} == {SECOND: None, third: SECOND}


@pytest.mark.parametrize("victim", ["base", "goal"])
def test_the_copy_begins_anew_where_its_ground_is_removed(victim: str) -> None:
    world = World()
    world.moves.begin(DISK, QUICK)
    world.moves.step(DISK)
    if victim == "goal":
        world.more.arrive_note(DISK, goal=SECOND)
        gone = SECOND
    else:
        gone = world.more.move_ls()[0]["base"]
        assert gone == FIRST
    world.home.snapshot_rm(gone)
    del world.snapshots[gone]
    world.write(3)
    world.move()
    assert world.check() is world.more
    world.check_tidy()


def test_the_switch_waits_for_what_uses_a_snapshot_and_for_late_writes() -> None:
    world = World()
    world.moves.begin(DISK, QUICK)
    with pytest.raises(Unavailable):
        world.moves.switch(DISK)
    while world.moves.step(DISK)["state"] != "ready":
        pass
    world.home.hold(HOLD, SECOND)
    with pytest.raises(Conflict):
        world.moves.switch(DISK)
    world.home.release(HOLD)
    world.snapshot(name(61))
    with pytest.raises(Unavailable):
        world.moves.switch(DISK)
    while world.moves.step(DISK)["state"] != "ready":
        pass
    world.moves.switch(DISK)
    world.check()
    world.check_tidy()


def test_no_room_there_leaves_the_disk_here() -> None:
    world = World()
    world.more.storage_set(QUICK, quota_bytes=3 * BLOCK)
    with pytest.raises(NoSpace):
        world.move()
    world.moves.cancel(DISK)
    assert world.check() is world.home
    world.more.storage_set(QUICK, quota_bytes=0)
    world.move()
    assert world.check() is world.more


def test_while_the_new_pool_is_away_a_disk_that_was_switched_is_not_taken_from_the_old() -> None:
    world = World()
    world.home.leave_finish = _fails  # type: ignore[method-assign]
    world.move()
    assert world.check() is world.more
    assert len(world.home.disk_ls()) == 1, "what is left goes later"
    release_ghosts()
    world.files.rename("/more/pool.json", "/more/away")
    world.open()
    for operation in ("disk_show", "disk_rm"):
        with pytest.raises(Unavailable, match="not available"):
            call(world.pools, operation, {"disk_id": DISK})
    with pytest.raises(Unavailable):
        world.pools.volume(WRITER)
    assert call(world.pools, "disk_ls", {}) == []
    world.files.rename("/more/away", "/more/pool.json")
    world.pools.pool_open(MORE)
    settle_moves(world.pools)
    assert world.check() is world.more
    world.check_tidy()


def _fails(_disk_id: str) -> None:
    raise Unavailable("test.later", "later")


def calls_of_a_move() -> tuple[int, int]:
    """The file system's calls before and after a whole move."""
    world = World()
    before = world.files.calls
    world.move()
    return before, world.files.calls


def _cut(files: SimulatedFiles, *, power: bool) -> None:
    if power:
        files.cut_power()
    else:
        files.end_process()


@pytest.mark.parametrize("power", [False, True])
def test_a_crash_at_any_call_loses_nothing(power: bool) -> None:
    before, after = calls_of_a_move()
    places = {"home": 0, "more": 0}
    for number in range(before + 1, after + 1, 2):
        world = World()
        world.files.faults[number] = CRASH
        with suppress(SimulatedCrash, Problem):  # SQLite tells of it in its own words
            world.move()
        assert world.files.dead
        unsure = world.writing
        _cut(world.files, power=power)
        world.open()
        if unsure is not None:
            _adopt(world, unsure)
        places["home" if world.check() is world.home else "more"] += 1
        world.move()
        assert world.check() is world.more
        world.check_tidy()
    assert min(places.values()) > 0, f"crashes on both sides of the switch: {places}"


def _adopt(world: World, page: int) -> None:
    """The write that was not acknowledged has happened or not."""
    _, volume = world.pools.volume(WRITER)
    found = volume.read_blocking(page * PAGE, min(PAGE, SIZE - page * PAGE))
    new = world.value.to_bytes(4, "big") * (PAGE // 4)
    assert found in (new[: len(found)], world.content.get(page, bytes(PAGE))[: len(found)])
    world.content[page] = found


def test_an_error_at_any_call_leaves_the_disk_in_one_pool() -> None:
    before, after = calls_of_a_move()
    for number in range(before + 1, after + 1, 5):
        world = World()
        world.files.faults[number] = EIO
        with suppress(Problem, OSError):
            world.move()
        release_ghosts()
        world.files.faults.clear()
        world.open()
        pool = world.pools.owner("disk", DISK)
        assert [each["id"] for each in call(world.pools, "disk_ls", {})] == [DISK]
        assert [each["id"] for each in call(world.pools, "attachment_ls", {})] == [WRITER]
        pool.attach(READER, disk_id=DISK, role="reader")
        found = pool.volume(READER).read_blocking(0, SIZE)
        if world.writing is not None:
            world.content[world.writing] = found[world.writing * PAGE :][:PAGE]
        world._same(found, world.content, "the disk")
