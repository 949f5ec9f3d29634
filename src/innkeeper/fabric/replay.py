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
from innkeeper.fabric.logformat import Batch, Record, decode_batch, decode_segment_header, seed_for
from innkeeper.fabric.oplog import POSITION_SHIFT, Segment
from innkeeper.system.files import FileSystem

_CHUNK_PAGES = 256
_ZEROS = bytes(_CHUNK_PAGES * PAGE)


@dataclass(slots=True)
class Found:
    """A whole batch in a segment; ``bad`` lists the disks whose payload in it fails its CRC."""

    segment: Segment
    page: int
    batch: Batch
    bad: frozenset[int] = frozenset()

    @property
    def position(self) -> int:
        """Position of the first payload page."""
        return self.segment.number << POSITION_SHIFT | (self.page + 1)


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


def read_log(files: FileSystem, directory: str, pool_id: UUID, *, needed_from: int = 0) -> Replay:
    """Read all segments of ``directory``; ``needed_from`` is the lowest sequence any disk still needs.

    Raises ``Corrupt`` for a foreign or unknown format and ``OSError`` when the medium cannot be read.
    """
    replay = Replay(needed_from=needed_from)
    chain: list[Found | Segment] = []
    replay.segments = _segments(files, directory, pool_id)
    for segment, following in zip_longest(replay.segments, replay.segments[1:]):
        if segment.generation == 0:
            continue
        last = segment.previous_sequence
        chain = [item for item in chain if _first(item) <= last]
        chain.append(segment)
        if following is not None and following.previous_sequence < needed_from:
            continue  # what counts of it ends there, and nobody needs that
        for found in _scan(segment):
            replay.synced_upto = max(replay.synced_upto, found.batch.synced_upto)
            chain.append(found)
    _accept(replay, chain, needed_from)
    return replay


def _first(item: Found | Segment) -> int:
    return item.first_sequence if isinstance(item, Segment) else item.batch.sequence


def confirm_on_medium(replay: Replay) -> None:
    """Sync every segment relied on, then read again from the medium what was not known to be synced.

    Batches that turn out to be gone end the log; their disks are noted in ``lost_disks``. Raises ``OSError``.
    """
    for segment in replay.segments:
        if segment.tail:
            segment.file.fdatasync()
            segment.file.drop_cache()
    for index, found in enumerate(replay.batches):
        if found.batch.sequence <= max(replay.synced_upto, replay.needed_from - 1):
            continue
        page = found.segment.file.pread(PAGE, found.page * PAGE)
        again = decode_batch(page, found.segment.seed, found.segment.generation)
        if again is None or _bad_disks(found.segment, found.page, again):
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
        header = decode_segment_header(file.pread(PAGE, 0), pool_id, path)
        if header is not None:
            segment.generation = header.generation
            segment.first_sequence = header.first_sequence
            segment.previous_sequence = header.previous_sequence
            segment.last_sequence = header.first_sequence - 1
            segment.seed = seed_for(pool_id, header.generation)
            segment.tail = PAGE
        segments.append(segment)
    return sorted(segments, key=lambda each: each.generation)


def _scan(segment: Segment) -> list[Found]:
    """Every whole batch of the segment's life, also those behind a damaged one."""
    found: list[Found] = []
    page = 1
    pages = segment.size // PAGE
    broken = False
    while page < pages:
        batch = decode_batch(segment.file.pread(PAGE, page * PAGE), segment.seed, segment.generation)
        if batch is None or page + batch.payload_pages >= pages + 1:
            if not broken and not _anything_follows(segment, page, pages):
                break
            broken = True
            page += 1
            continue
        found.append(Found(segment, page, batch, _bad_disks(segment, page, batch)))
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


def _bad_disks(segment: Segment, page: int, batch: Batch) -> frozenset[int]:
    """Disks of the batch whose payload fails its CRC."""
    if not batch.payload_pages:
        return frozenset()
    payload = segment.file.pread(batch.payload_pages * PAGE, (page + 1) * PAGE)
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
    expected: int | None = None
    last = 0
    for item in chain:
        upto = item.previous_sequence if isinstance(item, Segment) else item.batch.sequence - 1
        if expected is not None and upto >= max(expected, needed_from):
            missing = max(expected, needed_from)
            if missing > replay.synced_upto:
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
    missing = max(expected or 0, needed_from)
    if missing <= replay.synced_upto:
        replay.damage = f"batches {missing} to {replay.synced_upto} of the log were synced and cannot be read"


def records_of(found: Found) -> list[tuple[Record, int]]:
    """(record, position of its first payload page) of a batch."""
    position = found.position
    result = []
    for record in found.batch.records:
        result.append((record, position))
        position += len(record.crcs)
    return result
