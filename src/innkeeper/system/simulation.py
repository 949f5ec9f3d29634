"""A file system in memory that forgets what a power cut would forget and fails when it is told to.

Model: a file has bytes as processes see them (the page cache) and bytes on the medium; writes since the last
``fdatasync`` wait in order. A power cut keeps any subset of the waiting writes, each whole or torn at 512-byte sectors,
and of each directory's waiting changes a prefix. The end of a process keeps everything. Calls are numbered, so that a
test can let the n-th one fail, or be the last one before the crash.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from innkeeper.model.problems import Conflict
from innkeeper.system.clock import SeededRandomness, SimulatedClock, SimulatedScheduler
from innkeeper.system.files import Buffer, File, FileSystem, Io, Lock

SECTOR = 512
EIO = "eio"
ENOSPC = "enospc"
SHORT = "short"
CRASH = "crash"


class SimulatedCrash(BaseException):
    """The machine or the process ended in the middle of a call; nothing may catch it but the test."""


@dataclass
class Inode:
    """A file without its name."""

    content: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    waiting: list[tuple[int, bytes | None]] = field(default_factory=list)
    """(offset, bytes) of a write, or (size, None) of a truncation, in order."""


@dataclass
class Change:
    """A waiting change of a directory: ``path`` names ``inode`` from now on, or nothing."""

    directory: str
    path: str
    inode: Inode | None


@dataclass
class Written:
    """A write, or with ``data`` None a change of the size to ``offset``."""

    inode: Inode
    offset: int
    data: bytes | None


@dataclass
class FileSync:
    """An fdatasync; one that failed leaves what waited unwritten, and nobody waits for it any more."""

    inode: Inode
    succeeded: bool


@dataclass
class DirectorySync:
    directory: str


Event = Change | Written | FileSync | DirectorySync


def apply(target: bytearray, offset: int, data: bytes | None) -> None:
    """Do to a file's bytes what a write, or with ``data`` None a change of size, does."""
    if data is None:
        if len(target) > offset:
            del target[offset:]
        else:
            target.extend(bytes(offset - len(target)))
        return
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


