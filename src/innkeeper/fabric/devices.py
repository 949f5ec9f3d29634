"""Devices: where a pool's groups are, directories and object stores, fast ones and slow ones.

The pool's own directory is its first device (``HOME``), always fast, and has the log and meta besides. Which others
there are is in ``pool.json`` there, so that the groups can be found without meta. Each of them carries ``device.json``
with the pool's id and its own: a directory that is another pool's, or not mounted, is not mistaken for it. An object
store (``remote``) holds sealed groups only, and is looked at when the pool is open already: nothing waits for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any
from uuid import UUID

from innkeeper.fabric.layout import corrupt
from innkeeper.fabric.objects import ObjectShelf
from innkeeper.fabric.objectstore import check_mark, keys_of, mark, open_blobs, remove_all, unmark, write_keys
from innkeeper.fabric.shelves import DirectoryShelf, Shelf
from innkeeper.model.problems import Conflict, Corrupt, Failed, Invalid, NotFound, Problem, Unavailable
from innkeeper.system.blobs import Credentials
from innkeeper.system.files import FileSystem, Io, Lock, write_all

VERSION = 3
"""Of pool.json; version 1 knew no devices, version 2 only directories that others had mounted."""
DEVICE_VERSION = 1
HOME = ""
FAST = "fast"
SLOW = "slow"
TIERS = (FAST, SLOW)
ONLINE = "online"
DRAINING = "draining"
_PUT_BACK = "put it back from a copy of it: it names the pool, which its groups name too"
ADD_PATIENCE_S = 5.0
"""How long an addition waits for a store that does not answer."""
KEPT_BYTES = 64 << 20
"""What is kept in memory of the objects that were read last."""


@dataclass(frozen=True, slots=True)
class Device:
    """A directory or an object store of a pool: its id, its path or URL, ``fast`` or ``slow``, ``online`` or
    ``draining``; of a store the server's ``endpoint`` and ``region`` besides.

    ``source``: the block device whose file system is mounted at the path; that has the device's id as its UUID.
    """

    id: str
    path: str
    tier: str = FAST
    state: str = ONLINE
    endpoint: str = ""
    region: str = ""
    source: str = ""

    @property
    def kind(self) -> str:
        """``directory``, ``block`` or ``object``."""
        return "object" if self.remote else "block" if self.source else "directory"

    @property
    def remote(self) -> bool:
        """Whether it is an object store."""
        return "://" in self.path

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
        if version not in (1, 2, VERSION):
            raise Corrupt(
                "pool.format",
                f"{name} has format {version}, this program knows {VERSION}",
                remedy="open the pool with the version of Innkeeper that wrote it, or a newer one",
            )
        return pool_id, [Device(**each) for each in facts.get("devices", [])]
    except (ValueError, KeyError, TypeError) as unreadable:
        raise Corrupt("pool.format", f"{name} cannot be read", cause=str(unreadable), remedy=_PUT_BACK) from unreadable


def write_identity(files: FileSystem, path: str, pool_id: UUID, devices: list[Device]) -> None:
    """Put ``pool.json`` there, whole and on the medium. Raises ``OSError``."""
    facts = {"format": VERSION, "pool": str(pool_id), "devices": [asdict(each) for each in devices]}
    _write_json(files, path, "pool.json", facts)


def open_shelf(io: Io, path: str, pool_id: UUID, device: Device) -> ObjectShelf:
    """The shelf of an object store, of the pool in ``path``."""
    blobs = open_blobs(io, device, keys_of(io.files, path, device.id))
    return ObjectShelf(blobs, pool_id, device.path, io.clock, io.random, KEPT_BYTES)


def empty_store(io: Io, path: str, pool_id: UUID, device: Device) -> int:
    """Remove all of a pool from an object store, for a pool that is given up; how many objects. Raises what it says."""
    return remove_all(open_blobs(io, device, keys_of(io.files, path, device.id), ADD_PATIENCE_S), pool_id)


def device_identity(files: FileSystem, path: str) -> tuple[str, str] | None:
    """(pool's id, own id) that a device says, None where it says nothing that can be read."""
    if not files.exists(f"{path}/device.json"):
        return None
    try:
        facts = _read_json(files, f"{path}/device.json")
        if facts.get("format") != DEVICE_VERSION:
            return None
        return str(facts["pool"]), str(facts["device"])
    except (Corrupt, KeyError):
        return None


def write_device_identity(files: FileSystem, path: str, pool_id: UUID, device_id: str) -> None:
    """Put ``device.json`` there, whole and on the medium. Raises ``OSError``."""
    _write_json(files, path, "device.json", {"format": DEVICE_VERSION, "pool": str(pool_id), "device": device_id})


def _read_json(files: FileSystem, name: str) -> dict[str, Any]:
    file = files.open(name)
    try:
        facts = json.loads(file.pread(file.size(), 0))
        if not isinstance(facts, dict):
            raise ValueError("it is no object")
        return facts
    except ValueError as unreadable:
        raise Corrupt("pool.format", f"{name} cannot be read", cause=str(unreadable), remedy=_PUT_BACK) from unreadable


def _write_json(files: FileSystem, directory: str, name: str, facts: dict[str, Any]) -> None:
    fresh = files.open(f"{directory}/{name}.new", create=True)
    fresh.truncate(0)
    write_all(fresh, [json.dumps(facts).encode()], 0)
    fresh.fdatasync()
    fresh.close()
    files.rename(f"{directory}/{name}.new", f"{directory}/{name}")
    files.sync_dir(directory)


class Devices:
    """The devices of an open pool, each directory locked."""

    def __init__(self, io: Io, path: str, pool_id: UUID, others: list[Device]) -> None:
        """Raises ``Unavailable`` (``device.missing``), ``Corrupt`` (``device.foreign``), ``Conflict``."""
        self._io = io
        self._files = io.files
        self._path = path
        self._pool_id = pool_id
        self._locks: dict[str, Lock] = {}
        self.on_changed: Callable[[], None] = lambda: None
        """Called when ``pool.json`` has been changed."""
        self.all: dict[str, Device] = {HOME: Device(HOME, path)}
        self.any_remote = False
        self._shelves: dict[str, Shelf] = {HOME: DirectoryShelf(io.files, self.all[HOME].groups)}
        """Of devices that were let go too: a reader may still have the row of a group that was there."""
        try:
            for device in others:
                if device.source:
                    self._mount(device)
                if not device.remote:
                    self._check(device)
                    self._locks[device.id] = io.files.lock(f"{device.path}/lock")
                self.all[device.id] = device
                self._shelves[device.id] = self._shelf_of(device)
            self.any_remote = bool(self.remote())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

    def _shelf_of(self, device: Device) -> Shelf:
        if not device.remote:
            return DirectoryShelf(self._files, device.groups)
        return open_shelf(self._io, self._path, self._pool_id, device)

    def local(self) -> list[Device]:
        """The directories."""
        return [device for device in self.all.values() if not device.remote]

    def remote(self) -> list[tuple[Device, ObjectShelf]]:
        """The object stores, with their shelves."""
        shelves = [(device, self._shelves[device.id]) for device in list(self.all.values())]
        return [(device, shelf) for device, shelf in shelves if isinstance(shelf, ObjectShelf)]

    def add(self, device: Device, credentials: Credentials | None = None) -> None:
        """Take an empty directory (made where there is none) or an object store into the pool. Blocks; repeated, it
        changes nothing but a store's ``credentials``.

        Raises ``Invalid`` (``device.tier``, ``device.path``), ``Conflict`` (``device.not_empty``, ``device.exists``),
        ``Failed`` (``device.unusable``), and what a store says.
        """
        if device.tier not in TIERS:
            raise Invalid("device.tier", f"there is no tier {device.tier!r}", remedy=f"use {' or '.join(TIERS)}")
        if device.remote and device.tier != SLOW:
            raise Invalid("device.tier", "an object store is no fast device", remedy="add it with --tier slow")
        if not device.remote and not device.path.startswith("/"):
            raise Invalid("device.path", f"{device.path!r} is no absolute path", remedy="give the whole path")
        known = self.all.get(device.id)
        if known == device and not device.remote:
            return
        same = [each.id for each in self.all.values() if each.path == device.path and each.id != device.id]
        if same or (known is not None and known.path != device.path):
            raise Conflict("device.exists", f"the pool has {device.path} already", remedy="see 'inn pool show'")
        try:
            if device.remote:
                self._add_store(device, credentials)
            elif device.source:
                self._add_block_device(device)
            else:
                self._add_directory(device)
        except OSError as refused:
            raise Failed(
                "device.unusable", f"{device.path} cannot be used", cause=str(refused), remedy="look at its disk"
            ) from refused

    def _mount(self, device: Device) -> None:
        try:
            self._io.mounts.attach(device.id, device.path)
        except (Problem, OSError) as refused:
            detail = f"{device.source}, which has a part of the pool in {self._path}, cannot be mounted"
            cause = (refused.cause if isinstance(refused, Problem) else None) or str(refused)
            raise Unavailable("device.missing", detail, cause=cause, remedy="attach the disk again") from refused

    def _add_block_device(self, device: Device) -> None:
        self._mount(device)
        try:
            self._add_directory(device)
        except BaseException:
            self._io.mounts.detach(device.path)
            raise

    def _add_directory(self, device: Device) -> None:
        self._files.mkdir(device.path)
        found = set(self._files.listdir(device.path)) - {"lost+found"}
        if found - {"device.json", "device.json.new", "groups", "copies", "lock"} or not self._is_ours(device, found):
            raise Conflict(
                "device.not_empty",
                f"{device.path} is not empty",
                cause=", ".join(sorted(found)[:5]),
                remedy="give a directory of its own",
            )
        lock = self._files.lock(f"{device.path}/lock")
        self._files.mkdir(device.groups)
        write_device_identity(self._files, device.path, self._pool_id, device.id)
        self._shelves[device.id] = self._shelf_of(device)
        self._write({**self.all, device.id: device})
        self._locks[device.id] = lock

    def _add_store(self, device: Device, credentials: Credentials | None) -> None:
        """Known ones are looked at again, with the new keys if there are any; those count only when they work."""
        before = keys_of(self._files, self._path, device.id)
        blobs = open_blobs(self._io, device, credentials or before, ADD_PATIENCE_S)
        mark(blobs, self._pool_id, device.id)
        if credentials is not None:
            write_keys(self._files, self._path, device.id, credentials)
        self._shelves[device.id] = self._shelf_of(device)
        self._write({**self.all, device.id: device})

    def change(self, device_id: str, state: str) -> None:
        """Set a device's state. Raises ``NotFound`` (``device.not_found``), ``Conflict`` (``device.home``)."""
        self._write({**self.all, device_id: replace(self.other(device_id), state=state)})

    def remove(self, device_id: str) -> None:
        """Let an empty device go, and leave it empty."""
        device = self.other(device_id)
        self._write({key: each for key, each in self.all.items() if key != device_id})
        if device.remote:
            keys = keys_of(self._files, self._path, device_id)
            unmark(open_blobs(self._io, device, keys, ADD_PATIENCE_S), self._pool_id)
            write_keys(self._files, self._path, device_id, None)
            return
        with suppress(OSError):  # it names this pool, which may take it again
            self._files.unlink(f"{device.path}/device.json")
        lock = self._locks.pop(device_id, None)
        if lock is not None:
            lock.close()
        if device.source:
            self._io.mounts.detach(device.path)

    def look(self, device: Device) -> None:
        """See that an object store answers and is the device's. Raises what ``check_mark`` does."""
        keys = keys_of(self._files, self._path, device.id)
        check_mark(open_blobs(self._io, device, keys, ADD_PATIENCE_S), self._pool_id, device.id)

    def shelf(self, device_id: str) -> Shelf:
        """What the groups of a device are in, or were. Raises ``Corrupt`` where pool.json never named it."""
        if device_id not in self._shelves:
            raise corrupt(f"{self._path}/pool.json", 0, f"it does not name device {device_id}, which has groups")
        return self._shelves[device_id]

    def other(self, device_id: str) -> Device:
        """A device that is not the pool's own directory."""
        if device_id == HOME:
            raise Conflict("device.home", "the pool's own directory stays", remedy="name another device")
        if device_id not in self.all:
            raise NotFound("device.not_found", f"the pool has no device {device_id}", remedy="see 'inn pool show'")
        return self.all[device_id]

    def space(self, wanted: Callable[[Device], bool] = lambda device: device.state == ONLINE) -> tuple[int, int]:
        """(total, free) bytes of the file systems of those devices, one that several are on counted once; nothing new
        is written to object stores, so that theirs does not count."""
        volumes: dict[int, tuple[int, int]] = {}
        for device in list(self.all.values()):
            if not device.remote and wanted(device):
                volume, total, free = self.room(device)
                volumes[volume] = total, free
        return sum(total for total, _ in volumes.values()), sum(free for _, free in volumes.values())

    def room(self, device: Device) -> tuple[int, int, int]:
        """(number of the file system, total bytes, free bytes) of a device; nothing where it does not answer, and for
        object stores, which do not say."""
        if device.remote:
            return -1, 0, 0
        try:
            return self._files.volume(device.path), *self._files.space(device.path)
        except OSError:
            return -1, 0, 0

    def place(self, home_reserve_bytes: int, group_bytes: int, tier: str = "") -> Device:
        """Where the next group goes: the device of ``tier`` (fast without one) with most room, one of the other tier
        when none has room for a group."""
        rooms: list[tuple[bool, int, str]] = []
        for device in self.local():
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
        self.any_remote = bool(self.remote())
        self.on_changed()

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
