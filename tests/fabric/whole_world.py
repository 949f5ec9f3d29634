"""The random world with all that a pool can do: devices, policies and quotas, packing anew, scrub, and damage at rest.

Damage is tried on a copy of the machine: some stored bytes are flipped, the copy is opened, read, drained, swept and
scrubbed. Each page reads as the model says or not at all, unless the pool is read-only and says why; what is read wrong
fails. The world itself goes on undamaged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from fabric_world import LIMITS, PAGE, POOL, Content, ModelDisk, World
from tiered_world import TieredWorld

from innkeeper.fabric.layers import View
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Problem, Refused
from innkeeper.system.simulation import SimulatedCrash, SimulatedFiles

FLIPS = 12
"""Places that are damaged one after the other, each on a copy of its own."""


class WholeWorld(TieredWorld):
    """``fired`` counts faults by kind, ``damaged`` flips by the kind of file, ``noticed`` those that something told."""

    ACTIONS = (
        *TieredWorld.ACTIONS,
        ("storage_set", 2),
        ("disk_set", 2),
        ("curate", 4),
        ("gentle_sweep", 3),
        ("scrub", 2),
        ("wait", 2),
    )

    def __init__(self, seed: int, *, faults: bool = True) -> None:
        self.damaged: Counter[str] = Counter()
        self.noticed = 0
        super().__init__(seed, faults=faults)

    # -- policies and upkeep ---------------------------------------------------------------------------------------

    def storage_set(self) -> None:
        storage = self.random.choice(self.storages)
        compression = self.random.choice(("lz4", "zstd", "off"))
        self.pool.storage_set(
            storage,
            compression=compression,
            level=self.random.randint(1, 3) if compression == "zstd" else None,
            dedup=self.random.random() < 0.7,
            cold_level=self.random.choice((0, 0, 1)),
            cold_after_s=3600.0,
            quota_bytes=self.random.choice((0, 0, 0, 8 << 20)),
            tier=self.random.choice(("", "", "fast", "slow")),
        )

    def disk_set(self) -> None:
        disk_id, _ = self.any_disk()
        self.pool.disk_set(
            disk_id,
            self.random.choice((None, *self.storages)),
            tier=self.random.choice(("", "fast", "slow")),
            thick=self.random.random() < 0.2,
        )

    def curate(self) -> None:
        """Some of a pass; the rest later, with whatever happens in between."""
        self.pool._note_touched(self.io.clock.now())
        if not self.pool._to_recode:
            self.pool.curate_plan()
        for _ in range(self.random.randint(1, 4)):
            self.pool.curate_next()

    def gentle_sweep(self) -> None:
        """One that rests between groups; meanwhile others write, among it what was stored before."""
        clock = self.io.clock
        turns = iter((self.write, self.stream, self.pool.drain, self.write, self.pool.drain))

        def rest(seconds: float) -> None:
            with suppress(StopIteration):
                next(turns)()

        clock.sleep = rest  # type: ignore[method-assign]
        self.sweeping = True
        try:
            self.pool.sweep(1.0, gentle=True)
        finally:
            self.sweeping = False
            del clock.sleep

    def _detached(self, disk_id: str, disk: ModelDisk, act: Callable[[], object], wanted: Content) -> None:
        """What had the disk attached before is refused for ever."""
        before = self.volume(disk_id)
        super()._detached(disk_id, disk, act, wanted)
        try:
            before.stage_write(0, bytes(512))
        except Refused:
            return
        raise AssertionError(f"an earlier epoch writes\n{self.story()}")

    def scrub(self) -> None:
        after: int | None = 0
        while after is not None:
            after = self.pool.scrub(after, self.random.choice((1, 1 << 20)))["next"]
        if not self.files.fired or not self.faults:
            assert not self.pool.damage_ls(), self.story()

    def wait(self) -> None:
        self.io.clock.sleep(self.random.choice((60.0, 7200.0)))

    # -- damage ----------------------------------------------------------------------------------------------------

    def damage_copies(self, flips: int = FLIPS) -> None:
        """Flip stored bytes, each time on a copy; see the module's docstring."""
        self.flush()
        self.mark()
        for _ in range(flips):
            copy = SimulatedFiles(self.random.getrandbits(32))
            copy.take(self.files)
            kind = self._flip(copy)
            if kind:
                self.damaged[kind] += 1
                self.noticed += _Damaged(self, copy, kind).examine()

    def mark(self) -> None:
        """One write behind the flush: from then on the log itself says what of it was synced."""
        self._room()
        disk_id, disk = self.any_disk()
        data = self.bytes_of(512)
        self.volume(disk_id).stage_write(0, data)
        self.pool.submit()
        disk.write(0, data)

    def _flip(self, copy: SimulatedFiles) -> str | None:
        kind = self.random.choice(("grp", "grp", "seg", "seg", "json"))
        paths = [path for path in copy.paths() if path.endswith(f".{kind}") and copy.names[path].content]
        if not paths:
            return None
        path = self.random.choice(paths)
        content = copy.names[path].content
        size = len(content)
        if kind == "seg":  # most of it is unused
            size = len(content.rstrip(b"\0")) or size
        at = self.random.randrange(size)
        length = self.random.choice((1, 1, 1, 8, 512, PAGE))
        if length == PAGE:
            at -= at % PAGE
        length = min(length, PAGE - at % PAGE)
        if length == 1:
            data = bytes([content[at] ^ 1 << self.random.randrange(8)])
        else:
            data = self.random.choice((bytes(length), self.random.randbytes(length)))[: len(content) - at]
        copy.damage(path, at, data)
        self.log[-1] += f" damage {path} {at} {len(data)}"
        return kind


