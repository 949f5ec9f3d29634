"""The pools of one fabric: the default one, and those that ``pools.json`` beside it names.

A pool that cannot be opened (its directory is not mounted, damaged, of a later version, open elsewhere) keeps no other
from being served: it stays closed with its problem, and ``pool_open`` tries again. Ids of disks, snapshots, storages,
attachments and holds are UUIDs, so each leads to its pool (``routing``). Nothing is founded where a known pool belongs:
an empty mount point is a missing pool, never a new one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from innkeeper.fabric.catalog import Catalog
from innkeeper.fabric.devices import HOME, read_identity, write_identity
from innkeeper.fabric.policies import check_id
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pool_list import read_list, write_list
from innkeeper.fabric.space import Limits
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import Conflict, Corrupt, Failed, Invalid, NoSpace, NotFound, Problem, Unavailable
from innkeeper.system.files import Io

log = logging.getLogger(__name__)
_EMPTY = frozenset({"lost+found", "lock", "pool.json.new"})
_OWN = ("groups", "log", "copies", "credentials")
"""Directories that a pool makes; empty ones of a pool that was removed are no obstacle."""


@dataclass(slots=True)
class Place:
    """A pool that is known: open, or closed for a reason."""

    id: str
    path: str
    pool: Pool | None = None
    problem: Problem | None = None


_KNOWN: dict[str, Callable[[Catalog], dict[str, Any]]] = {
    "disk": lambda catalog: catalog.disks,
    "snapshot": lambda catalog: catalog.snapshots,
    "attachment": lambda catalog: catalog.attachments,
    "hold": lambda catalog: catalog.holds,
    "storage": lambda catalog: catalog.storages,
}


def _disk_of(pool: Pool, kind: str, subject: str) -> str | None:
    """The disk that something which a pool has is of."""
    catalog = pool.catalog
    if kind == "attachment":
        attachment = catalog.attachments[subject]
        if attachment.disk_id is not None:
            return attachment.disk_id
        kind, subject = "snapshot", str(attachment.snapshot_id)
    if kind == "hold":
        kind, subject = "snapshot", catalog.holds[subject]
    if kind == "snapshot":
        snapshot = catalog.snapshots.get(subject)
        return snapshot.disk_id if snapshot is not None else None
    return subject if kind == "disk" else None


class Pools:
    """See the module's docstring. The control operations are for worker threads; looking up is for any thread."""

    def __init__(
        self, default: Pool, list_path: str = "", *, limits: Limits | None = None, background: bool = True
    ) -> None:
        """``list_path``: where ``pools.json`` is; "" for a fabric that has one pool only. ``limits`` and
        ``background``: as ``Pool.open``."""
        self._background = background
        self._io: Io = default.io
        self._list_path = list_path
        self._limits = limits or Limits()
        self._changing = threading.Lock()
        self.default = default
        self.on_close: Callable[[Pool], None] = lambda _pool: None
        """Called, in a worker thread, before a pool is closed that nothing uses any more."""
        self._places = {str(default.pool_id): Place(str(default.pool_id), default.path, default)}
        known = read_list(self._io.files, list_path) if list_path else {}
        for pool_id, path in known.items():
            self._places[pool_id] = place = Place(pool_id, path)
            self._try(place)

    def close(self) -> None:
        """Close every pool, the default one too."""
        for place in list(self._places.values()):
            if place.pool is not None and place.pool is not self.default:
                place.pool.close()
        self.default.close()

    # -- looking up ------------------------------------------------------------------------------------------------

    def all(self) -> list[Pool]:
        """Those that are open, the default one first."""
        return [place.pool for place in list(self._places.values()) if place.pool is not None]

    def closed(self) -> list[Place]:
        """Those that are not."""
        return [place for place in list(self._places.values()) if place.pool is None]

    def get(self, pool_id: str | None) -> Pool:
        """An open pool; the default one without an id. Raises ``NotFound``, ``Unavailable`` (``pool.unavailable``)."""
        if pool_id is None:
            return self.default
        place = self._place(pool_id)
        if place.pool is None:
            raise unavailable(place)
        return place.pool

    def _place(self, pool_id: str) -> Place:
        place = self._places.get(pool_id)
        if place is None:
            raise NotFound("pool.not_found", f"the fabric has no pool {pool_id}", remedy="see 'inn pool ls'")
        return place

    def known(self, pool_id: str) -> Place | None:
        """A pool, open or closed; None for one that was given up."""
        return self._places.get(pool_id)

    def counts(self, pool: Pool, disk_id: str | None) -> bool:
        """Whether what the pool has of a disk, or of its snapshots and attachments, is what they are: not where the
        disk is still arriving, nor where it has left (see ``moving``).

        Raises ``Unavailable`` (``pool.unavailable``) where only a pool that is closed knows.
        """
        move = pool.catalog.moves.get(disk_id or "")
        if move is None:
            return True
        if pool.catalog.arrives(disk_id):
            return False
        other = self._places.get(move.pool)
        if other is None:
            return True
        if other.pool is None:
            raise unavailable(other)
        return disk_id not in other.pool.catalog.disks or other.pool.catalog.arrives(disk_id)

    def owner(self, kind: str, subject: str, *, forgiving: bool = False) -> Pool:
        """The pool that has that disk, snapshot, storage, attachment or hold; the default one, whose word it is that
        there is none, where none can have it. Raises ``Unavailable`` (``pool.unavailable``)."""
        for pool in self.all():
            if subject in _KNOWN[kind](pool.catalog) and self.counts(pool, _disk_of(pool, kind, subject)):
                return pool
        closed = self.closed()
        if closed and not forgiving:
            raise unavailable(closed[0])
        return self.default

    def volume(self, attachment_id: str) -> tuple[Pool, Volume]:
        """The attachment opened for I/O, and the pool that has it; O(1), for the event loop.

        Raises ``NotFound``, ``Corrupt`` (``disk.damaged``).
        """
        for pool in self.all():
            known = attachment_id in pool.catalog.attachments
            if known and self.counts(pool, _disk_of(pool, "attachment", attachment_id)):
                return pool, pool.volume(attachment_id)
        raise NotFound("attachment.not_found", f"there is no attachment {attachment_id}")

    # -- control operations ----------------------------------------------------------------------------------------

    def pool_ls(self) -> list[dict[str, Any]]:
        """Every pool: id, path, whether it is the default one, and the problem of one that is closed."""
        return [self._facts(place) for place in list(self._places.values())]

    def pool_create(self, pool_id: str, path: str) -> dict[str, Any]:
        """Found a pool in an empty directory (made where there is none), and serve it from now on.

        Raises ``Invalid`` (``pool.path``), ``Conflict`` (``pool.exists``, ``pool.nested``, ``pool.foreign``,
        ``pool.not_empty``, ``pool.locked``), ``NoSpace`` (``pool.small``), ``Failed`` (``pool.unusable``).
        """
        check_id("pool", pool_id)
        if not self._list_path or not path.startswith("/"):
            raise Invalid("pool.path", f"{path!r} cannot be a pool of this fabric", remedy="give an absolute path")
        path = path.rstrip("/") or "/"
        with self._changing:
            known = self._places.get(pool_id)
            if known is not None:
                if known.path != path:
                    raise Conflict("pool.exists", f"pool {pool_id} is in {known.path}", remedy="give another id")
                self._open(known)
                return self._facts(known)
            self.check_apart(path)
            self._places[pool_id] = place = self._begin(Place(pool_id, path))
            return self._facts(place)

    def pool_open(self, pool_id: str) -> dict[str, Any]:
        """Open a pool that is closed, now that what kept it closed is gone. Raises what keeps it closed."""
        place = self._place(pool_id)
        with self._changing:
            self._open(place)
        return self._facts(place)

    def pool_rm(self, pool_id: str) -> None:
        """Give up a pool that holds nothing; its directory is left empty. One that is closed is left as it is.

        Raises ``Conflict`` (``pool.default``, ``pool.in_use``). One that is not there is no error.
        """
        with self._changing:
            place = self._places.get(pool_id)
            if place is None:
                return
            if place.pool is self.default:
                raise Conflict("pool.default", "the default pool stays", remedy="remove another pool")
            if place.pool is not None:
                _refuse_in_use(place.pool)
            try:
                self._write([each for each in self._places.values() if each is not place])
            except OSError as refused:
                raise _unusable(self._list_path, refused) from refused
            del self._places[pool_id]
            if place.pool is not None:
                self.on_close(place.pool)
                place.pool.close()
                self._clear(place.path)

    def check_apart(self, path: str, own: Pool | None = None) -> None:
        """Raises ``Conflict`` (``pool.nested``) when the directory is, contains or lies in one of another pool."""
        for place in self._places.values():
            if own is not None and place.pool is own:
                continue
            devices = list(place.pool.devices.all.values()) if place.pool is not None else []
            for other in {place.path, *(device.path for device in devices)}:
                if f"{path}/".startswith(f"{other}/") or f"{other}/".startswith(f"{path}/"):
                    raise Conflict(
                        "pool.nested",
                        f"{path} and {other}, which another pool has, may not be the same or contain each other",
                        remedy="give a directory elsewhere, best the root of a file system of its own",
                    )

    def _facts(self, place: Place) -> dict[str, Any]:
        return {
            "id": place.id,
            "path": place.path,
            "default": place.pool is self.default,
            "problem": place.problem.as_dict() if place.problem is not None else None,
        }

    def _begin(self, place: Place) -> Place:
        """Found the pool, open it and put it on the list; nothing is left of one that fails."""
        try:
            self._found(place)
        except OSError as refused:
            raise _unusable(place.path, refused) from refused
        try:
            self._open(place)
            self._write([*self._places.values(), place])
        except BaseException as failed:
            if place.pool is not None:
                place.pool.close()
            self._clear(place.path)
            if isinstance(failed, OSError):
                raise _unusable(place.path, failed) from failed
            raise
        return place

    # -- opening and founding --------------------------------------------------------------------------------------

    def _try(self, place: Place) -> None:
        """Open it, or note why not."""
        try:
            self._open(place)
        except Problem as problem:
            log.error("pool %s in %s stays closed: %s", place.id, place.path, problem)

    def _open(self, place: Place) -> None:
        if place.pool is not None:
            return
        try:
            place.pool = self._opened(place)
            place.problem = None
        except Problem as problem:
            place.problem = problem
            raise

    def _opened(self, place: Place) -> Pool:
        try:
            identity = read_identity(self._io.files, place.path)
        except OSError as refused:
            raise _unusable(place.path, refused) from refused
        if identity is None:
            raise Unavailable(
                "pool.missing",
                f"the pool in {place.path} is not there",
                cause=f"there is no {place.path}/pool.json",
                remedy="mount its file system, or put it back; then 'inn pool open'",
            )
        if str(identity[0]) != place.id:
            raise Corrupt(
                "pool.foreign",
                f"{place.path} has pool {identity[0]}",
                cause=f"pool {place.id} is to be there",
                remedy="mount the right file system there; then 'inn pool open'",
            )
        return Pool.open(self._io, place.path, limits=self._limits, background=self._background)

    def _found(self, place: Place) -> None:
        """Make the directory a pool with that id; one that was begun before goes on. Raises ``OSError``."""
        files, path = self._io.files, place.path
        files.mkdir(path)
        found = set(files.listdir(path)) - _EMPTY
        if "pool.json" in found:
            identity = read_identity(files, path)
            if identity is None or str(identity[0]) != place.id:
                raise Conflict(
                    "pool.foreign",
                    f"{path} has a pool already",
                    cause=f"it is pool {identity[0] if identity else 'unknown'}",
                    remedy="give an empty directory; remove what is there if that pool is not needed any more",
                )
            return
        found = {name for name in found if name not in _OWN or files.listdir(f"{path}/{name}")}
        if found:
            raise Conflict(
                "pool.not_empty",
                f"{path} is not empty",
                cause=", ".join(sorted(found)[:5]),
                remedy="give a directory of its own, best the root of a file system of its own",
            )
        needed = self._limits.log_bytes + self._limits.headroom_bytes + 2 * self._limits.group_bytes
        free = files.space(path)[1]
        if free < needed:
            raise NoSpace(
                "pool.small",
                f"{path} has too little room for a pool",
                cause=f"{free} bytes are free; the log and what is kept free besides take {needed}",
                remedy="give a file system with more room",
            )
        write_identity(files, path, UUID(place.id), [])

    def _write(self, places: list[Place]) -> None:
        others = {place.id: place.path for place in places if place.pool is not self.default}
        write_list(self._io.files, self._list_path, others)

    def _clear(self, path: str) -> None:
        """Leave the directory of a pool that is given up without its files; what cannot be removed is told."""
        files = self._io.files
        try:
            files.unlink(f"{path}/pool.json")
            for directory in (f"{path}/{name}" for name in _OWN if files.exists(f"{path}/{name}")):
                for name in files.listdir(directory):
                    files.unlink(f"{directory}/{name}")
            for name in files.listdir(path):
                if name.partition(".")[0] in ("meta", "fingerprints") or name == "lock":
                    files.unlink(f"{path}/{name}")
            files.sync_dir(path)
        except OSError as refused:
            log.warning("the files of a pool that was removed stay in %s: %s", path, refused)


def unavailable(place: Place) -> Unavailable:
    """The problem of whatever needs a pool that is closed."""
    cause = str(place.problem) if place.problem is not None else None
    remedy = (place.problem.remedy if place.problem is not None else None) or "see 'inn pool ls'"
    return Unavailable("pool.unavailable", f"the pool in {place.path} is not available", cause=cause, remedy=remedy)


def _unusable(path: str, refused: OSError) -> Failed:
    return Failed("pool.unusable", f"{path} cannot be used", cause=str(refused), remedy="look at its disk")


def _refuse_in_use(pool: Pool) -> None:
    with pool.catalog.admin:
        catalog = pool.catalog
        held = {
            "disks": len(catalog.disks),
            "snapshots": len(catalog.snapshots),
            "storages": len(catalog.storages),
            "attachments": len(catalog.attachments),
            "devices": sum(1 for device in pool.devices.all if device != HOME),
        }
    if any(held.values()):
        raise Conflict(
            "pool.in_use",
            f"the pool in {pool.path} is in use",
            cause=", ".join(f"{count} {what}" for what, count in held.items() if count),
            remedy="move or remove its disks, remove its storages, drain its other devices",
        )