class SimulatedFiles(FileSystem):
    """See the module's docstring. ``capacity_bytes`` is the size of the medium; ``process`` is what to give a pool."""

    def __init__(self, seed: int = 0, *, capacity_bytes: int = 1 << 40) -> None:
        self.random = Random(seed)
        self.capacity_bytes = capacity_bytes
        self.calls = 0
        """Calls so far that can fail: opens, writes, syncs, changes of names."""
        self.syncs = 0
        self.faults: dict[int, str] = {}
        """Number of a call -> what it does: ``eio``, ``enospc``, ``short`` (writes), ``crash``."""
        self.fired: list[tuple[int, str, str]] = []
        """(call, fault, what was called) of faults that happened."""
        self.failing_from: tuple[int, str] | None = None
        """From that call on every one fails so: ``eio`` all, ``enospc`` those that need more space."""
        self.lose_pages_on_failed_sync = False
        """Whether a failed fdatasync also throws the unsynced bytes out of the page cache."""
        self.life = 0
        self._dead = False
        self._names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self._changes: list[Change] = []
        self._directories: set[str] = {"/"}
        self._locked: dict[str, int] = {}

    # -- faults and crashes ----------------------------------------------------------------------------------------

    def count(self, what: str) -> str | None:
        """Number a call; returns ``short`` when the call is to be cut, raises when it is to fail."""
        if self._dead:
            raise SimulatedCrash
        self.calls += 1
        fault = self.faults.pop(self.calls, None) or self._lasting_fault(what)
        if fault is None:
            return None
        self.fired.append((self.calls, fault, what))
        if fault == CRASH:
            self._dead = True
            raise SimulatedCrash
        if fault == SHORT:
            return SHORT
        code = errno.ENOSPC if fault == ENOSPC else errno.EIO
        raise OSError(code, os.strerror(code), what)

    def _lasting_fault(self, what: str) -> str | None:
        if self.failing_from is None or self.calls < self.failing_from[0]:
            return None
        fault = self.failing_from[1]
        return fault if fault != ENOSPC or what.startswith(("write", "allocate", "create", "mkdir")) else None

    @property
    def dead(self) -> bool:
        """Whether the crash has come and neither ``end_process`` nor ``cut_power`` has ended it."""
        return self._dead

    def alive(self, life: int) -> bool:
        """False for handles of an earlier life, whose calls must do nothing; raises in the middle of a crash."""
        if life != self.life:
            return False
        if self._dead:
            raise SimulatedCrash
        return True

    def end_process(self) -> None:
        """Every handle and lock is gone; all that was written stays."""
        self._dead = False
        self.life += 1
        self.faults.clear()
        self.failing_from = None
        self._locked.clear()

    def cut_power(self) -> None:
        """As ``end_process``, and of what was not synced only a random part is left."""
        self.end_process()
        for inode in {id(each): each for each in [*self._names.values(), *self._durable_names.values()]}.values():
            for offset, data in inode.waiting:
                self._keep_some(inode.durable, offset, data)
            inode.waiting.clear()
            inode.content = bytearray(inode.durable)
        directories = {change.directory for change in self._changes}
        for directory in sorted(directories):
            changes = [change for change in self._changes if change.directory == directory]
            for change in changes[: self.random.randint(0, len(changes))]:
                self._settle(change)
        self._changes.clear()
        self._names = dict(self._durable_names)

    def _keep_some(self, durable: bytearray, offset: int, data: bytes | None) -> None:
        lot = self.random.random()
        if lot < 0.4:
            return
        if data is None or lot < 0.7:
            apply(durable, offset, data)
            return
        at = 0
        while at < len(data):
            size = min(len(data) - at, SECTOR - (offset + at) % SECTOR)
            if self.random.random() < 0.5:
                apply(durable, offset + at, data[at : at + size])
            at += size

    def _settle(self, change: Change) -> None:
        if change.inode is None:
            self._durable_names.pop(change.path, None)
        else:
            self._durable_names[change.path] = change.inode

    def process(self) -> FileSystem:
        """The file system as the process of this life sees it; useless once that has ended."""
        return _Process(self)

    # -- the file system's calls -----------------------------------------------------------------------------------

    def open(self, path: str, *, create: bool = False) -> File:
        inode = self._names.get(path)
        self.count(f"{'create' if create and inode is None else 'open'} {path}")
        if inode is None:
            if not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            inode = Inode()
            self._name(path, inode)
        return SimulatedFile(self, path, inode)

    def _name(self, path: str, inode: Inode | None) -> None:
        if inode is None:
            del self._names[path]
        else:
            self._names[path] = inode
        change = Change(path.rpartition("/")[0], path, inode)
        self._changes.append(change)
        self.noted(change)

    def exists(self, path: str) -> bool:
        return path in self._names or path in self._directories

    def listdir(self, path: str) -> list[str]:
        if path not in self._directories:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return sorted(name.rpartition("/")[2] for name in self._names if name.rpartition("/")[0] == path)

    def mkdir(self, path: str) -> None:
        self.count(f"mkdir {path}")
        self._directories.add(path)

    def rename(self, old: str, new: str) -> None:
        self.count(f"rename {old}")
        inode = self._names[old]
        self._name(new, inode)
        self._name(old, None)

    def unlink(self, path: str) -> None:
        self.count(f"unlink {path}")
        if path not in self._names:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        self._name(path, None)

    def sync_dir(self, path: str) -> None:
        self.count(f"sync_dir {path}")
        self.syncs += 1
        self.noted(DirectorySync(path))
        for change in self._changes:
            if change.directory == path:
                self._settle(change)
        self._changes = [change for change in self._changes if change.directory != path]

    def noted(self, event: Event) -> None:
        """Told of every change of a file or a directory, and of every sync; ``RecordedFiles`` keeps them."""

    def used_bytes(self) -> int:
        return sum(len(inode.content) for inode in self._names.values())

    def space(self, path: str) -> tuple[int, int]:
        return self.capacity_bytes, max(0, self.capacity_bytes - self.used_bytes())

    def modified_at(self, path: str) -> float:
        """Long ago: in this world everything is old."""
        return 0.0

    def volume(self, path: str) -> int:
        return 0

    def lock(self, path: str) -> Lock:
        if self._locked.get(path) == self.life:
            raise Conflict("pool.locked", f"{path} is locked by another process")
        self._locked[path] = self.life
        return _SimulatedLock(self, path)

    # -- for tests -------------------------------------------------------------------------------------------------

    def paths(self) -> list[str]:
        return sorted(self._names)

    def peek(self, path: str) -> bytes:
        """A file's bytes as processes see them."""
        return bytes(self._names[path].content)

    def damage(self, path: str, offset: int, data: bytes) -> None:
        """Change stored bytes behind everybody's back."""
        inode = self._names[path]
        apply(inode.content, offset, data)
        apply(inode.durable, offset, data)

    def put_files(self, files: Mapping[str, bytes | bytearray], directories: Iterable[str]) -> None:
        """Let those files be on the medium, and nothing waiting."""
        self._directories.update(directories)
        for path, content in files.items():
            self._names[path] = Inode(bytearray(content), bytearray(content))
        self._durable_names = dict(self._names)

    def take(self, other: SimulatedFiles) -> None:
        """Have what processes see of another machine, all of it on the medium."""
        self.put_files({path: inode.content for path, inode in other.names.items()}, other.directories)

    @property
    def directories(self) -> set[str]:
        return self._directories

    @property
    def names(self) -> dict[str, Inode]:
        return self._names

    def state(self) -> dict[str, bytes]:
        """Every name with its bytes on the medium."""
        return {path: bytes(inode.durable) for path, inode in self._durable_names.items()}


