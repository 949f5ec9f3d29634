"""A small pool with a fixed past, and a model that says what may be read of it after each operation.

Of each page the model knows the values it may have while the kernel lives (one, unless a request failed) and those it
may have after a power cut. ``Model.wrong_with`` compares a pool with it. What can be done to it is in
``operations``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from uuid import UUID

from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.fabric.tiering import Move
from innkeeper.model.problems import Problem
from innkeeper.system.clock import SeededRandomness, SimulatedClock, SimulatedScheduler
from innkeeper.system.files import Io
from innkeeper.system.simulation import SimulatedFiles

PAGE = 4096
BLOCK_PAGES = 16
ZERO = bytes(PAGE)
SIZE = 24 * 65536
LIMITS = Limits(log_bytes=768 << 10, segment_bytes=128 << 10, group_bytes=192 << 10, headroom_bytes=0)
POOL = "/pool"
SENTINELS = (63, 270, 383)
"""Pages that nothing writes."""


def name(number: int) -> str:
    return str(UUID(int=number, version=4))


STORAGE, OTHER_STORAGE, DISK, SECOND, CLONE, FRESH = (name(number) for number in range(1, 7))
OLD, NEW, NEW_SECOND, HELD, DEVICE, ANOTHER = (name(number) for number in range(11, 17))


def value(number: int) -> bytes:
    """A page's content; some compress, some do not, none are equal."""
    seed = number.to_bytes(8, "little")
    return seed * (PAGE // 8) if number % 3 else SeededRandomness(number).token(PAGE)


Values = frozenset[bytes]
NOTHING: tuple[Values, Values] = (frozenset((ZERO,)), frozenset((ZERO,)))


@dataclass
class Content:
    """``pages``: (values now, values after a power cut) of those that ever had another than zeros."""

    size: int
    pages: dict[int, tuple[Values, Values]] = field(default_factory=dict)

    def put(self, number: int, data: bytes) -> None:
        now = frozenset((data,))
        self.pages[number] = now, self.pages.get(number, NOTHING)[1] | now

    def now(self, number: int) -> bytes:
        (only,) = self.pages.get(number, NOTHING)[0]
        return only

    def flushed(self) -> None:
        self.pages = {number: (now, now) for number, (now, _) in self.pages.items()}

    def frozen(self) -> Content:
        """As it is now, for ever."""
        result = Content(self.size, dict(self.pages))
        result.flushed()
        return result

    def cut(self, size: int) -> None:
        for number in [each for each in self.pages if (each + 1) * PAGE > size]:
            edge = max(0, size - number * PAGE)
            self.put(number, self.now(number)[:edge].ljust(PAGE, b"\0"))
        self.size = size


@dataclass
class Model:
    """What a pool may be like."""

    disks: dict[str, Content] = field(default_factory=dict)
    snapshots: dict[str, Content] = field(default_factory=dict)
    storages: dict[str, str] = field(default_factory=dict)
    """Compressions."""

    def copy(self) -> Model:
        return Model(
            {each: Content(disk.size, dict(disk.pages)) for each, disk in self.disks.items()},
            dict(self.snapshots),
            dict(self.storages),
        )

    def flush(self) -> None:
        for disk in self.disks.values():
            disk.flushed()

    def or_else(self, after: Model) -> Model:
        """After a request that failed: each page as it was, or as it was to be."""
        result = after.copy()
        for each, disk in result.disks.items():
            before = self.disks[each]
            for number, (now, safe) in disk.pages.items():
                was = before.pages.get(number, NOTHING)
                disk.pages[number] = was[0] | now, was[1] | safe
        return result

    def observed(self, pool: Pool) -> None:
        """What was read is what is there now."""
        for each, disk in self.disks.items():
            view = pool.catalog.disk(each).open.view
            for number in disk.pages:
                disk.pages[number] = frozenset((pool.reader.page(view, number),)), disk.pages[number][1]

    def wrong_with(self, pool: Pool, *, power: bool) -> str | None:
        """How the pool differs from what it may be, or None. ``power``: it has been cut."""
        catalog = pool.catalog
        if set(catalog.disks) != set(self.disks):
            return f"disks {sorted(catalog.disks)}, not {sorted(self.disks)}"
        if set(catalog.snapshots) != set(self.snapshots):
            return f"snapshots {sorted(catalog.snapshots)}, not {sorted(self.snapshots)}"
        storages = {each: storage.policy.compression for each, storage in catalog.storages.items()}
        if storages != self.storages:
            return f"storages {storages}, not {self.storages}"
        for each, disk in self.disks.items():
            known = catalog.disk(each)
            wrong = _differs(pool, known.open.view, known.size_bytes, disk, power)
            if wrong:
                return f"disk {each}: {wrong}"
        for each, content in self.snapshots.items():
            snapshot = catalog.snapshot(each)
            wrong = _differs(pool, snapshot.frozen.view, snapshot.size_bytes, content, power)
            if wrong:
                return f"snapshot {each}: {wrong}"
        return None


def _differs(pool: Pool, view: object, size: int, content: Content, power: bool) -> str | None:
    if size != content.size:
        return f"{size} bytes, not {content.size}"
    for number in (*content.pages, *SENTINELS):
        allowed = content.pages.get(number, NOTHING)[power]
        if number * PAGE < size and pool.reader.page(view, number) not in allowed:  # type: ignore[arg-type]
            return f"page {number} has none of the {len(allowed)} values that it may have"
    return None


class Stage:
    """A pool on a simulated machine, with the past that ``_begin`` gives it."""

    def __init__(self, files: SimulatedFiles, model: Model, *, turn: int = 0) -> None:
        self.files = files
        self.model = model
        self.clock = SimulatedClock()
        self.turn = turn
        self.value = 1000
        self.pool: Pool | None = None

    @property
    def open_pool(self) -> Pool:
        assert self.pool is not None
        return self.pool

    def open(self) -> Pool:
        self.turn += 1
        io = Io(self.files.process(), self.clock, SeededRandomness(self.turn), SimulatedScheduler())
        self.pool = Pool.open(io, POOL, limits=LIMITS, background=False)
        return self.pool

    def end(self, *, power: bool) -> None:
        """The process ends, or the power is cut."""
        if power:
            self.files.cut_power()
        else:
            self.files.end_process()
        if self.pool is not None:
            with suppress(Problem):
                self.pool._release()
            self.pool = None

    def fresh_value(self) -> bytes:
        self.value += 1
        return value(self.value)

    def writer(self, disk_id: str) -> str:
        return next(each.id for each in self.open_pool.catalog.attachments.values() if each.disk_id == disk_id)

    def attach_anew(self, disk_id: str) -> str:
        pool = self.open_pool
        for each in [each.id for each in pool.catalog.attachments.values() if each.disk_id == disk_id]:
            pool.detach(each)
        self.value += 1
        attachment = name(1_000_000 + self.turn * 100_000 + self.value)
        pool.attach(attachment, disk_id=disk_id)
        return attachment

    def detached(self, disk_id: str, act: Callable[[], object]) -> None:
        self.open_pool.detach(self.writer(disk_id))
        act()
        self.attach_anew(disk_id)

    def write(self, model: Model, disk_id: str, pages: dict[int, bytes]) -> None:
        """Stage runs of pages as single requests."""
        volume = self.open_pool.volume(self.writer(disk_id))
        for number, data in sorted(pages.items()):
            volume.stage_write(number * PAGE, data)
            model.disks[disk_id].put(number, data)


def _begin(stage: Stage) -> None:
    """Two disks with drained, logged and flushed data, a snapshot under each other, a second device with a group."""
    pool, model = stage.open(), stage.model
    for storage, compression in ((STORAGE, "lz4"), (OTHER_STORAGE, "off")):
        pool.storage_create(storage, compression=compression)
        model.storages[storage] = compression
    for disk_id, storage in ((DISK, STORAGE), (SECOND, OTHER_STORAGE)):
        pool.disk_create(disk_id, SIZE, storage)
        model.disks[disk_id] = Content(SIZE)
        stage.attach_anew(disk_id)
    for _ in range(4):  # all but the last ones are dead afterwards
        stage.write(model, DISK, {number: stage.fresh_value() for number in range(128, 192)})
        pool.submit()
        pool.drain()
    stage.write(model, DISK, {number: stage.fresh_value() for number in (*range(32), 40, 41, 100, 200)})
    stage.write(model, SECOND, {number: stage.fresh_value() for number in (*range(16), 50)})
    pool.submit()
    pool.drain()
    pool.device_add(DEVICE, "/devices/one", "fast")
    pool._moves = [Move(min(pool.store.rows), DEVICE)]
    pool.writers.abandon()
    pool._move_next()
    stage.write(model, DISK, {number: stage.fresh_value() for number in (3, 40, 101)})
    pool.submit()
    pool.snapshot_create({OLD: DISK})
    model.flush()
    model.snapshots[OLD] = model.disks[DISK].frozen()
    stage.write(model, DISK, {number: stage.fresh_value() for number in (4, 5, 41, 102)})
    stage.write(model, SECOND, {number: stage.fresh_value() for number in (1, 51)})
    pool.sync_blocking(pool.submit())
    model.flush()
    stage.write(model, DISK, {103: stage.fresh_value()})
    pool.sync_blocking(pool.submit())
    model.flush()


@cache
def _beginning() -> Stage:
    stage = Stage(SimulatedFiles(1), Model())
    _begin(stage)
    stage.end(power=False)
    return stage


def new_stage(make: Callable[[int], SimulatedFiles] = SimulatedFiles, seed: int = 0) -> Stage:
    """A stage with the past, its pool not open. ``make``: of which class its machine is to be."""
    before = _beginning()
    files = make(seed)
    files.take(before.files)
    stage = Stage(files, before.model.copy(), turn=before.turn)
    stage.value = before.value
    return stage
