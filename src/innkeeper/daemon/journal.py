"""The journal of events: a bounded SQLite file of its own, so that what floods it harms nothing else.

    entries(id, revision, reason, severity, kind, subject_id, name, vm_id, message, count, first_at, last_at)

Times are seconds since the epoch. The newest ``MOST`` entries are kept, of one subject the newest
``MOST_OF_A_SUBJECT``: a guest that misbehaves pushes out its own.
A file that SQLite cannot read is set aside as ``journal.db.damaged``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import apsw

from innkeeper.model.journal import SEVERITIES, JournalEntry, JournalFilter, JournalLimit, Severity, Subject
from innkeeper.model.problems import NotFound
from innkeeper.model.resources import Resource, Vm, now

T = TypeVar("T")
log = logging.getLogger(__name__)

FORMAT_VERSION = 1
MOST = 20_000
MOST_OF_A_SUBJECT = 1_000
REPEATS_WITHIN_S = 600.0
"""The same sentence about the same subject within this time is a repetition."""
_LEVELS: dict[Severity, int] = {"info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_COLUMNS = "id, revision, reason, severity, kind, subject_id, name, vm_id, message, count, first_at, last_at"
_BROKEN = (apsw.CorruptError, apsw.NotADBError, apsw.SQLError, apsw.SchemaChangeError)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL UNIQUE, reason TEXT NOT NULL,
    severity INTEGER NOT NULL, kind TEXT NOT NULL, subject_id TEXT NOT NULL, name TEXT NOT NULL,
    vm_id TEXT, message TEXT NOT NULL,
    count INTEGER NOT NULL, first_at REAL NOT NULL, last_at REAL NOT NULL);
CREATE INDEX IF NOT EXISTS entries_by_subject ON entries (kind, subject_id, revision);
"""


def subject_of(resource: Resource) -> Subject:
    """What an entry about ``resource`` says of it."""
    vm_id = resource.id if isinstance(resource, Vm) else getattr(resource, "vm_id", None)
    return Subject(kind=resource.kind, id=resource.id, name=resource.name, vm_id=vm_id)


@dataclass(frozen=True, slots=True)
class Note:
    """What happened ``count`` times to ``subject``."""

    reason: str
    subject: Subject | Resource
    message: str
    severity: Severity = "info"
    count: int = 1

    @property
    def about(self) -> Subject:
        return subject_of(self.subject) if isinstance(self.subject, Resource) else self.subject


HOST = Subject(kind="host", id="host", name="host")


