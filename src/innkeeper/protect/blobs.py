"""Blobs: the ground a repository stands on. Write once, read a range, list, delete.

A driver is one class plus one line in ``DRIVERS``; all drivers pass ``tests/support/blobs_conformance.py``.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from innkeeper.model.problems import Conflict, Failed, Invalid, NoSpace, NotFound, Problem, Unavailable
from innkeeper.system import blobs as system
from innkeeper.system.blobs import BlobFacts, Buffer
from innkeeper.system.bulk import write_bulk

_TEMPORARY = "tmp"


class Blobs(system.Blobs, Protocol):
    """What repositories stand on: blobs, and files of this machine where they are such. The problems' kind is
    ``repository``."""

    def local_path(self, name: str) -> Path | None:
        """A file of this machine that holds the blob, to be mapped into memory; ``None`` where there is none."""


def absent(name: str) -> NotFound:
    """The problem of a blob that is not there."""
    return NotFound("blob.absent", f"the repository has no {name}", remedy="verify the repository")


def taken(name: str) -> Conflict:
    """The problem of a name that is taken."""
    return Conflict("blob.exists", f"the repository has {name} already")


def problem_of(error: OSError, where: str) -> Problem:
    """The problem that an operating system error at ``where`` means."""
    cause = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace(
            "repository.full",
            f"there is no space left at {where}",
            cause=cause,
            remedy="remove restore points and prune, or give the repository more space; nothing half-made was left",
        )
    if error.errno in (errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN, errno.ENODEV):
        return Unavailable("repository.unreachable", f"{where} cannot be reached", cause=cause, remedy="mount it again")
    return Failed("repository.io", f"{where} refuses", cause=cause, remedy="check the permissions and the medium")


@contextmanager
def _translated(name: str, where: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as missing:
        raise absent(name) from missing
    except OSError as refused:
        raise problem_of(refused, str(where)) from refused


class DirectoryBlobs:
    """Blobs as files below a directory, made in ``tmp/`` and given their name when whole and synced."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, name: str) -> Path:
        if not name or name.startswith("/") or any(part in ("", ".", "..", _TEMPORARY) for part in name.split("/")):
            raise Invalid("blob.name", f"{name!r} is no name of a blob")
        return self.root / name

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        final = self._path(name)
        temporary = self.root / _TEMPORARY / secrets.token_hex(16)
        with _translated(name, final):
            self._make_directories(temporary.parent)
            self._make_directories(final.parent)
            try:
                _write_synced(temporary, parts)
                # A link fails where the name is taken; a rename would silently replace.
                os.link(temporary, final)
            except FileExistsError:
                raise taken(name) from None
            finally:
                temporary.unlink(missing_ok=True)
            _sync_directory(final.parent)

    def _make_directories(self, directory: Path) -> None:
        if directory.is_dir():
            return
        if directory != self.root:
            self._make_directories(directory.parent)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            return
        _sync_directory(directory.parent)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self._path(name)
        with _translated(name, path):
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                wanted = os.fstat(fd).st_size - offset if length is None else length
                return _pread_all(fd, max(wanted, 0), offset)
            finally:
                os.close(fd)

    def size(self, name: str) -> int:
        path = self._path(name)
        with _translated(name, path):
            return path.stat().st_size

    def ls(self, prefix: str) -> Iterator[BlobFacts]:
        folder = self._path(prefix.rstrip("/"))
        pending = [folder]
        while pending:
            directory = pending.pop()
            try:
                entries = list(os.scandir(directory))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as refused:
                raise problem_of(refused, str(directory)) from refused
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                try:
                    size_bytes = entry.stat().st_size
                except FileNotFoundError:
                    continue  # deleted between the listing and now
                yield BlobFacts(str(Path(entry.path).relative_to(self.root)), size_bytes)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with _translated(name, path):
            path.unlink(missing_ok=True)

    def local_path(self, name: str) -> Path | None:
        return self._path(name)

    def clean(self, older_than_s: float) -> int:
        removed = 0
        with _translated(_TEMPORARY, self.root):
            try:
                entries = list(os.scandir(self.root / _TEMPORARY))
            except FileNotFoundError:
                return 0
            # The file system's own clock, as another machine may have written here.
            probe = self.root / _TEMPORARY / secrets.token_hex(16)
            probe.touch()
            present = probe.stat().st_mtime
            probe.unlink()
            for entry in entries:
                if present - entry.stat().st_mtime >= older_than_s:
                    Path(entry.path).unlink(missing_ok=True)
                    removed += 1
        return removed


def _write_synced(path: Path, parts: Sequence[Buffer]) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_bulk(fd, parts)
        os.fsync(fd)
    finally:
        os.close(fd)


def _pread_all(fd: int, length: int, offset: int) -> bytes:
    data = os.pread(fd, length, offset)
    if len(data) == length or not data:
        return data
    parts = [data]
    have = len(data)
    while have < length and (data := os.pread(fd, length - have, offset + have)):
        parts.append(data)
        have += len(data)
    return b"".join(parts)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


DRIVERS: dict[str, Callable[[Path], Blobs]] = {
    "directory": DirectoryBlobs,
}
"""Driver name -> how to open it at a location."""
