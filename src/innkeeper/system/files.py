"""Files, injectable: what the fabric may do to a file system, and the real one.

The simulated file system of ``innkeeper.system.simulation`` offers the same calls in memory, records which bytes were
synced, fails the call it is told to fail and loses what a power cut would lose.

Contracts that hold for both:

* ``pwritev`` may write less than it was given; ``write_all`` goes on until all is written.
* What was written is read back at once by every handle of the file (the page cache), and is on the medium only after
  ``fdatasync`` returned. After a failed ``fdatasync`` nothing is known about bytes that were not synced before.
* A created, renamed or removed name is on the medium only after ``sync_dir`` of its directory returned.
* A handle closes when it is closed or when the last reference to it goes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from ctypes import CDLL, c_int, c_int64, c_uint, get_errno
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from innkeeper.model.problems import Conflict
from innkeeper.system.clock import Clock, Randomness, RealClock, RealRandomness, RealScheduler, Scheduler
from innkeeper.system.mounts import Mounts, RealMounts

if TYPE_CHECKING:
    from innkeeper.system.blobs import Address, Blobs

Buffer = bytes | bytearray | memoryview
IOV_MAX = 1024


class File(ABC):
    """An open file. All lengths and offsets in bytes; every call may raise ``OSError``."""

    path: str
    far = False
    """Whether reading it takes so long that more is read than was asked for, and kept."""

    @abstractmethod
    def pread(self, length: int, offset: int) -> bytes:
        """The bytes there; fewer only at the end of the file."""

    @abstractmethod
    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        """The bytes there when all are in memory, else ``None``."""

    @abstractmethod
    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        """Write the buffers one behind the other; returns how many bytes were taken."""

    @abstractmethod
    def fdatasync(self) -> None:
        """Everything written so far is on the medium when this returns."""

    @abstractmethod
    def write_out(self, offset: int, length: int) -> None:
        """Begin to write the range to the medium in the background; promises nothing."""

    @abstractmethod
    def drop_cache(self) -> None:
        """Forget clean pages, so that the next read comes from the medium where that is possible."""

    @abstractmethod
    def allocate(self, size: int) -> None:
        """Reserve space up to ``size``; the file is that long afterwards, new bytes read as zeros."""

    @abstractmethod
    def truncate(self, size: int) -> None: ...

    @abstractmethod
    def size(self) -> int: ...

    @abstractmethod
    def close(self) -> None: ...


class Lock(ABC):
    """An exclusive lock on a file, held until closed or until the process ends."""

    @abstractmethod
    def close(self) -> None: ...


class FileSystem(ABC):
    """Names and files. Paths are absolute strings."""

    @abstractmethod
    def open(self, path: str, *, create: bool = False) -> File:
        """Open for reading and writing; ``FileNotFoundError`` unless ``create``."""

    @abstractmethod
    def exists(self, path: str) -> bool: ...

    @abstractmethod
    def listdir(self, path: str) -> list[str]: ...

    @abstractmethod
    def mkdir(self, path: str) -> None:
        """Make the directory and its parents; an existing one is left."""

    @abstractmethod
    def rename(self, old: str, new: str) -> None: ...

    @abstractmethod
    def unlink(self, path: str) -> None: ...

    @abstractmethod
    def sync_dir(self, path: str) -> None: ...

    @abstractmethod
    def space(self, path: str) -> tuple[int, int]:
        """(total, free) bytes of the file system that holds ``path``."""

    @abstractmethod
    def modified_at(self, path: str) -> float:
        """When the file was written last, in seconds since 1970."""

    @abstractmethod
    def volume(self, path: str) -> int:
        """A number that paths on the same file system share."""

    @abstractmethod
    def lock(self, path: str) -> Lock:
        """Lock the file without waiting; raises ``Conflict`` (``pool.locked``) when another process holds it."""


def write_all(file: File, buffers: Sequence[Buffer], offset: int) -> int:
    """Write all buffers at ``offset``, however the file system cuts them; returns the bytes written."""
    start = offset
    for first in range(0, len(buffers), IOV_MAX):
        part: list[Buffer] = list(buffers[first : first + IOV_MAX])
        total = sum(map(len, part))
        while total:
            written = file.pwritev(part, offset)
            if written <= 0:
                raise OSError(errno.EIO, "the file takes no more bytes", file.path)
            offset += written
            total -= written
            if total:
                part = _rest(part, written)
    return offset - start


def _rest(buffers: Sequence[Buffer], written: int) -> list[Buffer]:
    for index, buffer in enumerate(buffers):
        if written < len(buffer):
            return [memoryview(buffer)[written:], *buffers[index + 1 :]]
        written -= len(buffer)
    return []


_LIBC = CDLL(None, use_errno=True)
_LIBC.sync_file_range.argtypes = [c_int, c_int64, c_int64, c_uint]
_SYNC_FILE_RANGE_WRITE = 2


class RealFile(File):
    """A file of the operating system."""

    __slots__ = ("_fd", "_nowait", "path")

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd
        self._nowait = True

    def pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        if len(data) == length or not data:
            return data
        parts = [data]
        have = len(data)
        while have < length and (data := os.pread(self._fd, length - have, offset + have)):
            parts.append(data)
            have += len(data)
        return b"".join(parts)

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        buffer = bytearray(length)
        try:
            got = os.preadv(self._fd, (buffer,), offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as refused:
            if refused.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
                return None
            raise
        return bytes(buffer) if got == length else None

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        return os.pwritev(self._fd, buffers, offset)

    def fdatasync(self) -> None:
        os.fdatasync(self._fd)

    def write_out(self, offset: int, length: int) -> None:
        if _LIBC.sync_file_range(self._fd, offset, length, _SYNC_FILE_RANGE_WRITE) and get_errno() not in (
            errno.ENOSYS,
            errno.EINVAL,
            errno.ESPIPE,
            0,
        ):
            raise OSError(get_errno(), os.strerror(get_errno()), self.path)

    def drop_cache(self) -> None:
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def allocate(self, size: int) -> None:
        if size > self.size():
            os.posix_fallocate(self._fd, 0, size)

    def truncate(self, size: int) -> None:
        os.ftruncate(self._fd, size)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class RealLock(Lock):
    """``flock`` on a file; never inherited by child processes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def __del__(self) -> None:
        self.close()


