"""The document store on SQLite (apsw, write-ahead log, synchronous=FULL).

    documents(kind, id, name, revision, body)       one row a resource; (kind, name) is unique
    meta(key, value)                                 format version, the store's revision counter

A revision is a number of the whole store: every change takes the next one, so revisions also order a watch.
Calls are short and are made from the daemon's event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import apsw
from pydantic import ValidationError

from innkeeper.model.problems import Conflict, Corrupt, Failed, NoSpace, NotFound
from innkeeper.model.resources import KINDS, Resource

FORMAT_VERSION = 1
Action = Literal["created", "updated", "deleted"]
Change = tuple[int, Action, Resource]
R = TypeVar("R", bound=Resource)

_HISTORY = 4096
"""Changes kept in memory for watchers that begin in the past; older ones must list anew."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS documents (
    kind TEXT NOT NULL, id TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (kind, id)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS documents_by_name ON documents (kind, name);
"""


class Store:
    """All documents of one inn.

    Raises ``Corrupt`` (``state.format``, ``state.corrupt``) on opening a file that it does not understand, and
    (``state.document``) on reading a document that it does not. Every change raises ``NoSpace`` (``state.no_space``) on
    a full medium and ``Failed`` (``state.io``) on a failing one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._history: deque[Change] = deque(maxlen=_HISTORY)
        self._changed = asyncio.Event()
        try:
            self._db = apsw.Connection(str(path))
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute(_SCHEMA)
            self._check_format()
        except (apsw.CorruptError, apsw.NotADBError) as broken:
            raise Corrupt(
                "state.corrupt", f"{path} is not a sound database", cause=str(broken), remedy="restore it from a copy"
            ) from broken

    def _check_format(self) -> None:
        row = self._db.execute("SELECT value FROM meta WHERE key='format'").fetchone()
        if row is None:
            self._db.execute("INSERT INTO meta VALUES ('format', ?), ('revision', 0)", (FORMAT_VERSION,))
        elif row[0] != FORMAT_VERSION:
            raise Corrupt(
                "state.format",
                f"{self._path} has format {row[0]}, this program knows {FORMAT_VERSION}",
                remedy="install the version of Innkeeper that wrote it, or a newer one",
            )

    def close(self) -> None:
        self._db.close()

    @property
    def revision(self) -> int:
        """The revision of the latest change."""
        ((revision,),) = self._db.execute("SELECT value FROM meta WHERE key='revision'")
        return int(revision)

    @contextmanager
    def _transaction(self) -> Iterator[int]:
        """All or nothing, on the medium when it ends. Raises ``NoSpace`` (``state.no_space``), ``Failed``
        (``state.io``)."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self.revision + 1
                self._db.execute("UPDATE meta SET value=value+1 WHERE key='revision'")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full medium ends a transaction by itself
                    self._db.execute("ROLLBACK")
                raise
        except apsw.FullError as full:
            raise NoSpace(
                "state.no_space",
                "there is no room to record the change",
                cause=f"{self._path}: {full}",
                remedy=f"free space in {self._path.parent}; nothing was changed",
            ) from full
        except apsw.IOError as failed:
            raise Failed(
                "state.io",
                "the change cannot be recorded",
                cause=f"{self._path}: {failed}",
                remedy="look at the disk's health; nothing was changed",
            ) from failed

    def _publish(self, change: Change) -> None:
        self._history.append(change)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def create(self, resource: R) -> R:
        """Store a new document and return it with its revision.

        Raises ``Conflict`` (``<kind>.name_taken``, ``<kind>.exists``).
        """
        kind = resource.kind
        try:
            with self._transaction() as revision:
                stored = resource.model_copy(update={"revision": revision}, deep=True)
                self._db.execute(
                    "INSERT INTO documents VALUES (?, ?, ?, ?, ?)",
                    (kind, stored.id, stored.name, revision, stored.model_dump_json()),
                )
        except apsw.ConstraintError as taken:
            if self._row(kind, "id", resource.id):
                raise Conflict(f"{kind}.exists", f"{kind} {resource.id} exists already") from taken
            raise Conflict(
                f"{kind}.name_taken",
                f"the name {resource.name!r} is taken by another {kind}",
                remedy="choose another name",
            ) from taken
        self._publish((revision, "created", stored))
        return stored

    def update(self, resource: R) -> R:
        """Replace the document whose revision is ``resource.revision``; returns it with its new revision.

        Raises ``NotFound`` (``<kind>.not_found``), ``Conflict`` (``state.stale``, ``<kind>.name_taken``).
        """
        kind = resource.kind
        try:
            with self._transaction() as revision:
                stored = resource.model_copy(update={"revision": revision}, deep=True)
                self._db.execute(
                    "UPDATE documents SET name=?, revision=?, body=? WHERE kind=? AND id=? AND revision=?",
                    (stored.name, revision, stored.model_dump_json(), kind, stored.id, resource.revision),
                )
                if self._db.changes() == 0:
                    self._refuse_update(resource)
        except apsw.ConstraintError as taken:
            raise Conflict(
                f"{kind}.name_taken",
                f"the name {resource.name!r} is taken by another {kind}",
                remedy="choose another name",
            ) from taken
        self._publish((revision, "updated", stored))
        return stored

    def _refuse_update(self, resource: Resource) -> None:
        if self._row(resource.kind, "id", resource.id) is None:
            raise _absent(resource.kind, resource.name)
        raise Conflict(
            "state.stale",
            f"{resource.kind} {resource.name!r} was changed by someone else meanwhile",
            remedy="read it again and repeat the change",
        )

    def delete(self, kind: str, resource_id: str) -> None:
        """Remove a document; one that is not there is no error, so that an undo can be repeated."""
        row = self._row(kind, "id", resource_id)
        if row is None:
            return
        gone = _understood(KINDS[kind], row)
        with self._transaction() as revision:
            self._db.execute("DELETE FROM documents WHERE kind=? AND id=?", (kind, resource_id))
        self._publish((revision, "deleted", gone))

    def _row(self, kind: str, column: Literal["id", "name"], value: str) -> str | None:
        row = self._db.execute(f"SELECT body FROM documents WHERE kind=? AND {column}=?", (kind, value)).fetchone()
        return None if row is None else str(row[0])

    def get(self, kind: type[R], ref: str) -> R:
        """The document with that id or name.

        Raises ``NotFound`` (``<kind>.not_found``).
        """
        body = self._row(kind.kind, "id", ref) or self._row(kind.kind, "name", ref)
        if body is None:
            raise _absent(kind.kind, ref)
        return _understood(kind, body)

    def ls(self, kind: type[R]) -> list[R]:
        """All documents of a kind, by name."""
        rows = self._db.execute("SELECT body FROM documents WHERE kind=? ORDER BY name", (kind.kind,))
        return [_understood(kind, body) for (body,) in rows]

    def find(self, kind: type[R], **equal: Any) -> list[R]:
        """The documents whose top-level fields have these values, by name."""
        return [found for found in self.ls(kind) if all(getattr(found, key) == value for key, value in equal.items())]

    async def watch(self, since_revision: int, kinds: Iterable[str] = ()) -> AsyncIterator[Change]:
        """Every change after ``since_revision``, as (revision, action, document), forever.

        Raises ``Conflict`` (``state.compacted``) when changes that old are no longer kept: list, then watch anew.
        """
        wanted = frozenset(kinds)
        while True:
            changed = self._changed
            fresh = [change for change in self._history if change[0] > since_revision]
            next_known = fresh[0][0] if fresh else self.revision + 1
            if next_known > since_revision + 1:
                raise Conflict(
                    "state.compacted", f"changes since {since_revision} are no longer kept", remedy="list anew"
                )
            for change in fresh:
                since_revision = change[0]
                if not wanted or change[2].kind in wanted:
                    yield change
            if not fresh:
                await changed.wait()


def _absent(kind: str, ref: str) -> NotFound:
    return NotFound(f"{kind}.not_found", f"there is no {kind} {ref!r}", remedy=f"'inn {kind} ls' lists them")


def _understood(kind: type[R], body: str) -> R:
    """Raises ``Corrupt`` (``state.document``) for what this program does not know how to read."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as strange:
        raise Corrupt(
            "state.document",
            f"a {kind.kind} in the inn's state cannot be read",
            cause="; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in strange.errors()),
            remedy="run the version of Innkeeper that wrote it, or a newer one; or restore the state from a copy",
        ) from strange