class _Damaged:
    """A copy with damage. ``examine`` fails where it reads what it must not."""

    def __init__(self, world: World, files: SimulatedFiles, kind: str) -> None:
        self._world = world
        self._files = files
        self._kind = kind
        self._told = False

    def examine(self) -> bool:
        """Whether something was told of the damage."""
        io = replace(self._world.io, files=self._files.process())
        try:
            pool = Pool.open(io, POOL, limits=LIMITS, background=False)
        except Problem:
            return True
        try:
            if pool.read_only:  # it is told, and what is read may lack what nobody can find
                return True
            self._read_all(pool)
            for act in (pool.drain, lambda: pool.sweep(1.0), pool.scrub):
                self._try(pool, act)
            self._told |= bool(pool.damage()) or bool(pool.check()["problems"])
            self._read_all(pool)
        finally:
            with suppress(Problem, SimulatedCrash):
                pool._release()
        return self._told

    def _try(self, pool: Pool, act: Callable[[], object]) -> None:
        try:
            act()
        except Problem:
            self._told = True

    def _read_all(self, pool: Pool) -> None:
        world, catalog = self._world, pool.catalog
        for disk_id, disk in world.disks.items():
            known = catalog.disks.get(disk_id)
            if known is None or known.open.damaged or known.lost or known.size_bytes != disk.content.size:
                assert known is None or known.open.damaged or known.lost, self._story(f"size of disk {disk_id}")
                self._told = True
                continue
            for number in disk.content.pages.keys() | disk.older.keys():
                allowed = {disk.content.page(number), *disk.older.get(number, ())}
                self._read(pool, known.open.view, number, allowed, disk_id)
        for snapshot_id, (_, content) in world.snapshots.items():
            snapshot = catalog.snapshots.get(snapshot_id)
            if snapshot is None or any(layer.damaged for layer in snapshot.frozen.view.layers):
                self._told = True
                continue
            assert snapshot.size_bytes == content.size, self._story(f"size of snapshot {snapshot_id}")
            for number in content.pages:
                self._read(pool, snapshot.frozen.view, number, {content.page(number)}, snapshot_id)

    def _read(self, pool: Pool, view: View, number: int, allowed: set[bytes], name: str) -> None:
        if any(layer.damaged for layer in view.layers):
            self._told = True
            return
        try:
            data = pool.reader.page(view, number)
        except (Problem, OSError):
            self._told = True
            return
        assert data in allowed, self._story(f"page {number} of {name}")

    def _story(self, what: str) -> str:
        return f"with damage to a {self._kind} file, {what} is wrong\n{self._world.story()}"


def run(seed: int, steps: int, *, faults: bool, damage_every: int = 0) -> WholeWorld:
    """One life of a world, verified at its end. ``damage_every`` so many steps copies are damaged."""
    world = WholeWorld(seed, faults=faults)
    for step in range(1, steps + 1):
        world.step()
        if damage_every and step % damage_every == 0:
            world.damage_copies()
    world.crash(power=False)
    world.verify()
    report = world.pool.check()
    assert not report["problems"], world.story()
    world.close()
    return world