class RealFiles(FileSystem):
    """The operating system's files, made readable for their owner only."""

    def open(self, path: str, *, create: bool = False) -> File:
        return RealFile(path, os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600))

    def exists(self, path: str) -> bool:
        return os.path.exists(path)  # noqa: PTH110 - paths are strings in this layer

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))  # noqa: PTH208 - paths are strings in this layer

    def mkdir(self, path: str) -> None:
        os.makedirs(path, mode=0o700, exist_ok=True)  # noqa: PTH103 - paths are strings in this layer

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new)  # noqa: PTH104 - paths are strings in this layer

    def unlink(self, path: str) -> None:
        os.unlink(path)  # noqa: PTH108 - paths are strings in this layer

    def sync_dir(self, path: str) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def space(self, path: str) -> tuple[int, int]:
        facts = os.statvfs(path)
        usable = facts.f_blocks - facts.f_bfree + facts.f_bavail  # as df(1) counts: not what is root's alone
        return usable * facts.f_frsize, facts.f_bavail * facts.f_frsize

    def modified_at(self, path: str) -> float:
        return Path(path).stat().st_mtime

    def volume(self, path: str) -> int:
        return Path(path).stat().st_dev

    def lock(self, path: str) -> Lock:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as held:
            os.close(fd)
            raise Conflict(
                "pool.locked",
                f"{path} is locked by another process",
                remedy="end the fabric that serves this pool, or choose another directory",
            ) from held
        return RealLock(fd)


@dataclass(frozen=True)
class Io:
    """Everything the fabric reaches the machine through."""

    files: FileSystem = field(default_factory=RealFiles)
    clock: Clock = field(default_factory=RealClock)
    random: Randomness = field(default_factory=RealRandomness)
    scheduler: Scheduler = field(default_factory=RealScheduler)
    stores: Mapping[str, Callable[[Address, FileSystem, Clock], Blobs]] = field(default_factory=dict)
    """Drivers of blobs that take the place of those in ``innkeeper.system.stores``."""
    mounts: Mounts = field(default_factory=RealMounts)
