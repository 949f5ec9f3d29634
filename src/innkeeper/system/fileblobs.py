"""Blobs as files of one directory, through the injectable file system: a network file system, or a simulated one."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import quote, unquote

from innkeeper.model.problems import Failed, NoSpace, Unavailable
from innkeeper.system.blobs import Address, BlobFacts, Buffer, absent, check_name, taken
from innkeeper.system.clock import Clock
from innkeeper.system.files import FileSystem, write_all

UNFINISHED = ".new"
_AWAY = (errno.ENOTCONN, errno.ESTALE, errno.EHOSTDOWN, errno.ENODEV)


class FileBlobs:
    """One directory; a file has its blob's name, with ``/`` as ``%2F``. Made as ``.new``, renamed when whole."""

    def __init__(self, files: FileSystem, directory: str, clock: Clock) -> None:
        self._files = files
        self._directory = directory.rstrip("/")
        self._clock = clock
        self._one_name = threading.Lock()

    @classmethod
    def open(cls, address: Address, files: FileSystem, clock: Clock) -> FileBlobs:
        return cls(files, "/" + address.url.partition("://")[2].strip("/"), clock)

    def _path(self, name: str) -> str:
        return f"{self._directory}/{quote(check_name(name), safe='')}"

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        path = self._path(name)
        unfinished = path + UNFINISHED
        with self._translated(name), self._one_name:
            self._files.mkdir(self._directory)
            if self._files.exists(path):
                raise taken(name, self._directory)
            try:
                file = self._files.open(unfinished, create=True)
                file.truncate(0)
                write_all(file, parts, 0)
                file.fdatasync()
                file.close()
                self._files.rename(unfinished, path)
            except OSError:
                with suppress(OSError):  # what stays goes with the next ``clean``
                    self._files.unlink(unfinished)
                raise
            self._files.sync_dir(self._directory)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        with self._translated(name):
            file = self._files.open(self._path(name))
            return file.pread(max(0, file.size() - offset) if length is None else length, offset)

    def size(self, name: str) -> int:
        with self._translated(name):
            return self._files.open(self._path(name)).size()

    def ls(self, prefix: str) -> Iterator[BlobFacts]:
        folder = prefix.rstrip("/") + "/"
        for entry in self._entries():
            name = unquote(entry)
            if entry.endswith(UNFINISHED) or not name.startswith(folder):
                continue
            with suppress(FileNotFoundError):  # deleted between the listing and now
                path = f"{self._directory}/{entry}"
                yield BlobFacts(name, self._files.open(path).size(), self._files.modified_at(path))

    def delete(self, name: str) -> None:
        with self._translated(name), suppress(FileNotFoundError):
            self._files.unlink(self._path(name))

    def clean(self, older_than_s: float) -> int:
        removed = 0
        with self._translated(""), self._one_name:
            for entry in self._entries():
                path = f"{self._directory}/{entry}"
                if entry.endswith(UNFINISHED) and self._clock.now() - self._files.modified_at(path) >= older_than_s:
                    self._files.unlink(path)
                    removed += 1
        return removed

    def _entries(self) -> list[str]:
        with self._translated(""):
            return self._files.listdir(self._directory) if self._files.exists(self._directory) else []

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as missing:
            raise absent(name, self._directory) from missing
        except OSError as refused:
            cause = os.strerror(refused.errno) if refused.errno else str(refused)
            if refused.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise NoSpace("blob.full", f"{self._directory} is full", cause=cause, remedy="free space") from refused
            if refused.errno in _AWAY:
                detail = f"{self._directory} cannot be reached"
                raise Unavailable("blob.unreachable", detail, cause=cause, remedy="mount it again") from refused
            detail, remedy = f"{self._directory} refuses", "check the permissions and the medium"
            raise Failed("blob.io", detail, cause=cause, remedy=remedy) from refused
