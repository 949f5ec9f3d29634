"""Recovery's reading of the log: which batches count, and what is damaged.

Segments are read in the order of their generations. A segment's ``previous_sequence`` voids what lower
generations have above it (an earlier recovery or a failed append left that out). What remains must be one unbroken run
of sequence numbers. Where it breaks above the highest ``synced_upto`` found, the log simply ends there: those batches
were never synced. A break or a bad payload page at or below it is damage: nothing is guessed, the disks it touches are
refused, or the whole pool is read-only when they cannot be told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from uuid import UUID

from innkeeper.fabric.layout import PAGE, crc32c
from innkeeper.fabric.logformat import (
    Batch,
    SegmentHeader,
    decode_batch,
    decode_lone_batch,
    decode_segment_header,
    generation_of,
    seed_for,
)
from innkeeper.fabric.mapped import MappedGroups
from innkeeper.fabric.oplog import POSITION_SHIFT, Segment
from innkeeper.system.files import File, FileSystem

_CHUNK_PAGES = 1024
_ZEROS = bytes(_CHUNK_PAGES * PAGE)


@dataclass(slots=True)
class Found:
    """A whole batch in a segment; ``bad``: the disks whose payload fails its CRC or whose extents are not there."""

    segment: Segment
    page: int
    batch: Batch
    header_crc: int
    """Of the whole header page."""
    bad: frozenset[int] = frozenset()

    @property
    def position(self) -> int:
        """Position of the first payload page."""
        return self.segment.number << POSITION_SHIFT | (self.page + 1)


class _Window:
    """Reads a segment's pages in order, many at a time."""

    def __init__(self, segment: Segment) -> None:
        self.segment = segment
        self._first = 0
        self._data = b""

    def pages(self, page: int, count: int) -> bytes:
        """``count`` pages from ``page`` on; fewer where the segment ends."""
        start = (page - self._first) * PAGE
        if start < 0 or start + count * PAGE > len(self._data):
            self._first, start = page, 0
            self._data = self.segment.file.pread(max(count, _CHUNK_PAGES) * PAGE, page * PAGE)
        return self._data[start : start + count * PAGE]


@dataclass(slots=True)
class Replay:
    """What the log says: batches that count in order, segments, and damage."""

    segments: list[Segment] = field(default_factory=list)
    batches: list[Found] = field(default_factory=list)
    lost_disks: set[int] = field(default_factory=set)
    """Disks with acknowledged records that a restart found gone from the medium."""
    damage: str | None = None
    """Why the pool must stay read-only: synced batches are gone and nobody can tell whose."""
    synced_upto: int = 0
    needed_from: int = 0
    """No layer needs a batch below it: such a one may be damaged or missing."""
    last_sequence: int = 0
    """The last sequence number that counts."""
    highest_disk: int = 0
    """The highest number of a disk in it."""
    cut: bool = False
    """Whether damage ends the log: what is behind it does not count (``mend``)."""
    cut_from: int | None = None
    """The first sequence number that is left out so."""


def read_log(
    files: FileSystem,
    directory: str,
    pool_id: UUID,
    mapped: MappedGroups,
    *,
    needed_from: int = 0,
    synced_upto: int = 0,
    cut: bool = False,
) -> Replay:
    """Read all segments of ``directory``; ``needed_from`` is the lowest sequence any disk still needs.

    ``synced_upto``: what is known to be synced, besides what the log says itself; ``cut``: as ``Replay.cut``;
    ``mapped``: the groups that its MAP records name. Raises ``Corrupt`` for a foreign or unknown format and ``OSError``
    when the medium cannot be read.
    """
    replay = Replay(needed_from=needed_from, synced_upto=synced_upto, cut=cut)
    chain: list[Found | Segment] = []
    replay.segments = _segments(files, directory, pool_id)
    for segment in replay.segments:
        if segment.generation == 0:
            replay.synced_upto = max(replay.synced_upto, _synced_by(segment, pool_id))
    for segment, following in zip_longest(replay.segments, replay.segments[1:]):
        if segment.generation == 0:
            continue
        last = segment.previous_sequence
        chain = [item for item in chain if _first(item) <= last]
        chain.append(segment)
        if following is not None and following.previous_sequence < needed_from:
            continue  # what counts of it ends there, and nobody needs that
        chain += _scan(segment)
    claims = (item.batch.synced_upto for item in chain if isinstance(item, Found))
    replay.synced_upto = max(replay.synced_upto, *claims, 0)
    for item in chain:
        if isinstance(item, Found) and item.batch.sequence >= needed_from:
            item.bad |= mapped.missing(item.batch, deep=item.batch.sequence > replay.synced_upto)
    _accept(replay, chain, needed_from)
    return replay


def _first(item: Found | Segment) -> int:
    return item.first_sequence if isinstance(item, Segment) else item.batch.sequence


def confirm_on_medium(replay: Replay, mapped: MappedGroups) -> None:
    """Sync every segment relied on, then read again from the medium what was not known to be synced.

    Batches that turn out to be gone end the log; their disks are noted in ``lost_disks``. Raises ``OSError``.
    """
    for segment in replay.segments:
        if segment.tail:
            segment.file.fdatasync()
            segment.file.drop_cache()
    mapped.confirm()
    known = max(replay.synced_upto, replay.needed_from - 1)
    window: _Window | None = None
    for index, found in enumerate(replay.batches):
        if found.batch.sequence <= known:
            continue
        if window is None or window.segment is not found.segment:
            window = _Window(found.segment)
        if (
            crc32c(window.pages(found.page, 1)) != found.header_crc
            or _bad_disks(window, found.page, found.batch)
            or mapped.missing(found.batch, deep=True)
        ):
            for gone in replay.batches[index:]:
                replay.lost_disks.update(record.disk for record in gone.batch.records)
            del replay.batches[index:]
            replay.last_sequence = found.batch.sequence - 1
            break


