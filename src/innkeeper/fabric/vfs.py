"""SQLite's file access through the injectable layer: meta's writes are recorded, failed and lost like all others.

The databases are used by one process under the pool's lock, in exclusive mode with a write-ahead log: SQLite then needs
neither shared memory nor file locks.
"""

from __future__ import annotations

import itertools
from typing import Any

import apsw

from innkeeper.fabric.layout import PAGE, crc32c
from innkeeper.system.files import File, FileSystem, write_all

_NAMES = itertools.count()
SUM_BYTES = 8
"""At the end of each page of a database whose pages have checksums: SQLite's write-ahead log has its own."""
_SUM_MAGIC = b"isum"
RESERVED_AT = 20
"""Where the first page of a database says how many bytes SQLite leaves alone at the end of each."""


class FabricVfs(apsw.VFS):
    """An SQLite VFS over a ``FileSystem``. Register once for a pool; ``close`` unregisters."""

    def __init__(self, files: FileSystem) -> None:
        self.files = files
        self.name = f"innkeeper-{next(_NAMES)}"
        self.log: VfsFile | None = None
        """The open write-ahead log."""
        self.failed = False
        """A write or a sync of the log has failed: what it was given since ``begin`` must not count."""
        self.sums_pages = False
        """Whether the pages of the database have checksums (``SUM_BYTES`` at their ends)."""
        super().__init__(self.name, "")

    def close(self) -> None:
        self.unregister()

    def begin(self) -> None:
        """A transaction begins."""
        if self.log is not None:
            self.log.written_from = None

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802
        return self.files.exists(pathname)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        try:
            self.files.unlink(filename)
            if syncdir:
                self.files.sync_dir(filename.rpartition("/")[0])
        except FileNotFoundError as absent:
            raise apsw.IOError(str(absent)) from absent
        except OSError as refused:
            raise _refused(refused) from refused

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802
        path = name if isinstance(name, str) else name.filename()
        try:
            file = VfsFile(self, path, bool(flags[0] & apsw.SQLITE_OPEN_CREATE))
            if flags[0] & apsw.SQLITE_OPEN_WAL:
                self.log = file
            elif flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
                file.sums_pages = self.sums_pages
        except OSError as refused:
            raise apsw.CantOpenError(str(refused)) from refused
        flags[1] = flags[0]
        return file

    def excepthook(self, etype: Any, evalue: Any, etraceback: Any) -> bool:
        """SQLite has seen the error code already; a call that cannot pass on the exception need not print it."""
        return True

    def xRandomness(self, numbytes: int) -> bytes:  # noqa: N802
        return bytes(numbytes)

    def xSleep(self, microseconds: int) -> int:  # noqa: N802
        return microseconds

    def xCurrentTimeInt64(self) -> int:  # noqa: N802
        return 210866760000000

    def xCurrentTime(self) -> float:  # noqa: N802
        return 2440587.5

    def xGetLastError(self) -> tuple[int, str]:  # noqa: N802
        return 0, ""


class VfsFile:  # the calls of apsw.VFSFile, which itself insists on a real file
    """An open database or write-ahead log."""

    def __init__(self, vfs: FabricVfs, path: str, create: bool) -> None:
        files = vfs.files
        self._vfs = vfs
        self._unsynced_from: int | None = None
        self.written_from: int | None = None
        """The lowest offset written since the transaction began."""
        self.sums_pages = False
        fresh = create and not files.exists(path)
        self._file: File = files.open(path, create=create)
        if fresh:
            files.sync_dir(path.rpartition("/")[0])

    def excepthook(self, etype: Any, evalue: Any, etraceback: Any) -> bool:
        """As the VFS's."""
        return True

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        try:
            data = self._file.pread(amount, offset)
        except OSError as refused:
            raise _refused(refused) from refused
        if self.sums_pages and amount == PAGE and not offset % PAGE and data and summed(data, offset) != data:
            raise apsw.CorruptError(f"the page at byte {offset} fails its checksum")
        return data

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if self.sums_pages and len(data) == PAGE:
            data = summed(bytes(data), offset)
        self._unsynced_from = offset if self._unsynced_from is None else min(offset, self._unsynced_from)
        self.written_from = offset if self.written_from is None else min(offset, self.written_from)
        try:
            write_all(self._file, [bytes(data)], offset)
        except OSError as refused:
            self._vfs.failed |= self._vfs.log is self
            raise _refused(refused) from refused

    def xSync(self, flags: int) -> None:  # noqa: N802
        try:
            self._file.fdatasync()
            self._unsynced_from = None
        except OSError as refused:
            self._vfs.failed |= self._vfs.log is self
            raise _refused(refused) from refused

    def cut_failed(self) -> None:
        """Drop what came since the transaction began or the last sync: it must not come back, in whole or in part.

        A log is written from its start only after all it held went to the database, so cutting from the lowest offset
        written since loses nothing that was committed.
        """
        starts = [start for start in (self._unsynced_from, self.written_from) if start is not None]
        if starts:
            self._file.truncate(min(starts))
        self._file.fdatasync()
        self._file.drop_cache()

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        try:
            self._file.truncate(newsize)
        except OSError as refused:
            raise _refused(refused) from refused

    def xFileSize(self) -> int:  # noqa: N802
        return self._file.size()

    def xClose(self) -> None:  # noqa: N802
        self._file.close()

    def xLock(self, level: int) -> None:  # noqa: N802
        """The pool's lock excludes every other process."""

    def xUnlock(self, level: int) -> None:  # noqa: N802
        """See ``xLock``."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, op: int, pointer: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return 4096

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return 0


def has_sum(page: bytes) -> bool:
    """Whether the page looks as if it had a checksum."""
    return page[PAGE - SUM_BYTES : PAGE - 4] == _SUM_MAGIC


def summed(page: bytes, offset: int) -> bytes:
    """The page with its checksum, which counts its place too, in the bytes that SQLite leaves alone."""
    body = page[: PAGE - SUM_BYTES]
    crc: int = crc32c(body + offset.to_bytes(8, "little"))
    return body + _SUM_MAGIC + crc.to_bytes(4, "little")


def _refused(refused: OSError) -> apsw.Error:
    return apsw.FullError(str(refused)) if refused.errno == 28 else apsw.IOError(str(refused))