class SimulatedFile(File):
    """An open file of a ``SimulatedFiles``; dead once the process ended."""

    def __init__(self, files: SimulatedFiles, path: str, inode: Inode) -> None:
        self.path = path
        self._files = files
        self._inode = inode
        self._life = files.life

    def _count(self, what: str) -> str | None:
        if not self._files.alive(self._life):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF), self.path)
        return self._files.count(f"{what} {self.path}")

    def pread(self, length: int, offset: int) -> bytes:
        if not self._files.alive(self._life):
            return b""
        return bytes(self._inode.content[offset : offset + length])

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        if self._files.random.random() < 0.1:
            return None
        data = self.pread(length, offset)
        return data if len(data) == length else None

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(buffers)
        try:
            within = offset + len(data) <= len(self._inode.content)
            cut = self._count("overwrite" if within else "write")
        except SimulatedCrash:
            if self._life == self._files.life:
                self._write(data[: self._files.random.randint(0, len(data))], offset)
            raise
        if cut and len(data) > 1:
            data = data[: self._files.random.randint(1, len(data) - 1)]
        grows = offset + len(data) - len(self._inode.content)
        if grows > 0 and self._files.used_bytes() + grows > self._files.capacity_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        self._write(data, offset)
        return len(data)

    def _write(self, data: bytes, offset: int) -> None:
        apply(self._inode.content, offset, data)
        self._inode.waiting.append((offset, data))
        self._files.noted(Written(self._inode, offset, data))

    def fdatasync(self) -> None:
        inode = self._inode
        try:
            self._count("fdatasync")
        except OSError:
            if self._life != self._files.life:
                raise
            inode.waiting.clear()
            self._files.noted(FileSync(inode, False))
            if self._files.lose_pages_on_failed_sync:
                inode.content = bytearray(inode.durable)
            raise
        self._files.syncs += 1
        self._files.noted(FileSync(inode, True))
        for offset, data in inode.waiting:
            apply(inode.durable, offset, data)
        inode.waiting.clear()

    def write_out(self, offset: int, length: int) -> None:
        self._files.alive(self._life)

    def drop_cache(self) -> None:
        """After a sync nothing differs from the medium, save what a failed sync left behind."""
        self._files.alive(self._life)
        if not self._inode.waiting and self._life == self._files.life:
            self._inode.content = bytearray(self._inode.durable)

    def allocate(self, size: int) -> None:
        self._count("allocate")
        if size > len(self._inode.content):
            grows = size - len(self._inode.content)
            if self._files.used_bytes() + grows > self._files.capacity_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            self._change_size(size)

    def truncate(self, size: int) -> None:
        self._count("truncate")
        self._change_size(size)

    def _change_size(self, size: int) -> None:
        apply(self._inode.content, size, None)
        self._inode.waiting.append((size, None))
        self._files.noted(Written(self._inode, size, None))

    def size(self) -> int:
        self._files.alive(self._life)
        return len(self._inode.content)

    def close(self) -> None:
        """Nothing to give back."""


class _SimulatedLock(Lock):
    def __init__(self, files: SimulatedFiles, path: str) -> None:
        self._files = files
        self._path = path
        self._life = files.life

    def close(self) -> None:
        if self._files._locked.get(self._path) == self._life:
            del self._files._locked[self._path]


class _Process(FileSystem):
    """Passes calls on as long as its life lasts."""

    def __init__(self, machine: SimulatedFiles) -> None:
        self._machine = machine
        self._life = machine.life

    def _living(self) -> SimulatedFiles:
        if not self._machine.alive(self._life):
            raise OSError(errno.EBADF, "this process has ended")
        return self._machine

    def open(self, path: str, *, create: bool = False) -> File:
        return self._living().open(path, create=create)

    def exists(self, path: str) -> bool:
        return self._living().exists(path)

    def listdir(self, path: str) -> list[str]:
        return self._living().listdir(path)

    def mkdir(self, path: str) -> None:
        self._living().mkdir(path)

    def rename(self, old: str, new: str) -> None:
        self._living().rename(old, new)

    def unlink(self, path: str) -> None:
        self._living().unlink(path)

    def sync_dir(self, path: str) -> None:
        self._living().sync_dir(path)

    def space(self, path: str) -> tuple[int, int]:
        return self._living().space(path)

    def modified_at(self, path: str) -> float:
        return self._living().modified_at(path)

    def volume(self, path: str) -> int:
        return self._living().volume(path)

    def lock(self, path: str) -> Lock:
        return self._living().lock(path)


def simulated_io(seed: int = 0, *, capacity_bytes: int = 1 << 40) -> tuple[Io, SimulatedFiles]:
    """A whole simulated machine for a pool, and its files for the test to play with."""
    files = SimulatedFiles(seed, capacity_bytes=capacity_bytes)
    return Io(files.process(), SimulatedClock(), SeededRandomness(seed), SimulatedScheduler()), files