class Journal:
    """The journal at ``path``. For the event loop only; nothing here raises because the file cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = asyncio.Event()
        self._db = self._open()

    def _open(self) -> apsw.Connection:
        try:
            return self._connect()
        except _BROKEN as broken:
            return self._begin_anew(broken)
        except apsw.Error as refused:
            log.warning("the journal cannot be opened, events are kept until the daemon ends: %s", refused)
            return self._connect(":memory:")

    def _connect(self, place: str = "") -> apsw.Connection:
        db = apsw.Connection(place or str(self._path))
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            (version,) = db.execute("PRAGMA user_version").fetchone() or (0,)
            if version not in (0, FORMAT_VERSION):
                raise apsw.NotADBError(f"its format is {version}, this program knows {FORMAT_VERSION}")
            (sound,) = db.execute("PRAGMA quick_check(1)").fetchone() or ("",)
            if sound != "ok":
                raise apsw.CorruptError(sound)
            db.execute(_SCHEMA)
            db.execute(f"SELECT {_COLUMNS} FROM entries LIMIT 1").fetchall()
            if version == 0:
                db.execute(f"PRAGMA user_version={FORMAT_VERSION}")
        except BaseException:
            db.close()
            raise
        return db

    @property
    def damaged(self) -> Path:
        """Where a file that could not be read is put."""
        return damaged(self._path)

    def _begin_anew(self, broken: Exception) -> apsw.Connection:
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._path.replace(self.damaged)
        self._db = self._connect()
        self.note(
            "JournalSetAside",
            HOST,
            f"the journal could not be read ({broken}); it is at {self.damaged}, and a new one begins",
            "warning",
        )
        return self._db

    def close(self) -> None:
        self._db.close()

    def _soundly(self, action: Callable[[], T]) -> T:
        """What ``action`` gives; on a new journal when the old one turns out to be damaged."""
        try:
            return action()
        except (apsw.CorruptError, apsw.NotADBError) as broken:
            self._db.close(True)
            self._begin_anew(broken)
            return action()

    # --- writing ---

    def note(
        self, reason: str, subject: Subject | Resource, message: str, severity: Severity = "info", count: int = 1
    ) -> None:
        """Write down that it happened ``count`` times; never raises for the file's sake.

        The same reason, subject and message within ``REPEATS_WITHIN_S`` are added to the entry that is there.
        """
        self.note_all([Note(reason, subject, message, severity, count)])

    def note_all(self, notes: Iterable[Note]) -> None:
        """Write down several things in one transaction; never raises for the file's sake."""
        lines = list(notes)
        for line in lines:
            log.log(
                _LEVELS[line.severity], "%s: %s %s: %s", line.reason, line.about.kind, line.about.name, line.message
            )
        try:
            self._soundly(lambda: self._write(lines))
        except apsw.Error as refused:
            log.warning("the journal cannot be written: %s", refused)
            return
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _write(self, lines: Iterable[Note]) -> None:
        at = now().timestamp()
        with self._db:  # a transaction
            grown = {(line.about.kind, line.about.id) for line in lines if self._put(line, at)}
            if grown:
                self._prune(grown)

    def _put(self, line: Note, at: float) -> bool:
        """Write one down; whether it is an entry of its own."""
        about, revision, severity = line.about, self.revision + 1, SEVERITIES.index(line.severity)
        same = (about.kind, about.id, line.reason, line.message, severity)
        self._db.execute(
            "UPDATE entries SET revision=?, count=count+?, last_at=?, name=? WHERE id=(SELECT id FROM entries WHERE"
            " kind=? AND subject_id=? AND reason=? AND message=? AND severity=? AND last_at BETWEEN ? AND ?"
            " ORDER BY revision DESC LIMIT 1)",
            (revision, line.count, at, about.name, *same, at - REPEATS_WITHIN_S, at),
        )
        if self._db.changes() > 0:
            return False
        row = (
            revision,
            line.reason,
            severity,
            about.kind,
            about.id,
            about.name,
            about.vm_id,
            line.message,
            line.count,
            at,
            at,
        )
        self._db.execute(f"INSERT INTO entries ({_COLUMNS[4:]}) VALUES (?,?,?,?,?,?,?,?,?,?,?)", row)
        return True

    def _prune(self, subjects: Iterable[tuple[str, str]]) -> None:
        for kind, subject_id in subjects:
            self._db.execute(
                "DELETE FROM entries WHERE revision IN (SELECT revision FROM entries WHERE kind=? AND subject_id=?"
                " ORDER BY revision DESC LIMIT -1 OFFSET ?)",
                (kind, subject_id, MOST_OF_A_SUBJECT),
            )
        self._db.execute(
            "DELETE FROM entries WHERE revision IN"
            " (SELECT revision FROM entries ORDER BY revision DESC LIMIT -1 OFFSET ?)",
            (MOST,),
        )

    # --- reading ---

    @property
    def revision(self) -> int:
        """That of the latest change."""
        (latest,) = self._db.execute("SELECT COALESCE(MAX(revision), 0) FROM entries").fetchone() or (0,)
        return int(latest)

    def _select(self, conditions: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return self._db.execute(f"SELECT {_COLUMNS} FROM entries WHERE {conditions}", values).fetchall()

    def ls(self, wanted: JournalFilter, *, after_revision: int = 0, last: int | None = None) -> list[JournalEntry]:
        """The entries that ``wanted`` names and that changed after that revision, in order of their last time."""
        since = wanted.since.timestamp() if wanted.since is not None else 0.0
        conditions = (
            "revision > ? AND severity >= ? AND last_at >= ? AND (? IS NULL OR subject_id = ? OR name = ?)"
            " AND (? IS NULL OR vm_id = ?) ORDER BY revision DESC LIMIT ?"
        )
        values = (
            *(after_revision, SEVERITIES.index(wanted.severity), since),
            *(wanted.subject,) * 3,
            *(wanted.vm_id,) * 2,
            -1 if last is None else last,
        )
        found = self._soundly(lambda: self._select(conditions, values))
        return [_entry(row) for row in found][::-1]

    async def watch(self, wanted: JournalFilter, after_revision: int) -> AsyncIterator[JournalEntry]:
        """Every entry as it is written or repeated, for ever."""
        while True:
            changed, upto = self._changed, self.revision  # before anything is yielded: more may be written meanwhile
            for entry in self.ls(wanted, after_revision=after_revision):
                yield entry
            after_revision = max(after_revision, upto)
            await changed.wait()


def damaged(path: Path) -> Path:
    """Where a journal at ``path`` that could not be read is put."""
    return path.with_name(path.name + ".damaged")


def _entry(row: tuple[Any, ...]) -> JournalEntry:
    identity, revision, reason, severity, kind, subject_id, name, vm_id, message, count, first_at, last_at = row
    return JournalEntry(
        id=identity,
        revision=revision,
        reason=reason,
        severity=SEVERITIES[severity],
        subject=Subject(kind=kind, id=subject_id, name=name, vm_id=vm_id),
        message=message,
        count=count,
        first_at=datetime.fromtimestamp(first_at, UTC),
        last_at=datetime.fromtimestamp(last_at, UTC),
    )


class JournalService:
    """The journal as the API has it; ``vm_id`` finds a vm's id by its id or name (or raises ``NotFound``)."""

    def __init__(self, journal: Journal, vm_id: Callable[[str], str]) -> None:
        self._journal = journal
        self._find_vm = vm_id

    async def ls(
        self,
        *,
        subject: str | None = None,
        vm: str | None = None,
        severity: Severity = "info",
        since: datetime | None = None,
        last: JournalLimit = 1_000,
    ) -> list[JournalEntry]:
        """The latest entries, the oldest first."""
        return self._journal.ls(self._filter(subject, vm, severity, since), last=last)

    async def watch(
        self,
        *,
        subject: str | None = None,
        vm: str | None = None,
        severity: Severity = "info",
        after_revision: int | None = None,
    ) -> AsyncIterator[JournalEntry]:
        """Entries as they come, after that revision or from now on."""
        start = self._journal.revision if after_revision is None else after_revision
        async for entry in self._journal.watch(self._filter(subject, vm, severity, None), start):
            yield entry

    def _filter(self, subject: str | None, vm: str | None, severity: Severity, since: datetime | None) -> JournalFilter:
        return JournalFilter(subject=subject, vm_id=self._vm_id(vm), severity=severity, since=since)

    def _vm_id(self, vm: str | None) -> str | None:
        """The vm's id; a vm that is gone is known by its id still."""
        try:
            return None if vm is None else self._find_vm(vm)
        except NotFound:
            if vm is not None and len(vm) == 36:
                return vm
            raise
