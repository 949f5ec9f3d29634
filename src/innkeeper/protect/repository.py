"""A repository: its identity and key, its index, its restore points. Format: docs/repository-format.md.

    config.json            identity, format version, cipher suite, key
    packs/<2>/<pack id>    entries: extents, map nodes, files
    index/<segment id>     which pack holds which name
    points/<backup id>     one restore point each: the last thing that a backup writes
    leases/                who uses the repository now
    doomed/, suspect/      marks on packs: about to be deleted, found damaged
    tmp/                   puts in progress (directory driver)

What a restore point needs is stored before it, so a crash at any moment leaves a valid repository: at worst with
packs that nothing names, which prune removes.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

from innkeeper.model.problems import Conflict, Corrupt, Invalid, NotFound, Problem, Refused
from innkeeper.protect.blobs import DRIVERS, Blobs
from innkeeper.protect.index import Index, Segment, build_segment, load_segment, names_array, parse_segment, records_of
from innkeeper.protect.leases import LEASE_ID_BYTES, Lease, LeaseFacts, LeaseKind, live_leases
from innkeeper.protect.maps import MapReader
from innkeeper.protect.pack import (
    HEADER_BYTES,
    Table,
    check_entry,
    newer,
    pack_id_of,
    pack_name,
    read_table,
    table_bytes,
    tail_bytes,
)
from innkeeper.protect.points import RestorePoint
from innkeeper.protect.sealing import (
    CIPHER_SUITE,
    FORMAT_VERSION,
    KEY_BYTES,
    Key,
    damaged,
    open_document,
    seal_document,
)
from innkeeper.system.clock import Clock, RealClock

CONFIG = "config.json"
_FORMAT = "innkeeper-repository"
_INDEX_ATTEMPTS = 8
Mark = Literal["doomed", "suspect"]
MARKS: tuple[Mark, ...] = ("doomed", "suspect")


@dataclass(frozen=True, slots=True)
class UnreadablePoint:
    """A restore point whose document is damaged or newer than this program."""

    id: str
    problem: Problem


def _unopenable(location: str, cause: str) -> Corrupt:
    return Corrupt(
        "repository.config",
        f"{location}/{CONFIG} cannot be used",
        cause=cause,
        remedy="put back the config.json that the repository was made with (a copy of it is as good)",
    )


class Repository:
    """An open repository. All methods block and may be called from any thread."""

    def __init__(self, blobs: Blobs, uuid: str, key: Key, location: str, clock: Clock) -> None:
        self.blobs = blobs
        self.uuid = uuid
        self.key = key
        self.location = location
        self.clock = clock

    # --- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, path: Path, driver: str = "directory", clock: Clock | None = None) -> Repository:
        """Make a repository in ``path``, a directory that is empty or absent; one that stands there is opened.

        Raises ``Invalid`` (``repository.path``), ``Conflict`` (``repository.foreign``) when other files lie there,
        ``NoSpace`` (``repository.full``), ``Failed`` (``repository.io``), and as ``open`` does.
        """
        if path.exists() and not path.is_dir():
            raise Invalid("repository.path", f"{path} is not a directory", remedy="name a directory")
        if not path.parent.is_dir():
            raise Invalid(
                "repository.path", f"{path.parent} does not exist", remedy="make it, or mount what belongs there"
            )
        if (path / CONFIG).exists():
            return cls.open(path, driver, clock=clock)
        if path.is_dir() and any(entry.name not in ("tmp", "lost+found") for entry in path.iterdir()):
            raise Conflict(
                "repository.foreign",
                f"{path} holds other files and is no repository",
                remedy="name an empty directory, a new one, or a repository",
            )
        return cls.create_on(DRIVERS[driver](path), str(path), clock)

    @classmethod
    def create_on(cls, blobs: Blobs, location: str = "repository", clock: Clock | None = None) -> Repository:
        """Make a repository on empty blobs; when another process did so at this instant, open that one."""
        key = Key(secrets.token_bytes(KEY_BYTES))
        config: dict[str, Any] = {
            "format": _FORMAT,
            "version": FORMAT_VERSION,
            "uuid": str(uuid4()),
            "cipher_suite": CIPHER_SUITE,
            "key": key.secret.hex(),
            "key_id": key.id.hex(),
            "created_at": datetime.fromtimestamp((clock or RealClock()).now(), UTC).isoformat(),
        }
        config["seal"] = _config_seal(key, config)
        try:
            blobs.put(CONFIG, [json.dumps(config, indent=1).encode() + b"\n"])
        except Conflict:
            pass
        return cls.open_on(blobs, location, clock=clock)

    @classmethod
    def open(
        cls, path: Path, driver: str = "directory", *, uuid: str | None = None, clock: Clock | None = None
    ) -> Repository:
        """The repository in ``path``; with ``uuid`` it must be that one.

        Raises ``NotFound`` (``repository.absent``), ``Conflict`` (``repository.changed``), ``Corrupt``
        (``repository.config``), ``Refused`` (``repository.newer``).
        """
        if not path.is_dir():
            raise NotFound(
                "repository.absent",
                f"there is no repository at {path}",
                cause="the directory does not exist",
                remedy="mount what belongs there, or make a repository with 'inn repository create'",
            )
        return cls.open_on(DRIVERS[driver](path), str(path), uuid=uuid, clock=clock)

    @classmethod
    def open_on(
        cls, blobs: Blobs, location: str = "repository", *, uuid: str | None = None, clock: Clock | None = None
    ) -> Repository:
        """As ``open``, on blobs."""
        try:
            data = blobs.get(CONFIG)
        except NotFound:
            raise NotFound(
                "repository.absent",
                f"{location} is no repository",
                cause=f"it has no {CONFIG}",
                remedy="mount what belongs there, or make a repository with 'inn repository create'",
            ) from None
        found, key = _parse_config(location, data)
        if uuid is not None and uuid != found:
            raise Conflict(
                "repository.changed",
                f"{location} holds another repository than it did",
                cause=f"expected {uuid}, found {found}",
                remedy="mount the right medium, or add this one under another name",
            )
        return cls(blobs, found, key, location, clock or RealClock())

    # --- index -----------------------------------------------------------------------------------------------------

    def load_index(self, *, thorough: bool = False) -> Index:
        """The index as it is now; ``thorough``: also of packs that no segment names, from their own tables.

        A segment that is damaged is made up for in the same way. Raises ``Refused`` (``repository.newer``).
        """
        segments, problems = self.read_segments()
        for _, problem in problems:
            if isinstance(problem, Refused):
                raise problem
        if problems or thorough:
            segments.extend(self._segments_of_packs(Index(segments)))
        return Index(segments, self.unusable())

    def _segments_of_packs(self, index: Index) -> Iterator[Segment]:
        """A segment, in memory, for each readable pack that ``index`` does not name."""
        for blob in list(self.blobs.ls("packs/")):
            pack_id = pack_id_of(blob.name)
            if pack_id is None or index.row(pack_id) is not None:
                continue
            try:
                table = self.pack_table(blob.name, blob.size_bytes)
            except (Corrupt, NotFound, Refused):
                continue  # verify names it; what it held is missing where it is asked for
            name, parts = build_segment(
                self.key, [(pack_id, blob.size_bytes)], records_of(table, 0), bytes(LEASE_ID_BYTES)
            )
            yield parse_segment(self.key, name, b"".join(parts))

    def pack_table(self, blob_name: str, size_bytes: int) -> Table:
        """The table of a pack. Raises ``Corrupt``, ``NotFound`` (``blob.absent``), ``Refused``
        (``repository.newer``)."""
        header = self.blobs.get(blob_name, 0, HEADER_BYTES)
        tail = self.blobs.get(blob_name, size_bytes - tail_bytes(size_bytes), tail_bytes(size_bytes))
        table = read_table(self.key, blob_name, size_bytes, header, tail)
        if table is None:
            length = min(size_bytes, table_bytes(tail))
            tail = self.blobs.get(blob_name, size_bytes - length, length)
            table = read_table(self.key, blob_name, size_bytes, header, tail)
        if table is None:
            raise damaged(blob_name, 0, "it is cut short")
        return table

    def read_segments(self) -> tuple[list[Segment], list[tuple[str, Problem]]]:
        """All segments, and those that cannot be used with their problem."""
        for _ in range(_INDEX_ATTEMPTS):
            segments: list[Segment] = []
            problems: list[tuple[str, Problem]] = []
            try:
                for blob in sorted(self.blobs.ls("index/")):
                    try:
                        segments.append(load_segment(self.key, self.blobs, blob.name))
                    except (Corrupt, Refused) as problem:
                        problems.append((blob.name, problem))
            except NotFound:
                continue  # a prune replaced it between the listing and now: list again
            return segments, problems
        raise Corrupt("repository.corrupt", "the index vanishes while it is read", remedy="verify the repository")

    def marked(self, mark: Mark) -> set[bytes]:
        """Packs that carry a mark: ``doomed`` (about to be deleted) or ``suspect`` (found damaged)."""
        ids = (pack_id_of(blob.name.replace(mark, "packs", 1)) for blob in self.blobs.ls(f"{mark}/"))
        return {pack_id for pack_id in ids if pack_id is not None}

    def unusable(self) -> set[bytes]:
        """Packs that nothing new may stand on."""
        return self.marked("doomed") | self.marked("suspect")

    def mark(self, mark: Mark, pack_id: bytes) -> None:
        """Mark the pack; one that is marked stays so."""
        name = pack_name(pack_id).replace("packs", mark, 1)
        try:
            self.blobs.put(name, [seal_document(self.key, name, {"marked_at": self.clock.now()})])
        except Conflict:
            pass

    def unmark(self, mark: Mark, pack_id: bytes) -> None:
        """Take the mark away; without it nothing happens."""
        self.blobs.delete(pack_name(pack_id).replace("packs", mark, 1))

    def marked_at(self, mark: Mark, pack_id: bytes) -> float:
        """When the pack was marked, in seconds since the epoch. Raises ``NotFound`` (``blob.absent``), ``Corrupt``."""
        name = pack_name(pack_id).replace("packs", mark, 1)
        return float(open_document(self.key, name, self.blobs.get(name))["marked_at"])

    # --- restore points --------------------------------------------------------------------------------------------

    def point_ids(self) -> list[str]:
        """Ids of all restore points."""
        return sorted(blob.name.removeprefix("points/") for blob in self.blobs.ls("points/"))

    def point(self, backup_id: str) -> RestorePoint:
        """The restore point. Raises ``NotFound`` (``backup.not_found``), ``Corrupt``, ``Refused``
        (``repository.newer``)."""
        name = f"points/{backup_id}"
        try:
            data = self.blobs.get(name)
        except NotFound:
            raise NotFound(
                "backup.not_found", f"the repository at {self.location} has no restore point {backup_id}"
            ) from None
        document = open_document(self.key, name, data)
        if document.get("version") != FORMAT_VERSION:
            raise newer(name, int(document.get("version", 0)), CIPHER_SUITE)
        return RestorePoint.of_document(document)

    def points(self) -> tuple[list[RestorePoint], list[UnreadablePoint]]:
        """All restore points, oldest first, and those that cannot be read."""
        good: list[RestorePoint] = []
        bad: list[UnreadablePoint] = []
        for backup_id in self.point_ids():
            try:
                good.append(self.point(backup_id))
            except NotFound:
                continue  # removed between the listing and now
            except (Corrupt, Refused) as problem:
                bad.append(UnreadablePoint(backup_id, problem))
        return sorted(good, key=lambda point: (point.taken_at, point.id)), bad

    def put_point(self, point: RestorePoint) -> None:
        """Publish. Raises ``Conflict`` (``blob.exists``), ``NoSpace`` (``repository.full``)."""
        name = f"points/{point.id}"
        self.blobs.put(name, [seal_document(self.key, name, {"version": FORMAT_VERSION, **point.as_document()})])

    def remove_point(self, backup_id: str) -> None:
        """Remove the restore point, in any order and at any time; prune gives back what only it needed.

        Raises ``NotFound`` (``backup.not_found``).
        """
        name = f"points/{backup_id}"
        try:
            self.blobs.size(name)
        except NotFound:
            raise NotFound(
                "backup.not_found", f"the repository at {self.location} has no restore point {backup_id}"
            ) from None
        self.blobs.delete(name)

    # --- leases ----------------------------------------------------------------------------------------------------

    @contextmanager
    def lease(self, kind: LeaseKind, standing_on: list[RestorePoint] | None = None) -> Iterator[Lease]:
        """A lease held in the block; what the restore points in ``standing_on`` need stays, even when they are
        removed."""
        roots = [(disk.levels - 1, disk.root.hex()) for point in standing_on or [] for disk in point.disks if disk.root]
        names = [name.hex() for point in standing_on or [] for file in point.files.values() for name in file.parts]
        with Lease(self.blobs, self.key, self.clock, kind, roots, names) as lease:
            yield lease

    def leases(self) -> list[LeaseFacts]:
        """Leases that are not over."""
        return live_leases(self.blobs, self.key, self.clock)

    # --- reading ---------------------------------------------------------------------------------------------------

    def reader(self) -> EntryReader:
        """Reads single entries, verified, through an index loaded now."""
        return EntryReader(self, self.load_index())


class EntryReader:
    """Reads entries by name; every byte it returns was verified against the name."""

    def __init__(self, repository: Repository, index: Index) -> None:
        self._repository = repository
        self.index = index
        self.maps = MapReader(self.read)

    def reload(self) -> None:
        """Load the index again: a prune may have moved entries, or a segment may be lost."""
        self.index = self._repository.load_index(thorough=True)

    def read(self, name: bytes) -> bytes:
        """The plaintext. Raises ``Corrupt`` (``repository.corrupt``, ``repository.incomplete``)."""
        for attempt in range(2):
            found = self.index.find(names_array([name]))
            if found.pack[0] < 0:
                if attempt:
                    break
                self.reload()
                continue
            record = found.records[0]
            blob_name = self.index.name_of(int(found.pack[0]))
            try:
                stored = self._repository.blobs.get(blob_name, int(record["offset"]), int(record["stored"]))
            except NotFound:
                if attempt:
                    break
                self.reload()
                continue
            checked = check_entry(
                self._repository.key,
                name,
                int(record["kind"]),
                stored,
                int(record["crc"]),
                int(record["codec"]),
                int(record["raw"]),
            )
            if isinstance(checked, str):
                raise damaged(blob_name, int(record["offset"]), checked)
            return checked
        raise missing(name)


def missing(name: bytes) -> Corrupt:
    """The problem of an entry that no pack holds."""
    return Corrupt(
        "repository.incomplete",
        f"the repository lacks the entry {name.hex()}",
        cause="a pack or an index segment was deleted or cannot be read",
        remedy="run 'inn repository verify' to see which restore points are hit; the others can be restored",
    )


def _config_seal(key: Key, config: dict[str, Any]) -> str:
    body = {name: value for name, value in config.items() if name != "seal"}
    return key.seal(CONFIG, json.dumps(body, sort_keys=True).encode()).hex()


def _parse_config(location: str, data: bytes) -> tuple[str, Key]:
    try:
        config = json.loads(data)
        if not isinstance(config, dict) or config.get("format") != _FORMAT:
            raise _unopenable(location, "it is no repository's")
        version, suite = int(config["version"]), int(config["cipher_suite"])
        if version != FORMAT_VERSION or suite != CIPHER_SUITE:
            raise newer(f"{location}/{CONFIG}", version, suite)
        key = Key(bytes.fromhex(config["key"]))
        uuid, key_id, seal = str(config["uuid"]), str(config["key_id"]), str(config["seal"])
    except (ValueError, KeyError, TypeError) as broken:
        raise _unopenable(location, f"it is damaged: {broken}") from broken
    if key.id.hex() != key_id:
        raise _unopenable(location, "its key is not the one that its key id names")
    if _config_seal(key, config) != seal:
        raise _unopenable(location, "its seal does not match")
    return uuid, key
