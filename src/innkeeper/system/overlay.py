"""A file system over another that only seems to change it: what is written stays here and goes with it.

So that a repair can be tried, and what it would do be told, before anything is touched. What is written goes to
unnamed temporary files.
"""

from __future__ import annotations

import errno
import os
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from innkeeper.system.files import Buffer, File, FileSystem, Lock

PAGE = 4096


class _Store:
    """Pages that were written, in one unnamed file."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._end = 0

    def read(self, place: int) -> bytes:
        assert self._file is not None
        return os.pread(self._file.fileno(), PAGE, place)

    def write(self, page: bytes, place: int | None) -> int:
        """Put a page, where it was or at the end; its place."""
        if self._file is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the overlay
        if place is None:
            place, self._end = self._end, self._end + PAGE
        os.pwrite(self._file.fileno(), page, place)
        return place


class _Written:
    """A file as it seems to be: pages that were written, over what lies below."""

    def __init__(self, below: File | None, path: str, store: _Store) -> None:
        self.path = path
        self.below = below
        self.size = below.size() if below is not None else 0
        self.reach = self.size
        """How far what lies below still counts."""
        self.places: dict[int, int] = {}
        """Page -> where it is in ``store``."""
        self.store = store

    def page(self, number: int) -> bytes:
        place = self.places.get(number)
        if place is not None:
            return self.store.read(place)
        start = number * PAGE
        if self.below is None or start >= self.reach:
            return bytes(PAGE)
        return self.below.pread(min(PAGE, self.reach - start), start).ljust(PAGE, b"\0")

    def read(self, length: int, offset: int) -> bytes:
        end = min(self.size, offset + length)
        if end <= offset:
            return b""
        if not self.places and self.below is not None and end <= self.reach:
            return self.below.pread(end - offset, offset)
        first, last = offset // PAGE, -(-end // PAGE)
        data = b"".join(self.page(number) for number in range(first, last))
        return data[offset - first * PAGE : end - first * PAGE]

    def write(self, data: bytes, offset: int) -> None:
        at = 0
        while at < len(data):
            number, within = divmod(offset + at, PAGE)
            part = data[at : at + PAGE - within]
            page = part
            if len(part) < PAGE:
                old = self.page(number)
                page = old[:within] + part + old[within + len(part) :]
            self.places[number] = self.store.write(page, self.places.get(number))
            at += len(part)
        self.size = max(self.size, offset + len(data))

    def resize(self, size: int) -> None:
        if size < self.size:
            edge = size % PAGE
            kept = self.page(size // PAGE)[:edge] if edge else b""
            for number in [each for each in self.places if each * PAGE >= size]:
                self.store.write(bytes(PAGE), self.places[number])
            self.reach = min(self.reach, size // PAGE * PAGE)
            self.size = size // PAGE * PAGE
            if kept:
                self.write(kept.ljust(PAGE, b"\0"), size // PAGE * PAGE)
        self.size = size


class OverlayFile(File):
    """An open file of an ``OverlayFiles``."""

    def __init__(self, written: _Written) -> None:
        self.path = written.path
        self._written = written

    def pread(self, length: int, offset: int) -> bytes:
        return self._written.read(length, offset)

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        return None

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(buffers)
        self._written.write(data, offset)
        return len(data)

    def fdatasync(self) -> None:
        """There is no medium."""

    def write_out(self, offset: int, length: int) -> None:
        """There is no medium."""

    def drop_cache(self) -> None:
        """There is no medium."""

    def allocate(self, size: int) -> None:
        self._written.size = max(self._written.size, size)

    def truncate(self, size: int) -> None:
        self._written.resize(size)

    def size(self) -> int:
        return self._written.size

    def close(self) -> None:
        """It stays for as long as the overlay."""


class OverlayFiles(FileSystem):
    """See the module's docstring. Locks are those of the file system below."""

    def __init__(self, below: FileSystem) -> None:
        self._below = below
        self._files: dict[str, _Written] = {}
        self._gone: set[str] = set()
        self._directories: set[str] = set()
        self._store = _Store()

    def open(self, path: str, *, create: bool = False) -> File:
        written = self._files.get(path)
        if written is None and path in self._directories:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        if written is None:
            below = None
            if path not in self._gone:
                try:
                    below = self._below.open(path)
                except FileNotFoundError:
                    below = None
            if below is None and not create:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            written = self._files[path] = _Written(below, path, self._store)
        return OverlayFile(written)

    def exists(self, path: str) -> bool:
        if path in self._files or path in self._directories:
            return True
        return path not in self._gone and self._below.exists(path)

    def listdir(self, path: str) -> list[str]:
        names = {each.rpartition("/")[2] for each in self._files if each.rpartition("/")[0] == path}
        try:
            below = self._below.listdir(path)
        except FileNotFoundError:
            if path not in self._directories:
                raise
            below = []
        return sorted(names | {name for name in below if f"{path}/{name}" not in self._gone})

    def mkdir(self, path: str) -> None:
        self._directories.add(path)

    def rename(self, old: str, new: str) -> None:
        self.open(old)
        written = self._files.pop(old)
        written.path = new
        self._files[new] = written
        self._gone.add(old)
        self._gone.discard(new)

    def unlink(self, path: str) -> None:
        self.open(path)
        del self._files[path]
        self._gone.add(path)

    def sync_dir(self, path: str) -> None:
        """There is no medium."""

    def space(self, path: str) -> tuple[int, int]:
        return self._below.space(path if self._below.exists(path) else path.rpartition("/")[0])

    def modified_at(self, path: str) -> float:
        return self._below.modified_at(path) if path not in self._files else time.time()

    def volume(self, path: str) -> int:
        return self._below.volume(path if self._below.exists(path) else path.rpartition("/")[0])

    def lock(self, path: str) -> Lock:
        return self._below.lock(path)
