"""Meta: the small transactional store of heads, snapshots, layers, groups, attachments and holds.

One SQLite database, every commit synced (``synchronous=FULL``), used by one thread at a time under its lock; callers
are worker threads, never the event loop. The schema is in docs/fabric-format.md, "Meta".
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import apsw

from innkeeper.fabric.layout import PAGE
from innkeeper.fabric.meters import Histogram
from innkeeper.fabric.vfs import RESERVED_AT, SUM_BYTES, FabricVfs, has_sum
from innkeeper.fabric.wal import first_lost_commit
from innkeeper.model.problems import Corrupt, Failed, NoSpace
from innkeeper.system.clock import Clock
from innkeeper.system.files import FileSystem

VERSION = 6
_TABLES = (
    "CREATE TABLE pool (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE storages (id TEXT PRIMARY KEY, policy TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE disks (id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, storage_id TEXT NOT NULL,"
    " size_bytes INTEGER NOT NULL, size_seq INTEGER NOT NULL, root INTEGER NOT NULL, levels INTEGER NOT NULL,"
    " layer INTEGER NOT NULL, from_seq INTEGER NOT NULL, epoch INTEGER NOT NULL, lost INTEGER NOT NULL,"
    " origin TEXT NOT NULL, settings TEXT NOT NULL DEFAULT '{}', parent TEXT NOT NULL DEFAULT '')"
    " STRICT, WITHOUT ROWID",
    "CREATE TABLE snapshots (id TEXT PRIMARY KEY, disk_id TEXT NOT NULL, storage_id TEXT NOT NULL,"
    " size_bytes INTEGER NOT NULL, root INTEGER NOT NULL, levels INTEGER NOT NULL, layer INTEGER NOT NULL,"
    " sequence INTEGER NOT NULL, created_at REAL NOT NULL, parent TEXT NOT NULL DEFAULT '') STRICT, WITHOUT ROWID",
    "CREATE TABLE layers (id INTEGER PRIMARY KEY, number INTEGER NOT NULL, base INTEGER NOT NULL,"
    " root INTEGER NOT NULL, levels INTEGER NOT NULL, from_seq INTEGER NOT NULL, seal_seq INTEGER NOT NULL) STRICT",
    "CREATE TABLE groups (number INTEGER PRIMARY KEY, generation INTEGER NOT NULL, state TEXT NOT NULL,"
    " size_bytes INTEGER NOT NULL, last_frame INTEGER NOT NULL, device TEXT NOT NULL DEFAULT '',"
    " tier TEXT NOT NULL DEFAULT '', coding TEXT NOT NULL DEFAULT '', nonce TEXT NOT NULL DEFAULT '') STRICT",
    "CREATE TABLE attachments (id TEXT PRIMARY KEY, disk_id TEXT, snapshot_id TEXT, role TEXT NOT NULL, uid INTEGER,"
    " epoch INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE holds (id TEXT PRIMARY KEY, snapshot_id TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE qos (id TEXT PRIMARY KEY, policy TEXT NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE TABLE counts (root INTEGER PRIMARY KEY, data_bytes INTEGER NOT NULL) STRICT",
    "CREATE TABLE moves (disk_id TEXT PRIMARY KEY, role TEXT NOT NULL, pool TEXT NOT NULL, base TEXT NOT NULL,"
    " goal TEXT NOT NULL) STRICT, WITHOUT ROWID",
)
_UPGRADES = {
    1: (  # compression and dedup had columns of their own, and there were no devices
        "ALTER TABLE groups ADD COLUMN device TEXT NOT NULL DEFAULT ''",
        "CREATE TABLE policies (id TEXT PRIMARY KEY, policy TEXT NOT NULL) STRICT, WITHOUT ROWID",
        "INSERT INTO policies SELECT id, json_object('compression', compression, 'level', 0, 'dedup',"
        " json(iif(dedup, 'true', 'false'))) FROM storages",
        "DROP TABLE storages",
        "ALTER TABLE policies RENAME TO storages",
    ),
    2: (  # disks had no settings of their own, groups were all of one kind, and data was counted when asked for
        "ALTER TABLE disks ADD COLUMN settings TEXT NOT NULL DEFAULT '{}'",
        "ALTER TABLE groups ADD COLUMN tier TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE groups ADD COLUMN coding TEXT NOT NULL DEFAULT ''",
        "CREATE TABLE qos (id TEXT PRIMARY KEY, policy TEXT NOT NULL) STRICT, WITHOUT ROWID",
        "CREATE TABLE counts (root INTEGER PRIMARY KEY, data_bytes INTEGER NOT NULL) STRICT",
    ),
    3: (  # nothing was known of what a snapshot was taken after: each is taken to follow the one before it
        "ALTER TABLE disks ADD COLUMN parent TEXT NOT NULL DEFAULT ''",
        "ALTER TABLE snapshots ADD COLUMN parent TEXT NOT NULL DEFAULT ''",
        "UPDATE snapshots SET parent = coalesce((SELECT id FROM snapshots AS older WHERE older.disk_id ="
        " snapshots.disk_id AND older.sequence < snapshots.sequence ORDER BY older.sequence DESC LIMIT 1), '')",
        "UPDATE disks SET parent = coalesce((SELECT id FROM snapshots WHERE snapshots.disk_id = disks.id"
        " ORDER BY sequence DESC LIMIT 1), '')",
    ),
    4: ("ALTER TABLE groups ADD COLUMN nonce TEXT NOT NULL DEFAULT ''",),  # all devices were directories
    5: (  # a disk stayed in its pool
        "CREATE TABLE moves (disk_id TEXT PRIMARY KEY, role TEXT NOT NULL, pool TEXT NOT NULL, base TEXT NOT NULL,"
        " goal TEXT NOT NULL) STRICT, WITHOUT ROWID",
    ),
}
"""What makes of each earlier version the next one."""
_SIGN = 1 << 63


def to_sql(entry: int) -> int:
    """A u64 map entry as SQLite's signed integer."""
    return entry - (1 << 64) if entry >= _SIGN else entry


