"""The log: where every write lands first, appended in batches to preallocated segments.

One thread at a time appends (``append`` takes the log's lock); any thread may sync. What ``append`` returned from is in
the kernel; what ``sync`` returned from is on the medium. A position is ``segment number << 20 | page in segment``.

A failed fdatasync is never repeated on its segment: the unsynced batches are read back, checked by their CRCs, written
to a new segment and synced there (``_rescue``). When that fails too the log is broken and takes nothing more.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import UUID

from innkeeper.fabric.layout import PAGE, crc32c
from innkeeper.fabric.logformat import (
    HEADER_BYTES,
    Record,
    SegmentHeader,
    decode_batch,
    encode_batch,
    encode_segment_header,
    seed_for,
)
from innkeeper.model.problems import Failed, NoSpace, Problem
from innkeeper.system.files import Buffer, File, FileSystem, write_all

SEGMENT_BYTES = 32 << 20
WRITE_OUT_BYTES = 4 << 20
POSITION_SHIFT = 20
_PAGE_MASK = (1 << POSITION_SHIFT) - 1


@dataclass(slots=True)
class Segment:
    """A file of the log in one of its lives."""

    number: int
    file: File
    size: int
    generation: int = 0
    seed: int = 0
    tail: int = 0
    """Bytes used; 0 while free."""
    first_sequence: int = 0
    previous_sequence: int = 0
    last_sequence: int = 0
    dirty: bool = False
    written_out: int = 0
    closed: bool = False


@dataclass(slots=True)
class Staged:
    """A record with its payload, on its way to the log; ``position`` is where its first page went."""

    record: Record
    buffers: Sequence[Buffer] = ()
    position: int = field(default=0)


class OpLog:
    """Appends, syncs and reads batches; ``limit_bytes`` bounds what undrained segments may take."""

    def __init__(
        self,
        files: FileSystem,
        directory: str,
        pool_id: UUID,
        *,
        limit_bytes: int,
        segment_bytes: int = SEGMENT_BYTES,
        kick: Callable[[], None] = lambda: None,
    ) -> None:
        self._files = files
        self._directory = directory
        self._pool_id = pool_id
        self.limit_bytes = limit_bytes
        self.segment_bytes = segment_bytes
        self.lock = threading.RLock()
        self._sync_lock = threading.Lock()
        self.segments: dict[int, Segment] = {}
        self._free: list[Segment] = []
        self._active: Segment | None = None
        self._next_number = 0
        self.generation = 0
        self.sequence = 0
        self.synced_upto = 0
        self.appended_bytes = 0
        """Since this was made."""
        self.broken: Problem | None = None
        self._begun: tuple[Segment, int] | None = None
        """Where the first batch of the present append, or of the last one, went."""
        self.unsettled = False
        """A failed append has left something that the medium may have: the next sync is not to be spared."""
        self.kick = kick
        self.before_sync: Callable[[], None] = lambda: None
        """Puts on the medium what records name and the log does not hold; where it raises ``Problem`` the log is
        broken."""
        self.on_moved: Callable[[dict[int, int]], None] = lambda moved: None
        """Told old position -> new position of payload pages after a rescue, under the log's lock."""

    # -- space -----------------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        """Bytes of the bound that are taken: closed segments whole, the open one up to its tail."""
        closed = len(self.segments) - len(self._free) - (self._active is not None)
        return closed * self.segment_bytes + (self._active.tail if self._active else 0)

    def adopt(self, segment: Segment) -> None:
        """Add a segment found at recovery; it takes no more batches. One with ``tail`` 0 is free."""
        self.segments[segment.number] = segment
        self._next_number = max(self._next_number, segment.number + 1)
        segment.closed = True
        self.generation = max(self.generation, segment.generation)
        if segment.tail == 0:
            self._free.append(segment)

    def trim(self, oldest_needed: int) -> int:
        """Free the closed segments that hold only batches below ``oldest_needed``; returns how many."""
        with self.lock:
            gone = self._unneeded(oldest_needed)
            for segment in gone:
                segment.tail = 0
                segment.dirty = False
                self._free.append(segment)
            active = self._active
            if active and active.last_sequence < oldest_needed and active.tail > active.size // 4:
                active.closed = True
            return len(gone)

    def could_trim(self, oldest_needed: int) -> bool:
        """Whether ``trim`` would free a segment."""
        with self.lock:
            return bool(self._unneeded(oldest_needed))

    def _unneeded(self, oldest_needed: int) -> list[Segment]:
        return [
            segment
            for segment in self.segments.values()
            if segment.tail and segment is not self._active and segment.last_sequence < oldest_needed
        ]

    def start(self, sequence: int, previous: int, oldest_needed: int) -> None:
        """Open a new segment after recovery and make it durable, so that what replay left out stays left out.

        The next batch will be ``sequence + 1``; ``previous`` is the last one that counted. Meta says already that
        nothing below ``oldest_needed`` is needed.
        """
        with self.lock:
            for left in self.segments.values():  # what recovery left out of it no rescue may revive
                left.last_sequence = min(left.last_sequence, previous)
            self.trim(oldest_needed)
            self.sequence = self.synced_upto = sequence
            segment = self._roll(previous)
            segment.file.fdatasync()
            segment.dirty = False

    def prepare(self) -> None:
        """Keep one free segment ready while the bound allows; called from a background thread."""
        with self.lock:
            if self._free or self.broken or len(self.segments) * self.segment_bytes >= self.limit_bytes:
                return
            number = self._new_number()
        made = self._make(number)
        with self.lock:
            self.segments[number] = made
            self._free.append(made)

    def _new_number(self) -> int:
        self._next_number += 1
        return self._next_number - 1

    def _path(self, number: int) -> str:
        return f"{self._directory}/{number:04d}.seg"

    def _make(self, number: int) -> Segment:
        file = self._files.open(self._path(number), create=True)
        file.allocate(self.segment_bytes)
        file.fdatasync()
        self._files.sync_dir(self._directory)
        return Segment(number, file, self.segment_bytes)

    def _roll(self, previous: int | None = None) -> Segment:
        """The next life of a free segment becomes the open one.

        The one of the lowest generation first: a header that voids what an older segment has is overwritten after that.
        """
        if self._free:
            segment = min(self._free, key=lambda each: each.generation)
            self._free.remove(segment)
        else:
            number = self._new_number()
            segment = self.segments[number] = self._make(number)
        generation = self.generation + 1
        header = encode_segment_header(
            self._pool_id,
            SegmentHeader(generation, self.sequence + 1, self.sequence if previous is None else previous),
        )
        try:
            write_all(segment.file, [header], 0)
        except OSError:
            self._free.insert(0, segment)
            raise
        if self._active is not None:
            self._active.closed = True
        self.generation = generation
        segment.generation = generation
        segment.seed = seed_for(self._pool_id, generation)
        segment.tail = PAGE
        segment.first_sequence = self.sequence + 1
        segment.last_sequence = self.sequence
        segment.dirty = True
        segment.written_out = 0
        segment.closed = False
        self._active = segment
        self.kick()
        return segment

    # -- appending -------------------------------------------------------------------------------------------------

    def append(self, staged: Sequence[Staged]) -> int:
        """Append all records; on return they are in the kernel and their positions set. Returns the sequence reached.

        Raises ``NoSpace`` (``pool.full``) or ``Failed`` (``log.write``); then none of them counts, now or after a
        restart.
        """
        with self.lock:
            if self.broken:
                raise self.broken
            sequence_before = self.sequence
            self._begun = None
            index = 0
            try:
                while index < len(staged):
                    index = self._append_some(staged, index)
            except OSError as refused:
                self.sequence = sequence_before
                for segment in self.segments.values():
                    segment.last_sequence = min(segment.last_sequence, sequence_before)
                if self._active is not None:
                    self._active.closed = True
                self._void()
                raise _write_problem(refused, self._directory) from refused
            active = self._active
            if active is not None and active.tail - active.written_out >= WRITE_OUT_BYTES:
                self.kick()
            return self.sequence

    def _void(self) -> None:
        """Let what a failed append has left in the log not come back, even if nothing is appended before a restart.

        Where that fails too, the header of the next segment says it.
        """
        if self._begun is not None:
            segment, offset = self._begun
            segment.dirty = self.unsettled = True
            with suppress(OSError):
                write_all(segment.file, [bytes(PAGE)], offset)

    def _append_some(self, staged: Sequence[Staged], index: int) -> int:
        """Write as many batches as fit the open segment with one call; returns the index of the next record."""
        segment = self._active
        if segment is None or segment.closed:
            segment = self._roll()
        offset = segment.tail
        buffers: list[Buffer] = []
        sequence = self.sequence
        while index < len(staged):
            end, payload = _cut(staged, index, segment.size - offset - PAGE)
            if end == index:
                break
            sequence += 1
            part = staged[index:end]
            buffers.append(
                encode_batch(
                    self._pool_id,
                    segment.generation,
                    segment.seed,
                    sequence,
                    self.synced_upto,
                    [item.record for item in part],
                )
            )
            position = segment.number << POSITION_SHIFT | (offset // PAGE + 1)
            for item in part:
                item.position = position
                position += len(item.record.crcs)
                buffers += item.buffers
            offset += PAGE + payload
            index = end
        if buffers:
            if self._begun is None:
                self._begun = segment, segment.tail
            write_all(segment.file, buffers, segment.tail)
            self.appended_bytes += offset - segment.tail
            segment.tail = offset
            segment.dirty = True
            self.sequence = segment.last_sequence = sequence
        if index < len(staged):
            segment.closed = True
        return index

    def write_out(self) -> None:
        """Begin to write fresh batches to the medium; called from a background thread."""
        with self.lock:
            todo = [
                (segment, segment.written_out, segment.tail)
                for segment in self.segments.values()
                if segment.dirty and segment.tail - segment.written_out >= WRITE_OUT_BYTES
            ]
            for segment, _, tail in todo:
                segment.written_out = tail
        for segment, start, tail in todo:
            segment.file.write_out(start, tail - start)

    # -- syncing ---------------------------------------------------------------------------------------------------

    def sync(self, sequence: int) -> None:
        """Everything up to ``sequence`` is on the medium when this returns. Blocks; one sync serves all who wait.

        Raises ``Failed`` (``log.lost``) when neither the segment nor a new one could be synced.
        """
        if sequence <= self.synced_upto and not self.broken and not self.unsettled:
            return
        with self._sync_lock:
            if self.broken:
                raise self.broken
            if sequence <= self.synced_upto and not self.unsettled:
                return
            with self.lock:
                target = self.sequence
                self.unsettled = False
                dirty = sorted(
                    (segment for segment in self.segments.values() if segment.dirty), key=lambda each: each.generation
                )
                for segment in dirty:
                    segment.dirty = False
            try:
                self.before_sync()
            except Problem as lost:
                self.broken = lost
                raise
            try:
                for segment in dirty:
                    segment.file.fdatasync()
            except OSError as refused:
                with self.lock:
                    self._rescue(refused)
                return
            self.synced_upto = max(self.synced_upto, target)

    def _rescue(self, refused: OSError) -> None:
        """Write every unsynced batch again, to a new segment, and sync that; see the module's docstring."""
        try:
            batches = self._unsynced_batches()
            last = self.sequence
            self.sequence = self.synced_upto
            for segment in self.segments.values():
                if segment.tail and segment.last_sequence > self.synced_upto:
                    segment.closed = True
                    segment.dirty = False
                    segment.last_sequence = max(self.synced_upto, segment.first_sequence - 1)
            moved: dict[int, int] = {}
            for position, staged in batches:
                self._append_rescued(staged)
                for item in staged:
                    for index in range(len(item.record.crcs)):
                        moved[position] = item.position + index
                        position += 1
            fresh = [segment for segment in self.segments.values() if segment.dirty and segment.tail]
            for segment in fresh:
                segment.file.fdatasync()
                segment.dirty = False
            if self.sequence != last:
                raise OSError(errno.EIO, f"only batches up to {self.sequence} of {last} could be read back")
        except (OSError, Problem) as again:
            self.broken = Failed(
                "log.lost",
                "writes that were accepted could not be put on the medium",
                cause=f"{refused}; then, on a new segment: {again}",
                remedy="look at the disk's health; power-cycle the guests of this pool after the fabric restarted",
            )
            raise self.broken from again
        self.synced_upto = self.sequence
        self.on_moved(moved)

    def _unsynced_batches(self) -> list[tuple[int, list[Staged]]]:
        """(old position, records with payload) of every batch above ``synced_upto``, read back and checked."""
        found: list[tuple[int, list[Staged]]] = []
        for segment in sorted(self.segments.values(), key=lambda each: each.generation):
            offset = PAGE
            while segment.tail and segment.last_sequence > self.synced_upto and offset < segment.tail:
                batch = decode_batch(segment.file.pread(PAGE, offset), segment.seed, segment.generation)
                if batch is None:
                    raise OSError(errno.EIO, "an unsynced batch is gone from the page cache", segment.file.path)
                position = segment.number << POSITION_SHIFT | (offset // PAGE + 1)
                offset += PAGE
                staged = []
                for record in batch.records:
                    pages = [segment.file.pread(PAGE, offset + PAGE * index) for index in range(len(record.crcs))]
                    if any(crc32c(page) != crc for page, crc in zip(pages, record.crcs, strict=True)):
                        raise OSError(errno.EIO, "an unsynced page is gone from the page cache", segment.file.path)
                    offset += PAGE * len(record.crcs)
                    staged.append(Staged(record, pages))
                if self.synced_upto < batch.sequence <= segment.last_sequence:
                    found.append((position, staged))
        return found

    def _append_rescued(self, staged: list[Staged]) -> None:
        """Append what was one batch as one batch, so that sequence numbers stay what they were."""
        payload = PAGE * (1 + sum(len(item.record.crcs) for item in staged))
        if self._active is not None and self._active.size - self._active.tail < payload:
            self._active.closed = True
        index = 0
        while index < len(staged):
            index = self._append_some(staged, index)

    # -- reading ---------------------------------------------------------------------------------------------------

    def read_nowait(self, position: int, pages: int) -> bytes | None:
        """``pages`` pages from ``position`` on when they are in memory, unchecked."""
        return self.segments[position >> POSITION_SHIFT].file.pread_nowait(pages * PAGE, (position & _PAGE_MASK) * PAGE)

    def read(self, position: int, pages: int) -> bytes:
        """``pages`` pages from ``position`` on, unchecked."""
        return self.segments[position >> POSITION_SHIFT].file.pread(pages * PAGE, (position & _PAGE_MASK) * PAGE)

    def place(self, position: int) -> tuple[str, int]:
        """Path and byte offset of a position, for messages."""
        return self._path(position >> POSITION_SHIFT), (position & _PAGE_MASK) * PAGE


def _cut(staged: Sequence[Staged], start: int, room_bytes: int) -> tuple[int, int]:
    """(end, payload bytes) of the records from ``start`` on that share one batch within ``room_bytes`` of payload."""
    used = HEADER_BYTES
    payload = 0
    index = start
    while index < len(staged):
        record = staged[index].record
        used += record.room
        more = payload + len(record.crcs) * PAGE
        if used > PAGE or more > room_bytes:
            break
        payload = more
        index += 1
    return index, payload


def _write_problem(refused: OSError, directory: str) -> Problem:
    if refused.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(
            "pool.full",
            f"the log in {directory} cannot grow",
            cause=str(refused),
            remedy="free space on its file system",
        )
    return Failed(
        "log.write", f"the log in {directory} cannot be written", cause=str(refused), remedy="look at the disk's health"
    )
