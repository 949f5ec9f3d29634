"""What a write waits for that finds no room: it is told in the end, whatever fails and whoever else writes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from innkeeper.fabric.pool import Pool
from innkeeper.fabric.relief import MOST_TRIES, MOST_WAIT_S, REFUSED_S
from innkeeper.fabric.space import Limits
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import NoSpace
from innkeeper.system.files import Io
from innkeeper.system.simulation import simulated_io

MIB = 1 << 20
LIMITS = Limits(
    log_bytes=8 * MIB, segment_bytes=2 * MIB, group_bytes=4 * MIB, capacity_bytes=100 * MIB, headroom_bytes=8 * MIB
)
STORAGE = str(uuid4())


class Lab:
    """A small pool whose background steps the test takes itself."""

    def __init__(self, folder: Path) -> None:
        clock = simulated_io(1)[0].clock
        real = Io()
        self.pool = Pool.open(
            Io(real.files, clock, real.random, real.scheduler), str(folder), limits=LIMITS, background=False
        )
        self.clock = clock
        self.pool._drainer_activity = _Nobody()
        self.pool.storage_create(STORAGE)
        self.told = 0
        self.pool.on_room = self._told

    def _told(self) -> None:
        self.told += 1

    def disk(self, size: int, **settings: object) -> Volume:
        disk_id, attachment = str(uuid4()), str(uuid4())
        self.pool.disk_create(disk_id, size, STORAGE, **settings)
        self.pool.attach(attachment, disk_id=disk_id)
        return self.pool.volume(attachment)

    def write(self, volume: Volume, where: int, size: int = MIB) -> None:
        volume.stage_write(where, os.urandom(size))
        self.pool.submit()

    def fill(self, volume: Volume, spread: int) -> int:
        """Write whole blocks, ``spread`` MiB of the disk again and again, until there is no room; how many MiB."""
        count = 0
        while True:
            try:
                self.write(volume, count % spread * MIB)
            except NoSpace:
                return count
            self.pool.drain()
            count += 1

    def steps(self, count: int = 1) -> None:
        for _ in range(count):
            self.pool._drain_step()
            self.pool._sweep_step()

    def rounds(self, volume: Volume, meanwhile: Volume | None = None) -> int:
        """How often both steps are taken until the volume no longer waits."""
        for taken in range(100):
            if not volume.waits_for_room(MIB):
                return taken
            told = self.told
            if meanwhile is not None:
                self.write(meanwhile, taken % 20 * MIB, 65536)
            self.steps()
            assert self.told > told, "who waits is told to look again"
        raise AssertionError("it waits for ever")


class _Nobody:
    def kick(self) -> None:
        pass

    def stop(self) -> None:
        pass


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.pool._drainer_activity = None
    made.pool.close()


def test_what_is_dead_makes_room(lab: Lab) -> None:
    volume = lab.disk(400 * MIB)
    assert lab.fill(volume, 20) > 40
    assert 1 <= lab.rounds(volume) <= 3
    lab.write(volume, 0)
    assert lab.pool.meters.sweeps == 1


def test_where_all_is_alive_one_is_told_soon_and_then_at_once(lab: Lab) -> None:
    volume = lab.disk(400 * MIB)
    lab.fill(volume, 400)
    assert lab.rounds(volume) <= 3
    with pytest.raises(NoSpace):
        lab.write(volume, 300 * MIB, 2 * MIB)
    sweeps = lab.pool.meters.sweeps
    assert sweeps == 1
    assert not volume.waits_for_room(MIB), "nothing has changed"
    lab.steps(5)
    assert lab.pool.meters.sweeps == sweeps
    lab.clock.sleep(REFUSED_S + 1)
    assert volume.waits_for_room(MIB), "by now something may have"
    assert lab.rounds(volume) <= 3


def test_others_that_write_on_keep_nobody_waiting(lab: Lab) -> None:
    other = lab.disk(40 * MIB, thick=True)
    volume = lab.disk(400 * MIB)
    lab.fill(volume, 400)
    assert lab.rounds(volume, other) <= 2 + 2 * MOST_TRIES
    assert lab.pool.meters.sweeps <= 1 + MOST_TRIES


def test_a_trim_or_a_removal_gives_hope_again(lab: Lab) -> None:
    spare = str(uuid4())
    lab.pool.disk_create(spare, MIB, STORAGE)
    volume = lab.disk(400 * MIB)
    lab.fill(volume, 400)
    lab.rounds(volume)
    assert not volume.waits_for_room(MIB)
    lab.pool.disk_rm(spare)
    assert volume.waits_for_room(MIB)
    lab.rounds(volume)
    assert not volume.waits_for_room(MIB)
    volume.stage_trim(0, 16 * MIB)
    lab.pool.submit()
    assert volume.waits_for_room(MIB)
    lab.rounds(volume)
    lab.write(volume, 0)


def test_a_sweep_that_was_asked_for_in_the_midst_of_another_is_made(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = lab.disk(400 * MIB)
    lab.fill(volume, 20)
    assert volume.waits_for_room(MIB)
    lab.pool._drain_step()
    whole = lab.pool._sweep

    def meanwhile(compact_below: float, gentle: bool, enough_bytes: int | None) -> dict[str, object]:
        assert volume.waits_for_room(MIB)
        return whole(0.0, gentle, enough_bytes)

    with monkeypatch.context() as patched:
        patched.setattr(lab.pool, "_sweep", meanwhile)
        lab.pool.sweep_wanted = True
        lab.pool._sweep_step()
    lab.pool.sweep(0.0)
    assert lab.rounds(volume) <= 3
    lab.write(volume, 0)


def test_a_sweep_that_fails_once_is_made_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = lab.disk(400 * MIB)
    lab.fill(volume, 20)

    def fails() -> None:
        raise OSError(errno.EIO, "a medium in trouble")

    with monkeypatch.context() as patched:
        patched.setattr(lab.pool, "_settle", fails)
        assert lab.rounds(volume) <= 3
    assert lab.pool.sweep_problem is not None
    with pytest.raises(NoSpace):
        lab.write(volume, 0, 2 * MIB)
    lab.steps()
    assert lab.pool.sweep_problem is None
    lab.write(volume, 0)


def test_where_a_drain_has_no_room_a_sweep_is_made(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = lab.disk(400 * MIB)
    lab.fill(volume, 20)
    volume.stage_trim(0, 65536)
    lab.pool.submit()
    drain = lab.pool.drainer.drain

    def full_once(*arguments: object) -> object:
        monkeypatch.setattr(lab.pool.drainer, "drain", drain)
        raise OSError(errno.ENOSPC, "the file system is full")

    monkeypatch.setattr(lab.pool.drainer, "drain", full_once)
    assert lab.rounds(volume) <= 3
    lab.write(volume, 0)
    assert lab.pool.meters.sweeps == 1


def test_nobody_waits_longer_than_is_bearable(lab: Lab) -> None:
    volume = lab.disk(400 * MIB)
    lab.fill(volume, 20)
    assert volume.waits_for_room(MIB)
    lab.clock.sleep(MOST_WAIT_S - 1)
    assert volume.waits_for_room(MIB), "nobody has drained yet"
    lab.clock.sleep(2)
    assert not volume.waits_for_room(MIB)


def test_where_nobody_works_in_the_background_nobody_waits(lab: Lab) -> None:
    volume = lab.disk(400 * MIB)
    lab.fill(volume, 20)
    lab.pool._drainer_activity = None
    assert not volume.waits_for_room(MIB)