def from_sql(value: int) -> int:
    return value + (1 << 64) if value < 0 else value


@dataclass(frozen=True, slots=True)
class DiskRow:
    id: str
    number: int
    storage_id: str
    size_bytes: int
    size_seq: int
    root: int
    levels: int
    layer: int
    from_seq: int
    epoch: int
    lost: int
    origin: str
    settings: str = "{}"
    parent: str = ""


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    id: str
    disk_id: str
    storage_id: str
    size_bytes: int
    root: int
    levels: int
    layer: int
    sequence: int
    created_at: float
    parent: str = ""


@dataclass(frozen=True, slots=True)
class LayerRow:
    id: int
    number: int
    base: int
    root: int
    levels: int
    from_seq: int
    seal_seq: int


@dataclass(slots=True)
class GroupRow:
    """Where a group is. ``size_bytes`` and ``last_frame`` are as of the last commit.

    ``tier``: where its data is to stay, "" for wherever heat puts it. ``coding``: what its extents were packed by.
    ``nonce``: the last part of its name in an object store.
    """

    number: int
    generation: int
    state: str
    size_bytes: int
    last_frame: int
    device: str = ""
    tier: str = ""
    coding: str = ""
    nonce: str = ""


def _disk_row(row: tuple[Any, ...]) -> DiskRow:
    return DiskRow(
        id=row[0],
        number=row[1],
        storage_id=row[2],
        size_bytes=row[3],
        size_seq=row[4],
        root=from_sql(row[5]),
        levels=row[6],
        layer=row[7],
        from_seq=row[8],
        epoch=row[9],
        lost=row[10],
        origin=row[11],
        settings=row[12],
        parent=row[13],
    )


def _snapshot_row(row: tuple[Any, ...]) -> SnapshotRow:
    return SnapshotRow(
        id=row[0],
        disk_id=row[1],
        storage_id=row[2],
        size_bytes=row[3],
        root=from_sql(row[4]),
        levels=row[5],
        layer=row[6],
        sequence=row[7],
        created_at=row[8],
        parent=row[9],
    )


def _layer_row(row: tuple[Any, ...]) -> LayerRow:
    return LayerRow(
        id=row[0],
        number=row[1],
        base=row[2],
        root=from_sql(row[3]),
        levels=row[4],
        from_seq=row[5],
        seal_seq=row[6],
    )


def _sums_pages(files: FileSystem, path: str) -> bool:
    """Whether the database's pages have checksums, as those of each new one do; what earlier versions made has none."""
    if not files.exists(path):
        return True
    file = files.open(path)
    try:
        head = file.pread(PAGE, 0)
    finally:
        file.close()
    is_old = head.startswith(b"SQLite format 3\0") and head[RESERVED_AT] == 0 and not has_sum(head)
    return len(head) < PAGE or not is_old


