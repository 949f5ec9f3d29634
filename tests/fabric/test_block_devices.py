"""Block devices of a pool: mounted before it opens, named where they are missing, let go when they are drained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from frozen_pool import DISK, digests
from loop_devices import Loops, loops as loops
from store_lab import filled, move, opened, where

from innkeeper.fabric.devices import HOME
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Conflict, Failed, Problem, Unavailable
from innkeeper.system.blobs import Address
from innkeeper.system.blockdevice import check, make_file_system
from innkeeper.system.files import Io
from innkeeper.system.mounts import RealMounts


class Drawer:
    """Mounts without devices: a directory is put in its place, and taken out again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.out: set[str] = set()

    def attach(self, uuid: str, path: str) -> None:
        if Path(path).exists():
            return
        if uuid in self.out:
            raise Failed("tool.failed", "mount failed", cause=f"can't find UUID={uuid}")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        kept = self._directory / uuid
        kept.mkdir(parents=True, exist_ok=True)
        kept.rename(path)

    def detach(self, path: str) -> None:
        if Path(path).exists():
            Path(path).rename(self._directory / Path(path).name)


def added(pool: Pool, home: Path, device: str, source: str = "/dev/sdx") -> Path:
    place = home / "devices" / device
    pool.device_add(device, str(place), "slow", source=source)
    return place


def test_it_is_mounted_before_the_pool_opens_and_let_go_when_drained(tmp_path: Path) -> None:
    drawer, device = Drawer(tmp_path / "drawer"), str(uuid4())
    io = replace(Io(), mounts=drawer)
    pool = filled(tmp_path / "pool", Address(f"file://{tmp_path}/store"), io)
    place = added(pool, tmp_path, device)
    (facts,) = [each for each in pool.device_ls() if each["id"] == device]
    assert (facts["kind"], facts["source"], facts["path"]) == ("block", "/dev/sdx", str(place))
    before = digests(pool)
    move(pool, device)
    assert where(pool)[device] >= 3
    pool.close()
    drawer.detach(str(place))
    pool = opened(tmp_path / "pool", io)
    assert digests(pool) == before
    pool.close()

    drawer.detach(str(place))
    drawer.out.add(device)
    with pytest.raises(Unavailable, match="device.missing") as missing:
        opened(tmp_path / "pool", io)
    assert "/dev/sdx" in missing.value.detail and device in str(missing.value.cause)
    assert missing.value.remedy
    drawer.out.clear()

    pool = opened(tmp_path / "pool", io)
    pool.device_rm(device)
    pool.tier()
    assert device not in where(pool)
    assert not place.exists()
    assert digests(pool) == before
    pool.close()


def test_one_that_cannot_be_used_is_not_left_mounted(tmp_path: Path) -> None:
    drawer, device = Drawer(tmp_path / "drawer"), str(uuid4())
    pool = filled(tmp_path / "pool", Address(f"file://{tmp_path}/store"), replace(Io(), mounts=drawer))
    (tmp_path / "drawer" / device).mkdir(parents=True)
    (tmp_path / "drawer" / device / "letters").write_text("")
    with pytest.raises(Conflict, match="device.not_empty"):
        added(pool, tmp_path, device)
    assert not (tmp_path / "devices" / device).exists()
    drawer.out.add(other := str(uuid4()))
    with pytest.raises(Problem, match="device.missing"):
        added(pool, tmp_path, other)
    assert HOME in where(pool) and device not in where(pool) and other not in where(pool)
    pool.close()


@pytest.mark.root
def test_a_real_one(tmp_path: Path, loops: Loops) -> None:
    source, device = loops.make(), str(uuid4())
    check(Path(source), consent=False)
    make_file_system(Path(source), device)
    pool = filled(tmp_path / "pool", Address(f"file://{tmp_path}/store"))
    place = added(pool, tmp_path, device, source)
    assert place.is_mount()
    before = digests(pool)
    move(pool, device)
    assert where(pool)[device] >= 3
    pool.close()
    RealMounts().detach(str(place))
    kept = loops.detach(source)
    with pytest.raises(Unavailable, match="device.missing") as missing:
        opened(tmp_path / "pool")
    assert source in missing.value.detail
    loops.make()  # the disk comes back under another name
    loops.attach(kept)
    pool = opened(tmp_path / "pool")
    assert place.is_mount()
    assert digests(pool)[DISK] == before[DISK]
    pool.device_rm(device)
    pool.tier()
    assert not place.exists()
    assert digests(pool) == before
    pool.close()