def _segments(files: FileSystem, directory: str, pool_id: UUID) -> list[Segment]:
    segments = []
    for name in files.listdir(directory):
        if not name.endswith(".seg"):
            continue
        path = f"{directory}/{name}"
        file = files.open(path)
        segment = Segment(int(name.removesuffix(".seg")), file, file.size())
        header = decode_segment_header(file.pread(PAGE, 0), pool_id, path) or _told_by_batch(file, pool_id)
        if header is not None:
            segment.generation = header.generation
            segment.first_sequence = header.first_sequence
            segment.previous_sequence = header.previous_sequence
            segment.last_sequence = header.first_sequence - 1
            segment.seed = seed_for(pool_id, header.generation)
            segment.tail = PAGE
        segments.append(segment)
    return sorted(segments, key=lambda each: each.generation)


def _synced_by(segment: Segment, pool_id: UUID) -> int:
    """What the batches of a segment without a header say that was synced; 0 where it was never used.

    A header that a power cut took was never synced, nor was what follows it; one that is damaged takes batches along.
    """
    synced_upto = 0
    for start in range(1, segment.size // PAGE, _CHUNK_PAGES):
        chunk = segment.file.pread(_CHUNK_PAGES * PAGE, start * PAGE)
        if chunk != _ZEROS[: len(chunk)]:
            for at in range(0, len(chunk), PAGE):
                batch = decode_lone_batch(chunk[at : at + PAGE], pool_id)
                synced_upto = max(synced_upto, batch.synced_upto if batch else 0)
    return synced_upto


def _told_by_batch(file: File, pool_id: UUID) -> SegmentHeader | None:
    """What a damaged header said, as the first batch of the segment tells; None where there is none."""
    page = file.pread(PAGE, PAGE)
    batch = decode_lone_batch(page, pool_id)
    return None if batch is None else SegmentHeader(generation_of(page), batch.sequence, batch.sequence - 1)


def _scan(segment: Segment) -> list[Found]:
    """Every whole batch of the segment's life, also those behind a damaged one."""
    found: list[Found] = []
    page = 1
    pages = segment.size // PAGE
    broken = False
    window = _Window(segment)
    while page < pages:
        header = window.pages(page, 1)
        batch = decode_batch(header, segment.seed, segment.generation)
        if batch is None or page + batch.payload_pages >= pages + 1:
            if not broken and not _anything_follows(segment, page, pages):
                break
            broken = True
            page += 1
            continue
        found.append(Found(segment, page, batch, crc32c(header), _bad_disks(window, page, batch)))
        page += 1 + batch.payload_pages
        segment.tail = page * PAGE
        segment.last_sequence = max(segment.last_sequence, batch.sequence)
    return found


def _anything_follows(segment: Segment, page: int, pages: int) -> bool:
    """Whether a batch of this life stands behind ``page``, which holds none."""
    while page < pages:
        count = min(_CHUNK_PAGES, pages - page)
        chunk = segment.file.pread(count * PAGE, page * PAGE)
        if chunk != _ZEROS[: len(chunk)]:
            for index in range(len(chunk) // PAGE):
                head = chunk[index * PAGE : (index + 1) * PAGE]
                if decode_batch(head, segment.seed, segment.generation) is not None:
                    return True
        page += count
    return False


def _bad_disks(window: _Window, page: int, batch: Batch) -> frozenset[int]:
    """Disks of the batch whose payload fails its CRC."""
    if not batch.payload_pages:
        return frozenset()
    payload = window.pages(page + 1, batch.payload_pages)
    bad = set()
    offset = 0
    for record in batch.records:
        for crc in record.crcs:
            if crc32c(payload[offset : offset + PAGE]) != crc:
                bad.add(record.disk)
            offset += PAGE
    return frozenset(bad)


def _accept(replay: Replay, chain: list[Found | Segment], needed_from: int) -> None:
    """Walk the chain: an unbroken run counts; say what is damaged and where the log ends."""
    expected: int | None = needed_from or None
    last = 0
    for item in chain:
        upto = item.previous_sequence if isinstance(item, Segment) else item.batch.sequence - 1
        if expected is not None and upto >= max(expected, needed_from):
            missing = max(expected, needed_from)
            if missing > replay.synced_upto:
                break
            if replay.cut:
                replay.cut_from = missing
                break
            replay.damage = f"batches {missing} to {upto} of the log were synced and cannot be read"
        if isinstance(item, Segment):
            expected = item.first_sequence
            last = max(last, item.previous_sequence)
            continue
        if expected is not None and item.batch.sequence < expected:
            continue
        if item.bad and item.batch.sequence >= needed_from and item.batch.sequence > replay.synced_upto:
            break
        replay.batches.append(item)
        last = item.batch.sequence
        expected = last + 1
    replay.last_sequence = last
    replay.highest_disk = max((record.disk for each in replay.batches for record in each.batch.records), default=0)
    missing = max(expected or 0, needed_from)
    if missing <= replay.synced_upto and replay.cut:
        replay.cut_from = missing
    elif missing <= replay.synced_upto:
        replay.damage = f"batches {missing} to {replay.synced_upto} of the log were synced and cannot be read"