class Meta:
    """The database. Writes happen in ``transaction``; a failed one leaves nothing behind."""

    def __init__(self, files: FileSystem, path: str, watch: tuple[Clock, Histogram] | None = None) -> None:
        """Open or make the database; ``watch`` is told how long commits take. Raises ``Corrupt`` (``meta.corrupt``),
        ``Failed`` (``meta.failed``)."""
        self._path = path
        self._watch = watch
        self.lock = threading.RLock()
        self._files = files
        self._vfs = FabricVfs(files)
        self._db: apsw.Connection | None = None
        try:
            with self._translated():
                self._db = self._connect()
                self._check_log(self._db)
        except BaseException:
            self.close()
            raise

    def _connect(self) -> apsw.Connection:
        self._vfs.sums_pages = _sums_pages(self._files, self._path)
        db = apsw.Connection(self._path, vfs=self._vfs.name)
        try:
            db.reserve_bytes(reserve=SUM_BYTES if self._vfs.sums_pages else 0)
            self._prepare(db)
        except BaseException:
            db.close()
            raise
        return db

    def _check_log(self, db: apsw.Connection) -> None:
        """Raises ``Corrupt`` where SQLite left out more of its log than a transaction that a power cut had torn."""
        path = f"{self._path}-wal"
        if not self._files.exists(path):
            return
        frames = max(0, db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)[0])
        file = self._files.open(path)
        try:
            offset = first_lost_commit(file, frames)
        finally:
            file.close()
        if offset is not None:
            raise Corrupt(
                "meta.corrupt",
                f"{path} at byte {offset}: committed changes fail their checksum",
                remedy="run 'inn fabric check --repair'",
            )
        if frames:
            with suppress(apsw.Error):  # so that at most one torn transaction is ever found there
                db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def _recover(self) -> None:
        """After a failed write or sync of the write-ahead log: forget the transaction, go on from what was synced
        before.

        SQLite would go on as if its log were whole in the page cache, where the medium may never get those bytes; and
        what it calls failed may count after a restart. When this fails too, the database stays closed and refuses every
        call.
        """
        if not self._vfs.failed or self._db is None:
            return
        log, self._vfs.log, self._vfs.failed = self._vfs.log, None, False
        db, self._db = self._db, None
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        with suppress(apsw.Error, OSError):
            db.close()
        with suppress(apsw.Error, OSError):
            if log is not None:
                log.cut_failed()
            self._db = self._connect()

    def _prepare(self, db: apsw.Connection) -> None:
        db.execute("PRAGMA locking_mode=EXCLUSIVE")
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute("PRAGMA cache_size=-2048")
        db.execute("PRAGMA temp_store=MEMORY")
        version = next(iter(db.execute("PRAGMA user_version")))[0]
        if version == VERSION:
            return
        if version > VERSION or version < 0:
            raise Corrupt(
                "meta.format",
                f"{self._path} has format {version}, this program knows {VERSION}",
                remedy="open the pool with the version of Innkeeper that wrote it, or a newer one",
            )
        with db:
            if version == 0:
                steps = list(_TABLES)
            else:
                steps = [step for earlier in range(version, VERSION) for step in _UPGRADES[earlier]]
            for step in (*steps, f"PRAGMA user_version={VERSION}"):
                db.execute(step)

    def close(self) -> None:
        with self.lock:
            if self._db is not None:
                db, self._db = self._db, None
                try:
                    with self._translated():
                        db.close()
                finally:
                    self._vfs.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """All or nothing, synced when it ends. Raises ``NoSpace`` (``pool.full``), ``Failed`` (``meta.failed``)."""
        with self.lock, self._translated():
            if self._db is None:
                raise Failed("meta.failed", f"{self._path} is closed", remedy="restart the fabric")
            self._vfs.begin()
            try:
                with self._db:
                    yield Transaction(self._db)
                    began = self._watch[0].monotonic() if self._watch else 0.0
                if self._watch:
                    self._watch[1].add(self._watch[0].monotonic() - began)
            finally:
                self._recover()

    def rows(self, sql: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query."""
        with self.lock, self._translated():
            if self._db is None:
                raise Failed("meta.failed", f"{self._path} is closed", remedy="restart the fabric")
            return list(self._db.execute(sql, values))

    def get(self, key: str, default: Any = None) -> Any:
        """A value of table ``pool``."""
        found = self.rows("SELECT value FROM pool WHERE key=?", (key,))
        return found[0][0] if found else default

    def disks(self) -> list[DiskRow]:
        return [
            _disk_row(row)
            for row in self.rows(
                "SELECT id, number, storage_id, size_bytes, size_seq, root, levels, layer, from_seq, epoch, lost,"
                " origin, settings, parent FROM disks ORDER BY number"
            )
        ]

    def snapshots(self) -> list[SnapshotRow]:
        return [
            _snapshot_row(row)
            for row in self.rows(
                "SELECT id, disk_id, storage_id, size_bytes, root, levels, layer, sequence, created_at, parent"
                " FROM snapshots ORDER BY sequence, id"
            )
        ]

    def layers(self) -> list[LayerRow]:
        return [
            _layer_row(row)
            for row in self.rows("SELECT id, number, base, root, levels, from_seq, seal_seq FROM layers ORDER BY id")
        ]

    def groups(self) -> list[GroupRow]:
        return [
            GroupRow(*row)
            for row in self.rows(
                "SELECT number, generation, state, size_bytes, last_frame, device, tier, coding, nonce FROM groups"
            )
        ]

    def counts(self) -> dict[int, int]:
        """Data bytes below roots, by their entries."""
        return {from_sql(root): count for root, count in self.rows("SELECT root, data_bytes FROM counts")}

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except apsw.FullError as full:
            raise NoSpace("pool.full", f"{self._path} cannot grow", cause=str(full), remedy="free space") from full
        except (apsw.CorruptError, apsw.NotADBError) as broken:
            raise Corrupt(
                "meta.corrupt", f"{self._path} is damaged", cause=str(broken), remedy="run 'inn fabric check --repair'"
            ) from broken
        except apsw.Error as refused:
            raise Failed(
                "meta.failed", f"{self._path} cannot be used", cause=str(refused), remedy="look at the disk's health"
            ) from refused


class Transaction:
    """Writes of one transaction."""

    def __init__(self, db: apsw.Connection) -> None:
        self._db = db

    def run(self, sql: str, values: Iterable[Any] = ()) -> None:
        self._db.execute(sql, tuple(values))

    def put(self, key: str, value: Any) -> None:
        self.run("INSERT OR REPLACE INTO pool VALUES (?, ?)", (key, value))

    def put_storage(self, storage_id: str, policy: str) -> None:
        self.run("INSERT OR REPLACE INTO storages VALUES (?, ?)", (storage_id, policy))

    def put_disk(self, row: DiskRow) -> None:
        self.run(
            "INSERT OR REPLACE INTO disks VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
            (
                row.id,
                row.number,
                row.storage_id,
                row.size_bytes,
                row.size_seq,
                to_sql(row.root),
                row.levels,
                row.layer,
                row.from_seq,
                row.epoch,
                row.lost,
                row.origin,
                row.settings,
                row.parent,
            ),
        )

    def put_snapshot(self, row: SnapshotRow) -> None:
        self.run(
            "INSERT OR REPLACE INTO snapshots VALUES (?,?,?,?,?,?,?,?,?,?)",
            (
                row.id,
                row.disk_id,
                row.storage_id,
                row.size_bytes,
                to_sql(row.root),
                row.levels,
                row.layer,
                row.sequence,
                row.created_at,
                row.parent,
            ),
        )

    def put_move(self, disk_id: str, role: str, pool: str, base: str, goal: str) -> None:
        self.run("INSERT OR REPLACE INTO moves VALUES (?,?,?,?,?)", (disk_id, role, pool, base, goal))

    def put_layer(self, row: LayerRow) -> None:
        self.run(
            "INSERT OR REPLACE INTO layers VALUES (?,?,?,?,?,?,?)",
            (row.id, row.number, row.base, to_sql(row.root), row.levels, row.from_seq, row.seal_seq),
        )

    def put_group(self, row: GroupRow) -> None:
        self.run(
            "INSERT OR REPLACE INTO groups VALUES (?,?,?,?,?,?,?,?,?)",
            (
                row.number,
                row.generation,
                row.state,
                row.size_bytes,
                row.last_frame,
                row.device,
                row.tier,
                row.coding,
                row.nonce,
            ),
        )

    def put_counts(self, counts: dict[int, int]) -> None:
        """The data bytes below roots; others are forgotten."""
        self.run("DELETE FROM counts")
        for root, data_bytes in counts.items():
            self.run("INSERT INTO counts VALUES (?, ?)", (to_sql(root), data_bytes))
