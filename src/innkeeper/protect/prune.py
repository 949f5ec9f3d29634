"""Prune: give back the space of what no restore point needs. Runs beside backups, restores and other inns.

1. Mark what restore points and leases reach, one bit for each entry of the index. 2. Packs that nothing live is in
are doomed; packs that little live is in are copied into new ones, then doomed. 3. After the grace, restore points and
leases are looked at again: a doomed pack that is needed after all is spared. 4. While a writer is at work that began
before the dooms, deletion is left to the next prune: the writer may stand on them. 5. New index segments without the
doomed packs, then the old segments, the packs and the dooms are deleted.

Every step can be the last: the next prune goes on from what it finds.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from innkeeper.model.problems import Corrupt, NotFound
from innkeeper.protect.bridge import ProgressCallback, Worker, in_thread
from innkeeper.protect.index import (
    Index,
    Names,
    Records,
    Segment,
    build_segment,
    join_records,
    names_array,
    segment_name,
)
from innkeeper.protect.leases import LEASE_ID_BYTES, SKEW_S, LeaseFacts, live_leases, refuse_second_prune
from innkeeper.protect.maps import MapRoot, taken_places
from innkeeper.protect.pack import Encoded, pack_name
from innkeeper.protect.points import RestorePoint
from innkeeper.protect.repository import MARKS, EntryReader, Repository, missing
from innkeeper.protect.sealing import Kind, damaged, fabric_hash
from innkeeper.protect.writer import PackWriter

REWRITE_BELOW = 0.5
_SEGMENT_ENTRIES = 1_000_000
_TMP_AGE_S = 24 * 3600.0
_NO_WRITER = bytes(LEASE_ID_BYTES)


@dataclass(frozen=True, slots=True)
class PruneResult:
    """What a prune did; ``pending_packs`` wait for writers at work or for the grace, the next prune deletes them."""

    live_bytes: int
    freed_bytes: int
    deleted_packs: int
    rewritten_bytes: int
    pending_packs: int
    pending_bytes: int
    dry_run: bool


@dataclass(slots=True)
class _Marks:
    """Which rows of each segment are live, and what was walked already."""

    live: list[NDArray[np.bool_]]
    walked: set[tuple[int, bytes]] = field(default_factory=set)


async def prune(
    repository: Repository,
    *,
    dry_run: bool = False,
    grace_s: float = 0.0,
    progress: ProgressCallback | None = None,
) -> PruneResult:
    """Delete what nothing needs; ``dry_run`` only says how much that is.

    ``grace_s``: doomed packs are deleted by a prune that long after they were doomed; 0 suits a directory, whose
    listings are always up to date. Raises ``Conflict`` (``repository.prune_running``), ``Corrupt`` when a restore
    point or map cannot be read (then nothing is deleted), ``NoSpace`` (``repository.full``).
    """

    def work(worker: Worker) -> PruneResult:
        if dry_run:
            return _Prune(repository, worker, grace_s).plan()
        with repository.lease("prune") as lease:
            refuse_second_prune(repository.leases(), lease.id)
            return _Prune(repository, worker, grace_s).run(lease.id_bytes)

    return await in_thread(work, progress)


class _Prune:
    def __init__(self, repository: Repository, worker: Worker, grace_s: float) -> None:
        self.repository = repository
        self.worker = worker
        self.grace_s = grace_s
        self.index = repository.load_index(thorough=True)
        self.reader = EntryReader(repository, self.index)
        self.marks = _Marks([np.zeros(len(segment.records), dtype=np.bool_) for segment in self.index.segments])
        self.seen_points: set[str] = set()
        stored = {blob.name for blob in repository.blobs.ls("index/")}
        self.is_stored = [segment_name(segment.id) in stored for segment in self.index.segments]

    # --- what is live ----------------------------------------------------------------------------------------------

    def mark(self) -> list[LeaseFacts]:
        """Mark what restore points and leases reach that were not looked at yet; returns the leases.

        Raises ``Corrupt``: a map that cannot be read might name anything.
        """
        leases = live_leases(self.repository.blobs, self.repository.key, self.repository.clock, forget_dead=True)
        for lease in leases:
            for level, name in lease.roots:
                self._walk(MapRoot(bytes.fromhex(name), level + 1))
            self._live(names_array([bytes.fromhex(name) for name in lease.names]))
        points, unreadable = self.repository.points()
        if unreadable:
            raise Corrupt(
                "repository.corrupt",
                f"points/{unreadable[0].id} cannot be read, so nothing can be pruned",
                cause=str(unreadable[0].problem),
                remedy="remove that restore point with 'inn backup rm', then prune",
            )
        for number, point in enumerate(points):
            if point.id not in self.seen_points:
                self._point(point)
            self.worker.report(number + 1, len(points) + 1, f"marking {point.vm_name}")
        return leases

    def _point(self, point: RestorePoint) -> None:
        for disk in point.disks:
            self._walk(disk.map_root)
        for file in point.files.values():
            self._live(names_array(file.parts))
        self.seen_points.add(point.id)

    def _walk(self, root: MapRoot) -> None:
        def fresh(name: bytes, level: int) -> bool:
            if (level, name) in self.marks.walked:
                return False
            self.marks.walked.add((level, name))
            self._live(names_array([name]))
            return True

        try:
            for leaf in self.reader.maps.walk(root, fresh):
                self._live(leaf.names[taken_places(leaf.names)])
                self.worker.check()
        except ValueError as broken:
            raise damaged(f"map {(root.name or b'').hex()}", 0, str(broken)) from broken

    def _live(self, names: Names) -> None:
        """Mark where the names are: in one place that is sound, or else in all."""
        open_ = np.ones(len(names), dtype=np.bool_)
        places = self.index.where(names)
        for usable_only in (True, False):
            for number, rows in enumerate(places):
                hit = np.flatnonzero(open_ & (rows >= 0))
                packs = self.index.pack_rows(number)[self.index.segments[number].records["pack"][rows[hit]]]
                if usable_only:
                    hit = hit[self.index.usable[packs]]
                self.marks.live[number][rows[hit]] = True
                if usable_only:
                    open_[hit] = False
        found = np.zeros(len(names), dtype=np.bool_)
        for rows in places:
            found |= rows >= 0
        if not found.all():
            raise missing(names[int(np.argmin(found))].tobytes())

    def live_bytes(self) -> NDArray[np.int64]:
        """For each pack the stored bytes of its live entries."""
        live = np.zeros(len(self.index.packs), dtype=np.int64)
        for number, segment in enumerate(self.index.segments):
            rows = np.flatnonzero(self.marks.live[number])
            packs = self.index.pack_rows(number)[segment.records["pack"][rows]]
            np.add.at(live, packs, segment.records["stored"][rows].astype(np.int64))
        return live

    # --- plan and run ----------------------------------------------------------------------------------------------

    def plan(self) -> PruneResult:
        """What a run would delete and rewrite."""
        leases = self.mark()
        live = self.live_bytes()
        dead, sparse = self._choose(live, leases)
        freed = sum(self.index.sizes[row] for row in dead + sparse) - int(sum(live[row] for row in sparse))
        return PruneResult(
            int(live.sum()), freed, len(dead) + len(sparse), int(sum(live[row] for row in sparse)), 0, 0, True
        )

    def _choose(self, live: NDArray[np.int64], leases: Iterable[LeaseFacts]) -> tuple[list[int], list[int]]:
        """Rows of packs without anything live, and of packs with so little that they are rewritten.

        A pack that a writer at work has stored is left alone: its restore point is yet to come. So is, while there is
        any writer, a pack that no stored segment names.
        """
        writers = {bytes.fromhex(lease.id) for lease in leases if lease.kind == "writer"}
        guarded: set[int] = set()
        for number, segment in enumerate(self.index.segments):
            if segment.writer in writers or (writers and not self.is_stored[number]):
                guarded.update(self.index.pack_rows(number).tolist())
        dead, sparse = [], []
        for row, size_bytes in enumerate(self.index.sizes):
            if row in guarded:
                continue
            if live[row] == 0:
                dead.append(row)
            elif live[row] < REWRITE_BELOW * size_bytes and self.index.usable[row]:
                sparse.append(row)
        return dead, sparse

    def run(self, lease_id: bytes) -> PruneResult:
        """Prune."""
        blobs = self.repository.blobs
        blobs.clean(_TMP_AGE_S)
        leases = self.mark()
        dead, sparse = self._choose(self.live_bytes(), leases)
        rewritten = self._rewrite(sparse, lease_id)
        for row in dead + sparse:
            self.repository.mark("doomed", self.index.packs[row])
        self._reload()
        leases = self.mark()
        live = self.live_bytes()
        doomed = [row for row in map(self.index.row, self.repository.marked("doomed")) if row is not None]
        spared = [row for row in doomed if live[row]]
        for row in spared:
            self.repository.unmark("doomed", self.index.packs[row])
        doomed = [row for row in doomed if not live[row]]
        ripe, pending = self._ripe(doomed, leases)
        freed = self._delete(ripe) if ripe else 0
        self._forget_marks()
        return PruneResult(
            int(live.sum()),
            freed,
            len(ripe),
            rewritten,
            len(pending),
            sum(self.index.sizes[row] for row in pending),
            False,
        )

    def _reload(self) -> None:
        """Look again, with the dooms in force: what is live is marked anew in packs that stay, where there is a
        choice."""
        again = _Prune(self.repository, self.worker, self.grace_s)
        self.index, self.reader, self.marks = again.index, again.reader, again.marks
        self.seen_points, self.is_stored = again.seen_points, again.is_stored

    def _ripe(self, doomed: list[int], leases: Iterable[LeaseFacts]) -> tuple[list[int], list[int]]:
        """Doomed packs to delete now, and those that must wait."""
        began = min((lease.taken_at for lease in leases if lease.kind == "writer"), default=None)
        now = self.repository.clock.now()
        ripe: list[int] = []
        pending: list[int] = []
        for row in doomed:
            at = self.repository.marked_at("doomed", self.index.packs[row])
            waits = now - at < self.grace_s or (began is not None and began <= at + SKEW_S)
            (pending if waits else ripe).append(row)
        return ripe, pending

    def _rewrite(self, sparse: list[int], lease_id: bytes) -> int:
        """Copy what is live in sparse packs, verified, into new packs; returns the bytes copied."""
        if not sparse:
            return 0
        chosen = np.zeros(len(self.index.packs), dtype=np.bool_)
        chosen[sparse] = True
        without = Index(self.index.segments, [self.index.packs[row] for row in sparse])
        copied = 0
        with ExitStack() as stack:
            writer = stack.enter_context(PackWriter(self.repository, without, lease_id))
            for number, segment in enumerate(self.index.segments):
                packs = self.index.pack_rows(number)[segment.records["pack"]]
                for row in np.flatnonzero(self.marks.live[number] & chosen[packs]):
                    copied += self._copy(segment.records[row], int(packs[row]), writer)
                    self.worker.check()
            writer.finish()
        return copied

    def _copy(self, record: Records, pack_row: int, writer: PackWriter) -> int:
        name = record["name"].tobytes()
        blob_name = self.index.name_of(pack_row)
        plaintext = self.reader.read(name)
        stored = self.repository.blobs.get(blob_name, int(record["offset"]), int(record["stored"]))
        hashed = Encoded(fabric_hash(plaintext), stored, len(plaintext), int(record["codec"]))
        writer.add(name, hashed, Kind(int(record["kind"])))
        return len(stored)

    def _delete(self, ripe: list[int]) -> int:
        """New segments first, then the old ones, the packs, and last their marks."""
        gone = np.zeros(len(self.index.packs), dtype=np.bool_)
        gone[ripe] = True
        writers = {bytes.fromhex(lease.id) for lease in self.repository.leases() if lease.kind == "writer"}
        # What no stored segment names may be a writer's, whose segment is yet to come.
        replaced = [] if writers else [name for name, _ in self.repository.read_segments()[1]]
        kept: list[tuple[Segment, NDArray[np.int64]]] = []
        for number, segment in enumerate(self.index.segments):
            rows = self.index.pack_rows(number)
            stored = self.is_stored[number]
            if stored and not gone[rows].any() and len(segment.records) > _SEGMENT_ENTRIES // 4:
                continue
            if stored:
                replaced.append(segment_name(segment.id))
            if stored or not writers:
                kept.append((segment, rows))
        self._put_segments(kept, gone, writers)
        for name in replaced:
            self.repository.blobs.delete(name)
        freed = 0
        for row in ripe:
            self.repository.blobs.delete(self.index.name_of(row))
            freed += self.index.sizes[row]
            self.repository.unmark("suspect", self.index.packs[row])
            self.repository.unmark("doomed", self.index.packs[row])
        return freed

    def _forget_marks(self) -> None:
        """Take away marks of packs that are gone, left by a prune that died between the two."""
        for mark in MARKS:
            for pack_id in self.repository.marked(mark):
                if self.index.row(pack_id) is None and not self._is_there(pack_id):
                    self.repository.unmark(mark, pack_id)

    def _is_there(self, pack_id: bytes) -> bool:
        try:
            self.repository.blobs.size(pack_name(pack_id))
        except NotFound:
            return False
        return True

    def _put_segments(
        self, segments: list[tuple[Segment, NDArray[np.int64]]], gone: NDArray[np.bool_], writers: set[bytes]
    ) -> None:
        """Store the segments' entries of packs that stay, in segments of about a million; a live writer's stay its
        own."""
        by_writer: dict[bytes, list[tuple[Segment, NDArray[np.int64]]]] = {}
        for segment, rows in segments:
            writer = segment.writer if segment.writer in writers else _NO_WRITER
            by_writer.setdefault(writer, []).append((segment, rows))
        for writer, group in by_writer.items():
            parts: list[Records] = []
            for segment, rows in group:
                packs = rows[segment.records["pack"]]
                keep = ~gone[packs]
                records = segment.records[keep].copy()
                records["pack"] = packs[keep]
                parts.append(records)
                if sum(map(len, parts)) >= _SEGMENT_ENTRIES:
                    self._put_segment(join_records(parts), writer)
                    parts = []
            if sum(map(len, parts)):
                self._put_segment(join_records(parts), writer)

    def _put_segment(self, records: Records, writer: bytes) -> None:
        """Store records whose ``pack`` is a row of the whole index."""
        rows, local = np.unique(records["pack"], return_inverse=True)
        records["pack"] = local
        packs = [(self.index.packs[row], self.index.sizes[row]) for row in rows.tolist()]
        name, parts = build_segment(self.repository.key, packs, records, writer)
        self.repository.blobs.put(name, parts)
