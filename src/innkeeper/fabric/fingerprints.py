"""Fingerprints: from the first 16 bytes of an extent's hash to where such an extent was stored. Only a hint.

A database of its own, never synced on purpose and rebuilt at will: a hit counts only when the group's slot table shows
the full hash, so a lost, stale or wrong row costs a duplicate at most.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress

import apsw

from innkeeper.fabric.vfs import FabricVfs
from innkeeper.system.files import FileSystem

KEY_BYTES = 16
VERSION = 1


class Fingerprints:
    """Hash prefix -> ``group << 18 | slot``. Safe for threads."""

    def __init__(self, files: FileSystem, path: str) -> None:
        self._files = files
        self._path = path
        self._lock = threading.Lock()
        self._vfs = FabricVfs(files)
        self._db = self._open()

    def _open(self) -> apsw.Connection | None:
        """The database, made anew when it is of no use; none when the medium refuses: then nothing is deduplicated."""
        try:
            return self._prepared()
        except apsw.Error:
            return self._made_anew()

    def _made_anew(self) -> apsw.Connection | None:
        try:
            self._remove()
            return self._prepared()
        except (apsw.Error, OSError):
            return None

    def _prepared(self) -> apsw.Connection:
        db = apsw.Connection(self._path, vfs=self._vfs.name)
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=MEMORY")
            db.execute("PRAGMA synchronous=OFF")
            db.execute("PRAGMA cache_size=-8192")
            version = next(iter(db.execute("PRAGMA user_version")))[0]
            if version not in (0, VERSION):
                raise apsw.NotADBError(f"format {version}")
            if version == 0:
                db.execute(
                    "CREATE TABLE IF NOT EXISTS fingerprints (key BLOB PRIMARY KEY, place INTEGER NOT NULL)"
                    " STRICT, WITHOUT ROWID"
                )
                db.execute(f"PRAGMA user_version={VERSION}")
        except BaseException:
            db.close()
            raise
        return db

    def _remove(self) -> None:
        for path in (self._path, f"{self._path}-journal"):
            if self._files.exists(path):
                self._files.unlink(path)

    def find(self, digest: bytes) -> int | None:
        """The place recorded for a hash, unverified."""
        with self._lock:
            if self._db is None:
                return None
            try:
                for (place,) in self._db.execute("SELECT place FROM fingerprints WHERE key=?", (digest[:KEY_BYTES],)):
                    return int(place)
            except apsw.Error:
                self._start_over()
            return None

    def find_many(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """The places recorded for hashes, unverified, by the first 16 bytes of those that are known."""
        keys = [digest[:KEY_BYTES] for digest in digests]
        with self._lock:
            if self._db is None or not keys:
                return {}
            marks = ",".join("?" * len(keys))
            try:
                return dict(self._db.execute(f"SELECT key, place FROM fingerprints WHERE key IN ({marks})", keys))
            except apsw.Error:
                self._start_over()
            return {}

    def add(self, found: Iterable[tuple[bytes, int]]) -> None:
        """Record (hash, place) pairs; the youngest wins."""
        with self._lock:
            if self._db is None:
                return
            try:
                with self._db:
                    self._db.executemany(
                        "INSERT OR REPLACE INTO fingerprints VALUES (?, ?)",
                        [(digest[:KEY_BYTES], place) for digest, place in found],
                    )
            except apsw.Error:
                self._start_over()

    def remove(self, gone: Iterable[tuple[bytes, int]]) -> None:
        """Forget (hash, place) pairs that are still recorded so."""
        with self._lock:
            if self._db is None:
                return
            try:
                with self._db:
                    self._db.executemany(
                        "DELETE FROM fingerprints WHERE key=? AND place=?",
                        [(digest[:KEY_BYTES], place) for digest, place in gone],
                    )
            except apsw.Error:
                self._start_over()

    def clear(self) -> None:
        """Begin anew with none."""
        with self._lock:
            self._start_over()

    def _start_over(self) -> None:
        if self._db is not None:
            with suppress(apsw.Error):
                self._db.close()
        self._db = self._made_anew()

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                with suppress(apsw.Error):
                    self._db.close()
            self._db = None
            self._vfs.close()
