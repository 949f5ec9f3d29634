"""Verification: read everything, check every checksum and hash, and say which restore points are hit.

A pack with damage is marked suspect: nothing new stands on it any more, so the next backup without a base stores anew
what it held, and restore points that were hit become whole again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from innkeeper.model.problems import Corrupt, NotFound, Problem, Refused
from innkeeper.protect.bridge import ProgressCallback, Worker, in_thread
from innkeeper.protect.index import Index, Names, names_array
from innkeeper.protect.maps import taken_places
from innkeeper.protect.pack import (
    HEADER_BYTES,
    Entry,
    check_entry,
    entries_of,
    pack_id_of,
    pack_name,
    read_table,
)
from innkeeper.protect.points import RestorePoint
from innkeeper.protect.repository import EntryReader, Repository, missing
from innkeeper.protect.restore import Fetcher
from innkeeper.protect.sealing import damaged

_BATCH = 1024


@dataclass(slots=True)
class Damage:
    """Something in the repository that is not what was written, and the restore points that it hits."""

    blob: str
    offset: int
    what: str
    points: list[str] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    """Entries that cannot be had from there."""

    def as_dict(self) -> dict[str, Any]:
        """JSON form, without the names."""
        return {"blob": self.blob, "offset": self.offset, "what": self.what, "points": self.points}


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a verification found. ``damaged_points``: those that cannot be restored in full."""

    points: list[str]
    damaged_points: list[str]
    damages: list[Damage]
    checked_bytes: int
    packs: int
    duration_s: float

    @property
    def ok(self) -> bool:
        return not self.damages

    def as_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "ok": self.ok,
            "points": self.points,
            "damaged_points": self.damaged_points,
            "damages": [damage.as_dict() for damage in self.damages],
            "checked_bytes": self.checked_bytes,
            "packs": self.packs,
            "duration_s": self.duration_s,
        }

    def problem(self) -> Corrupt | None:
        """The report as a problem to fail a task with; ``None`` when all is sound."""
        if self.ok:
            return None
        first = self.damages[0]
        hit = ", ".join(self.damaged_points) or "none"
        return Corrupt(
            "repository.corrupt",
            f"{first.blob} at byte {first.offset}: {first.what}"
            + (f", and {len(self.damages) - 1} more" if len(self.damages) > 1 else ""),
            cause=f"restore points that are hit: {hit}",
            remedy="replace the medium if it fails; a full backup stores again what was lost; other points are sound",
        )


async def verify(
    repository: Repository, backup_id: str | None = None, progress: ProgressCallback | None = None
) -> VerifyReport:
    """Check the whole repository, or what one restore point needs. Damage is reported, not raised.

    Raises ``NotFound`` (``backup.not_found``), ``Unavailable``, ``Failed`` (``repository.io``).
    """

    def work(worker: Worker) -> VerifyReport:
        verifier = _Verifier(repository, worker)
        return verifier.everything() if backup_id is None else verifier.one(backup_id)

    return await in_thread(work, progress)


