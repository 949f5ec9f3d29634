"""Devices: the directories that a pool's groups are in, fast ones and slow ones.

The pool's own directory is its first device (``HOME``), always fast, and has the log and meta besides. Which others
there are is in ``pool.json`` there, so that the groups can be found without meta. Each of them carries ``device.json``
with the pool's id and its own: a directory that is another pool's, or not mounted, is not mistaken for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from innkeeper.model.problems import Conflict, Corrupt, Failed, Invalid, NotFound, Unavailable
from innkeeper.system.files import FileSystem, Lock, write_all

VERSION = 2
"""Of pool.json; version 1 knew no devices."""
DEVICE_VERSION = 1
HOME = ""
FAST = "fast"
SLOW = "slow"
TIERS = (FAST, SLOW)
ONLINE = "online"
DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Device:
    """A directory of a pool: its id, its path, ``fast`` or ``slow``, ``online`` or ``draining``."""

    id: str
    path: str
    tier: str = FAST
    state: str = ONLINE

    @property
    def groups(self) -> str:
        """The directory that its groups are in."""
        return f"{self.path}/groups"


def read_identity(files: FileSystem, path: str) -> tuple[UUID, list[Device]] | None:
    """The pool's id and its other devices from ``pool.json``; None where there is no pool yet.

    Raises ``Corrupt`` (``pool.format``).
    """
    name = f"{path}/pool.json"
    if not files.exists(name):
        return None
    facts = _read_json(files, name)
    try:
        version, pool_id = facts["format"], UUID(facts["pool"])
        if version not in (1, VERSION):
            raise Corrupt(
                "pool.format",
                f"{name} has format {version}, this program knows {VERSION}",
                remedy="open the pool with the version of Innkeeper that wrote it, or a newer one",
            )
        return pool_id, [Device(**each) for each in facts.get("devices", [])]
    except (ValueError, KeyError, TypeError) as unreadable:
        raise Corrupt("pool.format", f"{name} cannot be read", cause=str(unreadable)) from unreadable


def write_identity(files: FileSystem, path: str, pool_id: UUID, devices: list[Device]) -> None:
    """Put ``pool.json`` there, whole and on the medium. Raises ``OSError``."""
    facts = {"format": VERSION, "pool": str(pool_id), "devices": [asdict(each) for each in devices]}
    _write_json(files, path, "pool.json", facts)


def _read_json(files: FileSystem, name: str) -> dict[str, Any]:
    file = files.open(name)
    try:
        facts = json.loads(file.pread(file.size(), 0))
        if not isinstance(facts, dict):
            raise ValueError("it is no object")
        return facts
    except ValueError as unreadable:
        raise Corrupt("pool.format", f"{name} cannot be read", cause=str(unreadable)) from unreadable


def _write_json(files: FileSystem, directory: str, name: str, facts: dict[str, Any]) -> None:
    fresh = files.open(f"{directory}/{name}.new", create=True)
    fresh.truncate(0)
    write_all(fresh, [json.dumps(facts).encode()], 0)
    fresh.fdatasync()
    fresh.close()
    files.rename(f"{directory}/{name}.new", f"{directory}/{name}")
    files.sync_dir(directory)


class Devices:
    """The devices of an open pool, each locked."""

    def __init__(self, files: FileSystem, path: str, pool_id: UUID, others: list[Device]) -> None:
        """Raises ``Unavailable`` (``device.missing``), ``Corrupt`` (``device.foreign``), ``Conflict``."""
        self._files = files
        self._path = path
        self._pool_id = pool_id
        self._locks: dict[str, Lock] = {}
        self.all: dict[str, Device] = {HOME: Device(HOME, path)}
        self._directories = {HOME: self.all[HOME].groups}
        """Of devices that were let go too: a reader may still have the row of a group that was there."""
        try:
            for device in others:
                self._check(device)
                self._locks[device.id] = files.lock(f"{device.path}/lock")
                self.all[device.id] = device
                self._directories[device.id] = device.groups
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

    def add(self, device: Device) -> None:
        """Take an empty directory (made where there is none) into the pool. Blocks; repeated, it changes nothing.

        Raises ``Invalid`` (``device.tier``, ``device.path``), ``Conflict`` (``device.not_empty``, ``device.exists``),
        ``Failed`` (``device.unusable``).
        """
        if device.tier not in TIERS:
            raise Invalid("device.tier", f"there is no tier {device.tier!r}", remedy=f"use {' or '.join(TIERS)}")
        if not device.path.startswith("/"):
            raise Invalid("device.path", f"{device.path!r} is no absolute path", remedy="give the whole path")
        known = self.all.get(device.id)
        if known == device:
            return
        if known is not None or any(each.path == device.path for each in self.all.values()):
            raise Conflict("device.exists", f"the pool has {device.path} already", remedy="see 'inn pool show'")
        try:
            self._files.mkdir(device.path)
            found = set(self._files.listdir(device.path)) - {"lost+found"}
            if found - {"device.json", "device.json.new", "groups", "lock"} or not self._is_ours(device, found):
                raise Conflict(
                    "device.not_empty",
                    f"{device.path} is not empty",
                    cause=", ".join(sorted(found)[:5]),
                    remedy="give a directory of its own",
                )
            lock = self._files.lock(f"{device.path}/lock")
            self._files.mkdir(device.groups)
            facts = {"format": DEVICE_VERSION, "pool": str(self._pool_id), "device": device.id}
            _write_json(self._files, device.path, "device.json", dict(facts))
            self._write({**self.all, device.id: device})
        except OSError as refused:
            raise Failed(
                "device.unusable", f"{device.path} cannot be used", cause=str(refused), remedy="look at its disk"
            ) from refused
        self._locks[device.id] = lock

    def change(self, device_id: str, state: str) -> None:
        """Set a device's state. Raises ``NotFound`` (``device.not_found``), ``Conflict`` (``device.home``)."""
        self._write({**self.all, device_id: replace(self.other(device_id), state=state)})

    def remove(self, device_id: str) -> None:
        """Let an empty device go, and leave its directory empty."""
        device = self.other(device_id)
        self._write({key: each for key, each in self.all.items() if key != device_id})
        with suppress(OSError):  # it names this pool, which may take it again
            self._files.unlink(f"{device.path}/device.json")
        lock = self._locks.pop(device_id, None)
        if lock is not None:
            lock.close()

    def directory(self, device_id: str) -> str:
        """Where the groups of a device are, or were."""
        return self._directories[device_id]

    def other(self, device_id: str) -> Device:
        """A device that is not the pool's own directory."""
        if device_id == HOME:
            raise Conflict("device.home", "the pool's own directory stays", remedy="name another device")
        if device_id not in self.all:
            raise NotFound("device.not_found", f"the pool has no device {device_id}", remedy="see 'inn pool show'")
        return self.all[device_id]

    def space(self, wanted: Callable[[Device], bool] = lambda device: device.state == ONLINE) -> tuple[int, int]:
        """(total, free) bytes of the file systems of those devices, one that several are on counted once."""
        volumes: dict[int, tuple[int, int]] = {}
        for device in list(self.all.values()):
            if wanted(device):
                volume, total, free = self.room(device)
                volumes[volume] = total, free
        return sum(total for total, _ in volumes.values()), sum(free for _, free in volumes.values())

    def room(self, device: Device) -> tuple[int, int, int]:
        """(number of the file system, total bytes, free bytes) of a device; nothing where it does not answer."""
        try:
            return self._files.volume(device.path), *self._files.space(device.path)
        except OSError:
            return -1, 0, 0

    def place(self, home_reserve_bytes: int, group_bytes: int, tier: str = "") -> Device:
        """Where the next group goes: the device of ``tier`` (fast without one) with most room, one of the other tier
        when none has room for a group."""
        rooms: list[tuple[bool, int, str]] = []
        for device in self.all.values():
            if device.state == ONLINE:
                room = self.room(device)[2] - (home_reserve_bytes if device.id == HOME else 0)
                if room >= group_bytes:
                    rooms.append((device.tier == (tier or FAST), room, device.id))
        return self.all[max(rooms)[2] if rooms else HOME]

    def _write(self, devices: dict[str, Device]) -> None:
        others = [each for each in devices.values() if each.id != HOME]
        try:
            write_identity(self._files, self._path, self._pool_id, others)
        except OSError as refused:
            detail = f"{self._path}/pool.json cannot be written"
            raise Failed(
                "device.unusable", detail, cause=str(refused), remedy="look at its disk, then try again"
            ) from refused
        self.all = devices
        self._directories.update({each.id: each.groups for each in devices.values()})

    def _is_ours(self, device: Device, found: set[str]) -> bool:
        """Whether what lies there is of an addition that was cut short, or nothing."""
        if "device.json" not in found:
            return not found or not self._files.exists(device.groups) or not self._files.listdir(device.groups)
        facts = _read_json(self._files, f"{device.path}/device.json")
        return facts.get("pool") == str(self._pool_id) and facts.get("device") not in self.all

    def _check(self, device: Device) -> None:
        name = f"{device.path}/device.json"
        if not self._files.exists(name):
            raise Unavailable(
                "device.missing",
                f"{device.path}, which has a part of the pool in {self._path}, is not there",
                cause=f"there is no {name}",
                remedy="mount it, or put it back",
            )
        facts = _read_json(self._files, name)
        if facts.get("pool") != str(self._pool_id) or facts.get("device") != device.id:
            raise Corrupt(
                "device.foreign",
                f"{device.path} belongs to pool {facts.get('pool')}",
                cause=f"the pool in {self._path} is {self._pool_id}",
                remedy="mount the right one there",
            )
        if facts.get("format") != DEVICE_VERSION:
            raise Corrupt(
                "device.format",
                f"{name} has format {facts.get('format')}, this program knows {DEVICE_VERSION}",
                remedy="open the pool with the version of Innkeeper that wrote it, or a newer one",
            )
