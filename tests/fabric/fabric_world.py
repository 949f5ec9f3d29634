"""A pool on a simulated machine, driven at random beside a model that knows which values each 4 KiB page may have.

The oracle: a page has its current value, and ``older`` values it may fall back to in a power cut: the one that was
flushed last and all that were accepted since. The end of a process may lose nothing that was accepted. A control
operation cut short by a crash has happened as a whole or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from random import Random
from uuid import UUID

from fabric_model import PAGE, ZERO, Content, ModelDisk

from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import Problem
from innkeeper.system.simulation import CRASH, EIO, ENOSPC, SHORT, SimulatedCrash, simulated_io

BLOCK = 65536
LIMITS = Limits(log_bytes=1 << 20, segment_bytes=256 << 10, group_bytes=384 << 10, headroom_bytes=0)
POOL = "/pool"
SHORT_OF_SPACE = ("pool.full", "pool.promised", "log.full", "storage.quota", "device.full", "device.no_room")
"""Refusals that need no fault."""


class World:
    """See the module's docstring. ``step`` does one random thing; ``verify`` compares everything."""

    def __init__(self, seed: int, *, faults: bool = True) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.io, self.files = simulated_io(seed, capacity_bytes=96 << 20)
        self.faults = faults
        self.storages = [self.uuid() for _ in range(3)]
        self.disks: dict[str, ModelDisk] = {}
        self.snapshots: dict[str, tuple[str, Content]] = {}
        self.volumes: dict[str, Volume] = {}
        self.operations = 0
        self.crashes = 0
        self.injected = 0
        self.refused = 0
        self.uncertain = False
        """A write was answered with an error: its pages may have either value from then on."""
        self.log: list[str] = []
        self.pool = Pool.open(self.io, POOL, limits=LIMITS, background=False)
        for storage, compression, dedup in zip(self.storages, ("lz4", "off", "lz4"), (True, True, False), strict=True):
            self.pool.storage_create(storage, compression=compression, dedup=dedup)
        self.create()

    def close(self) -> None:
        self.pool.close()

    def uuid(self) -> str:
        return str(UUID(bytes=self.random.randbytes(16), version=4))

    # -- choosing --------------------------------------------------------------------------------------------------

    def any_disk(self) -> tuple[str, ModelDisk]:
        return self.random.choice(sorted(self.disks.items()))

    def bytes_of(self, length: int) -> bytes:
        kind = self.random.random()
        if kind < 0.15:
            return bytes(length)
        if kind < 0.5:
            return (self.random.randbytes(16) * (length // 16 + 1))[:length]
        if kind < 0.65:
            return (bytes([self.random.randrange(4)]) * length)[:length]
        return self.random.randbytes(length)

    def span(self, size: int) -> tuple[int, int]:
        """A random range within a disk: pages mostly, sometimes sectors or whole blocks."""
        hot = min(size, self.random.choice((size, 8 * BLOCK)))
        lot = self.random.random()
        if lot < 0.55:
            offset = self.random.randrange(hot) // PAGE * PAGE
            length = PAGE * self.random.choice((1, 1, 1, 2, 3, 9))
        elif lot < 0.8:
            offset = self.random.randrange(hot) // BLOCK * BLOCK
            length = BLOCK * self.random.choice((1, 1, 2, 3))
        else:
            offset = self.random.randrange(hot) // 512 * 512
            length = 512 * self.random.randrange(1, 40)
        if self.random.random() < 0.05:
            offset = size - min(size, length)
        return offset, min(length, size - offset)

    # -- data operations -------------------------------------------------------------------------------------------

    def volume(self, disk_id: str) -> Volume:
        if disk_id not in self.volumes:
            self.volumes[disk_id] = self.pool.volume(self.disks[disk_id].attachment)
        return self.volumes[disk_id]

    def _room(self) -> None:
        if self.pool.log_room() <= 0:
            self.pool.drain()
            assert self.pool.log_room() > 0, "a log that was drained takes writes again"

    def write(self) -> None:
        self._room()
        staged = []
        try:
            for _ in range(self.random.choice((1, 1, 2, 5))):
                disk_id, disk = self.any_disk()
                offset, length = self.span(disk.content.size)
                kind = self.random.random()
                if kind < 0.8:
                    data = self.bytes_of(length)
                    staged.append((disk, offset, data))
                    self.volume(disk_id).stage_write(offset, data)
                elif kind < 0.9:
                    staged.append((disk, offset, bytes(length)))
                    self.volume(disk_id).stage_zero(offset, length)
                else:
                    first, last = -(-offset // PAGE), (offset + length) // PAGE
                    if offset + length == disk.content.size:
                        last = -(-(offset + length) // PAGE)
                    end = min(last * PAGE, disk.content.size)
                    staged.append((disk, first * PAGE, bytes(max(0, end - first * PAGE))))
                    self.volume(disk_id).stage_trim(offset, length)
            self.pool.submit()
        except (Problem, SimulatedCrash):
            self._maybe(staged)
            raise
        for disk, offset, data in staged:
            disk.write(offset, data)

    def stream(self) -> None:
        """A write of a sequential stream: its blocks go past the log, and perhaps something happens in between."""
        self._room()
        disk_id, disk = self.any_disk()
        offset = self.random.randrange(disk.content.size) // 512 * 512
        if self.random.random() < 0.7:
            offset = offset // BLOCK * BLOCK
        length = min(disk.content.size - offset, BLOCK * self.random.randrange(1, 7) + self.random.choice((0, 0, 512)))
        data = b"".join(self.bytes_of(min(BLOCK, length - at)) for at in range(0, length, BLOCK))
        volume = self.volume(disk_id)
        try:
            stored = volume.store_blocks(offset, data)
            if self.random.random() < 0.2 and not self.sweeping:
                self.pool.sweep(compact_below=self.random.choice((0.7, 1.0)))
            if self.random.random() < 0.1:
                volume.give_up(stored)
                return
            volume.stage_stored(offset, data, stored)
            self.pool.submit()
        except (Problem, SimulatedCrash):
            self._maybe([(disk, offset, data)])
            raise
        disk.write(offset, data)

    def _maybe(self, staged: list[tuple[ModelDisk, int, bytes]]) -> None:
        """Requests that were not acknowledged: each page may have its old or any of the new values."""
        for disk, offset, data in staged:
            before = disk.content.write(offset, data)
            for number, value in before.items():
                disk.older.setdefault(number, set()).update((value, disk.content.page(number)))
        self.uncertain = True

    def flush(self) -> None:
        self.pool.sync_blocking(self.pool.submit())
        if not self.uncertain:
            for disk in self.disks.values():
                disk.older.clear()

    # -- control operations ----------------------------------------------------------------------------------------

    def create(self) -> None:
        if len(self.disks) >= 5:
            return
        disk_id, attachment = self.uuid(), self.uuid()
        size = self.random.choice((512 * self.random.randrange(1, 3000), BLOCK * 20, PAGE * 37, (70 << 20) + 512))
        storage = self.random.choice(self.storages)
        self.disks[disk_id] = ModelDisk(Content(size), attachment)
        self._both(
            lambda: (
                self.pool.disk_create(disk_id, size, storage),
                self.pool.attach(attachment, disk_id=disk_id, role="writer"),
            ),
        )

    def _both(self, act: Callable[[], object]) -> None:
        act()

    def snapshot(self) -> None:
        if len(self.snapshots) >= 6:
            return
        chosen = self.random.sample(sorted(self.disks), self.random.randint(1, len(self.disks)))
        names = {self.uuid(): disk_id for disk_id in chosen}
        self.flush()
        for snapshot_id, disk_id in names.items():
            self.snapshots[snapshot_id] = (disk_id, self.disks[disk_id].content.copy())
        self.pool.snapshot_create(names)

    def clone(self) -> None:
        if not self.snapshots or len(self.disks) >= 5:
            return
        snapshot_id = self.random.choice(sorted(self.snapshots))
        disk_id, attachment = self.uuid(), self.uuid()
        self.disks[disk_id] = ModelDisk(self.snapshots[snapshot_id][1].copy(), attachment, snapshot_id)
        self.pool.disk_clone(disk_id, snapshot_id)
        self.pool.attach(attachment, disk_id=disk_id)

    def revert(self) -> None:
        if not self.snapshots:
            return
        snapshot_id = self.random.choice(sorted(self.snapshots))
        disk_id, disk = self.any_disk()
        self.flush()
        self._detached(
            disk_id, disk, lambda: self.pool.disk_revert(disk_id, snapshot_id), self.snapshots[snapshot_id][1]
        )

    def resize(self) -> None:
        disk_id, disk = self.any_disk()
        size = max(512, disk.content.size + 512 * self.random.randrange(-300, 400))
        wanted = disk.content.copy()
        wanted.resize(size)
        self.flush()
        self._detached(disk_id, disk, lambda: self.pool.disk_resize(disk_id, size), wanted)

    def _detached(self, disk_id: str, disk: ModelDisk, act: Callable[[], object], wanted: Content) -> None:
        """Do something to a detached disk that gives it ``wanted`` as a whole, or nothing."""
        self.pool.detach(disk.attachment)
        self.volumes.pop(disk_id, None)
        try:
            act()
            disk.content = wanted.copy()
        except (Problem, SimulatedCrash):
            self._either = (disk_id, wanted)
            raise
        disk.attachment = self.uuid()
        self.pool.attach(disk.attachment, disk_id=disk_id)

    _either: tuple[str, Content] | None = None
    sweeping = False

    def _settle_either(self) -> None:
        """After an operation that was cut short: the disk is as before or as wanted, entirely."""
        if self._either is None:
            return
        disk_id, wanted = self._either
        self._either = None
        disk = self.disks[disk_id]
        view = self.pool.catalog.disk(disk_id).open.view
        size = self.pool.disk_show(disk_id)["size_bytes"]
        assert size in (disk.content.size, wanted.size), self.story()
        numbers = {*disk.content.pages, *wanted.pages}
        actual = {number: self.pool.reader.page(view, number) for number in numbers}

        def fits(content: Content) -> bool:
            return all(actual[number] in {content.page(number), *disk.older.get(number, ())} for number in numbers)

        candidates = [each for each in (wanted, disk.content) if each.size == size and fits(each)]
        assert candidates, f"a cut operation left disk {disk_id} in between\n{self.story()}"
        disk.content = candidates[0].copy()

    def remove(self) -> None:
        if self.snapshots and self.random.random() < 0.6:
            snapshot_id = self.random.choice(sorted(self.snapshots))
            gone = self.snapshots.pop(snapshot_id)
            try:
                self.pool.snapshot_rm(snapshot_id)
            except (Problem, SimulatedCrash):
                self.snapshots[snapshot_id] = gone
                raise
        elif len(self.disks) > 1:
            disk_id, disk = self.any_disk()
            self.volumes.pop(disk_id, None)
            self.pool.detach(disk.attachment)
            self.pool.disk_rm(disk_id)
            del self.disks[disk_id]

    def diff(self) -> None:
        if not self.snapshots:
            return
        one = self.random.choice(sorted(self.snapshots))
        other = self.random.choice([*sorted(self.snapshots), None])
        mine = self.snapshots[one][1]
        base = self.snapshots[other][1] if other else Content(mine.size)
        start = self.random.choice((0, 0, 3))
        got: dict[int, list[object]] = {}
        at: int | None = start
        while at is not None:
            answer = self.pool.changed_blocks(one, other, at, self.random.choice((1, 7, 65536)))
            got.update((block[0], block) for block in answer["blocks"])
            at = answer["next"]
        for number in {*mine.pages, *base.pages}:
            if number >= start * 16 and mine.page(number) != base.page(number):
                assert number // 16 in got, f"block {number // 16} is missing in a diff\n{self.story()}"
        for block, fact in got.items():
            if fact[1] == "hole":
                assert not any(mine.page(block * 16 + index) != ZERO for index in range(16)), self.story()

    # -- crashes and verification ----------------------------------------------------------------------------------

    def crash(self, power: bool) -> None:
        """End the process or the machine, open the pool again, and settle what may have either value."""
        self.crashes += 1
        if power:
            self.files.cut_power()
        else:
            self.files.end_process()
        self.volumes.clear()
        lost = self.pool.log.broken is not None
        with suppress(Problem):
            self.pool._release()
        self.io = replace(self.io, files=self.files.process())
        self.pool = Pool.open(self.io, POOL, limits=LIMITS, background=False)
        assert self.pool.read_only is None, f"{self.pool.read_only}\n{self.story()}"
        self._adopt_existence()
        self._settle_either()
        for disk_id, disk in self.disks.items():
            self._settle_values(disk_id, disk, power or lost)
            if self.pool.catalog.disk(disk_id).lost:
                self.pool.detach(disk.attachment)
                disk.attachment = self.uuid()
                self.pool.attach(disk.attachment, disk_id=disk_id)
        self.uncertain = False

    def _adopt_existence(self) -> None:
        """Disks, snapshots and attachments whose making or removing was cut short."""
        have = {each["id"] for each in self.pool.disk_ls()}
        self.disks = {disk_id: disk for disk_id, disk in self.disks.items() if disk_id in have}
        assert have == set(self.disks), self.story()
        have = {each["id"] for each in self.pool.snapshot_ls()}
        self.snapshots = {each: content for each, content in self.snapshots.items() if each in have}
        assert have == set(self.snapshots), self.story()
        attached = {each["id"] for each in self.pool.attachment_ls()}
        for disk_id, disk in self.disks.items():
            if disk.attachment not in attached:
                for each in self.pool.attachment_ls():
                    if each["disk_id"] == disk_id:
                        self.pool.detach(each["id"])
                disk.attachment = self.uuid()
                self.volumes.pop(disk_id, None)
                self.pool.attach(disk.attachment, disk_id=disk_id)
        if not self.disks:
            self.create()

    def _settle_values(self, disk_id: str, disk: ModelDisk, power: bool) -> None:
        view = self.pool.catalog.disk(disk_id).open.view
        for number, older in disk.older.items():
            if number * PAGE >= disk.content.size:
                continue
            actual = self.pool.reader.page(view, number)
            allowed = {disk.content.page(number)}
            if power or self.uncertain:
                allowed |= older
            assert actual in allowed, f"page {number} of {disk_id} is none of {len(allowed)} values\n{self.story()}"
            if actual == ZERO:
                disk.content.pages.pop(number, None)
            else:
                disk.content.pages[number] = actual
        disk.older.clear()

    def verify(self) -> None:
        """Every byte of every disk and snapshot is what the model says."""
        if self.uncertain:
            return
        for disk_id, disk in self.disks.items():
            self._compare(self.volume(disk_id), disk.content, disk_id)
        for snapshot_id, (_, content) in self.snapshots.items():
            name = self.uuid()
            self.pool.attach(name, snapshot_id=snapshot_id, role="reader")
            self._compare(self.pool.volume(name), content, snapshot_id)
            self.pool.detach(name)

    def _compare(self, volume: Volume, content: Content, name: str) -> None:
        assert volume.size_bytes == content.size, f"{name}: {volume.size_bytes} != {content.size}\n{self.story()}"
        for number in sorted({*content.pages, *(self.random.randrange(-(-content.size // PAGE)) for _ in range(8))}):
            length = min(PAGE, content.size - number * PAGE)
            data = volume.read_nowait(number * PAGE, length)
            if data is None:
                data = volume.read_blocking(number * PAGE, length)
            assert data == content.page(number)[:length], f"page {number} of {name} is wrong\n{self.story()}"
        offset, length = self.span(content.size)
        expected = b"".join(content.page(n) for n in range(offset // PAGE, -(-(offset + length) // PAGE)))
        skip = offset % PAGE
        assert volume.read_blocking(offset, length) == expected[skip : skip + length], self.story()
        at = offset
        for run, flags in volume.allocation(offset, length):
            if flags:
                assert not any(volume.read_blocking(at, run)), f"a hole of {name} has data\n{self.story()}"
            at += run
        assert at == offset + length

    # -- one step --------------------------------------------------------------------------------------------------

    ACTIONS = (
        ("write", 32), ("stream", 10), ("flush", 8), ("snapshot", 4), ("clone", 2), ("revert", 2), ("resize", 2),
        ("create", 1), ("remove", 3), ("diff", 3), ("drain", 4), ("drain_oldest", 4), ("sweep", 3), ("verify", 3),
        ("check", 1),
        ("kill", 3), ("power", 3),
    )  # fmt: skip

    def step(self) -> None:
        names, weights = zip(*self.ACTIONS, strict=True)
        name = self.random.choices(names, weights)[0]
        self.act(name)

    def act(self, name: str) -> None:
        """One operation, perhaps with a fault or a crash in the middle."""
        self.operations += 1
        fault = None
        if self.faults and name not in ("kill", "power", "verify", "check") and self.random.random() < 0.12:
            fault = self.random.choice((CRASH, CRASH, EIO, ENOSPC, SHORT))
            self.files.faults[self.files.calls + self.random.randint(1, 12)] = fault
            self.files.lose_pages_on_failed_sync = self.random.random() < 0.3
        self.log.append(f"{name} {fault or ''}")
        fired = len(self.files.fired)
        try:
            self._do(name)
        except SimulatedCrash:
            self.injected += 1
            self.crash(power=self.random.random() < 0.6)
        except Problem as problem:
            if self.files.dead:
                self.injected += 1
                self.crash(power=self.random.random() < 0.6)
                return
            self.log[-1] += f" -> {problem.code}"
            if len(self.files.fired) == fired and problem.code not in SHORT_OF_SPACE:
                raise
            self.refused += 1
            self.injected += len(self.files.fired) > fired
            self.files.faults.clear()
            if self.pool.log.broken is None and not self.uncertain:
                self._settle_either()  # what was refused has its final outcome now, whatever comes later
            if self.random.random() < 0.5 or self.uncertain:
                self.crash(power=False)
            else:
                self._after_refusal()
        else:
            self.injected += len(self.files.fired) - fired
        self.files.faults.clear()

    def _after_refusal(self) -> None:
        if self.pool.log.broken is not None:
            self.crash(power=False)
        else:
            self._adopt_existence()
            self._settle_either()

    def _do(self, name: str) -> None:
        if name == "kill":
            self.crash(power=False)
        elif name == "power":
            self.crash(power=True)
        elif name == "drain":
            self.pool.drain()
        elif name == "drain_oldest":
            self.pool.drain_oldest()
        elif name == "sweep":
            self.pool.sweep(compact_below=self.random.choice((0.3, 0.7, 1.0)))
        elif name == "check":
            report = self.pool.check(repair=self.random.random() < 0.5)
            assert not report["problems"], f"{report['problems'][:5]}\n{self.story()}"
        else:
            getattr(self, name)()

    def story(self) -> str:
        """What led here, for the report of a failure."""
        return f"seed {self.seed}, operation {self.operations}: " + ", ".join(self.log[-40:])