class _Verifier:
    def __init__(self, repository: Repository, worker: Worker) -> None:
        self.repository = repository
        self.worker = worker
        self.damages: list[Damage] = []
        self.checked_bytes = 0
        self.started = repository.clock.monotonic()

    def everything(self) -> VerifyReport:
        segments, unusable = self.repository.read_segments()
        for name, problem in unusable:
            self.damages.append(Damage(name, 0, problem.detail))
        index = Index(segments, self.repository.marked("doomed"))
        packs = {blob.name: blob.size_bytes for blob in self.repository.blobs.ls("packs/")}
        total = sum(packs.values())
        for blob_name, size_bytes in sorted(packs.items()):
            self._pack(blob_name, size_bytes, total)
        for row, pack_id in enumerate(index.packs):
            if pack_name(pack_id) not in packs and index.usable[row]:
                self.damages.append(Damage(pack_name(pack_id), 0, "the pack is missing", names=list(_held(index, row))))
        points, unreadable = self.repository.points()
        for point in unreadable:
            self.damages.append(Damage(f"points/{point.id}", 0, point.problem.detail, points=[point.id]))
        self._mark_suspect()
        hit = self._points_hit(points) | {point.id for point in unreadable}
        ids = sorted([point.id for point in points] + [point.id for point in unreadable])
        return self._report(ids, hit, len(packs))

    def _report(self, points: list[str], hit: Iterable[str], packs: int) -> VerifyReport:
        duration_s = self.repository.clock.monotonic() - self.started
        return VerifyReport(points, sorted(hit), self.damages, self.checked_bytes, packs, duration_s)

    # --- packs -----------------------------------------------------------------------------------------------------

    def _pack(self, blob_name: str, size_bytes: int, total_bytes: int) -> None:
        if pack_id_of(blob_name) is None:
            self.damages.append(Damage(blob_name, 0, "it is no pack"))
            return
        try:
            data = self.repository.blobs.get(blob_name)
        except NotFound:
            return  # pruned between the listing and now
        except Problem as refused:
            self.damages.append(Damage(blob_name, 0, str(refused), names=self._named_in_index(blob_name)))
            return
        try:
            table = read_table(self.repository.key, blob_name, len(data), data[:HEADER_BYTES], data)
            if table is None:
                raise damaged(blob_name, 0, "it is cut short")
        except (Corrupt, Refused) as problem:
            self.damages.append(Damage(blob_name, 0, problem.detail, names=self._named_in_index(blob_name)))
            return
        for entry in entries_of(table):
            self._entry(blob_name, data, entry)
        self.checked_bytes += size_bytes
        self.worker.report(self.checked_bytes, total_bytes, f"checking {blob_name}")

    def _entry(self, blob_name: str, data: bytes, entry: Entry) -> None:
        stored = data[entry.offset : entry.offset + entry.stored]
        checked = check_entry(self.repository.key, entry.name, entry.kind, stored, entry.crc, entry.codec, entry.raw)
        if isinstance(checked, str):
            self.damages.append(Damage(blob_name, entry.offset, checked, names=[entry.name]))

    def _named_in_index(self, blob_name: str) -> list[bytes]:
        """What the index says is in that pack."""
        pack_id = pack_id_of(blob_name)
        index = Index(self.repository.read_segments()[0])
        row = index.row(pack_id) if pack_id else None
        return [] if row is None else list(_held(index, row))

    def _mark_suspect(self) -> None:
        ids = {pack_id_of(damage.blob) for damage in self.damages}
        for pack_id in sorted(pack_id for pack_id in ids if pack_id is not None):
            self.repository.mark("suspect", pack_id)

    # --- restore points --------------------------------------------------------------------------------------------

    def _points_hit(self, points: list[RestorePoint]) -> set[str]:
        """Which points need something that cannot be had; fills in the points of each damage."""
        reader = EntryReader(self.repository, self.repository.load_index(thorough=True))
        lost = {name: damage for damage in self.damages for name in damage.names}
        hit: set[str] = set()
        for point in points:
            for number, name in enumerate(self._unavailable(point, reader, lost)):
                hit.add(point.id)
                damage = lost.get(name)
                if damage is None:
                    damage = lost[name] = Damage(f"points/{point.id}", 0, missing(name).detail, names=[name])
                    self.damages.append(damage)
                if point.id not in damage.points:
                    damage.points.append(point.id)
                if number % _BATCH == 0:
                    self.worker.check()
        return hit

    def _unavailable(self, point: RestorePoint, reader: EntryReader, lost: dict[bytes, Damage]) -> Iterator[bytes]:
        """Names that the point needs and that no sound pack holds."""
        for file in point.files.values():
            yield from self._unsound(names_array(file.parts), reader, lost)
        for disk in point.disks:
            failed: list[bytes] = []

            def readable(name: bytes, level: int, failed: list[bytes] = failed) -> bool:
                try:
                    reader.maps.node(name, level)
                except (Corrupt, ValueError):
                    failed.append(name)
                    return False
                return True

            for leaf in reader.maps.walk(disk.map_root, readable):
                yield from self._unsound(leaf.names[taken_places(leaf.names)], reader, lost)
            yield from failed

    def _unsound(self, names: Names, reader: EntryReader, lost: dict[bytes, Damage]) -> Iterator[bytes]:
        found = reader.index.find(names)
        for place, pack in enumerate(found.pack.tolist()):
            name = names[place].tobytes()
            # A copy in a pack that is not suspect makes up for the damage.
            if pack < 0 or (name in lost and not reader.index.usable[pack]):
                yield name

    def one(self, backup_id: str) -> VerifyReport:
        """Only what one restore point needs."""
        point = self.repository.point(backup_id)
        fetcher = Fetcher(self.repository)
        try:
            self._contents(point, fetcher)
        finally:
            fetcher.close()
        for damage in self.damages:
            damage.points = [point.id]
        return self._report([point.id], [point.id] if self.damages else [], 0)

    def _contents(self, point: RestorePoint, fetcher: Fetcher) -> None:
        for file in point.files.values():
            self._fetch(names_array(file.parts), fetcher)
        seen = 0
        for disk in point.disks:

            def readable(name: bytes, level: int) -> bool:
                try:
                    fetcher.reader.maps.node(name, level)
                except (Corrupt, ValueError) as problem:
                    self.damages.append(Damage(f"points/{point.id}", 0, str(problem)))
                    return False
                return True

            for leaf in fetcher.reader.maps.walk(disk.map_root, readable):
                names = leaf.names[taken_places(leaf.names)]
                self._fetch(names, fetcher)
                seen += len(names)
                self.worker.report(seen, max(1, point.logical_bytes // 65536), "checking")

    def _fetch(self, names: Names, fetcher: Fetcher) -> None:
        """Fetch together; when something is damaged, one by one to name each."""
        try:
            contents = fetcher.fetch(names, self.worker)
            self.checked_bytes += sum(map(len, contents.values()))
        except Corrupt:
            for row in np.unique(names, axis=0):
                try:
                    self.checked_bytes += len(fetcher.reader.read(row.tobytes()))
                except Corrupt as problem:
                    self.damages.append(Damage(f"entry {row.tobytes().hex()}", 0, problem.detail))


def _held(index: Index, pack_row: int) -> Iterator[bytes]:
    """Names that the index says are in a pack."""
    for number, segment in enumerate(index.segments):
        rows = np.flatnonzero(index.pack_rows(number)[segment.records["pack"]] == pack_row)
        for record in segment.records[rows]:
            yield record["name"].tobytes()
