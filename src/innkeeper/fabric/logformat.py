"""Bytes of the log: segment headers, batch headers, records. Format: docs/fabric-format.md, "Log".

A batch is one header page and its payload pages. CRCs of headers start from a seed made of the pool's id and the
segment's generation, so that a batch of an earlier life of the segment is never taken for one of this life.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from innkeeper.fabric.layout import PAGE, crc32c, extend_crc32c
from innkeeper.model.problems import Corrupt

VERSION = 2
"""Of segments; version 1 knew no MAP records."""
BATCH_VERSION = 1
SEGMENT_MAGIC = b"INNLOGSG"
BATCH_MAGIC = b"INNLOGBA"

DATA = 1
ZERO = 2
MAP = 3
SNAP = 4
RESIZE = 5
EPOCH = 6

_SEGMENT = struct.Struct("<8sHHI16sQQQ")
_BATCH = struct.Struct("<8sHHII16sQQQ")
_CRC = struct.Struct("<I")
_RECORD = struct.Struct("<IIQQ")
_FRAME = struct.Struct("<QQ")
HEADER_BYTES = _BATCH.size + _CRC.size
RECORD_BYTES = _RECORD.size
SNAP_ID_BYTES = 16
MAX_RECORD_PAGES = 512
MAX_RECORD_BLOCKS = 256
_KIND_SHIFT = 56
_PAGE_MASK = (1 << _KIND_SHIFT) - 1
_FRAMES_SHIFT = 32
_BLOCKS_MASK = (1 << _FRAMES_SHIFT) - 1


class Record(NamedTuple):
    """One change of one disk.

    ``page`` and ``amount`` in pages of 4 KiB for DATA and ZERO; RESIZE has the new size in bytes in ``amount``; SNAP
    has the snapshot in ``snapshot``. ``crcs`` has one CRC-32C per payload page of a DATA record. MAP has the extents of
    ``amount`` blocks from ``page`` on in ``entries``, and in ``frames`` the (group, offset of the last index frame) of
    the groups that meta need not know yet.
    """

    disk: int
    epoch: int
    kind: int
    page: int
    amount: int
    crcs: Sequence[int] = ()
    snapshot: UUID | None = None
    entries: Sequence[int] = ()
    frames: Sequence[tuple[int, int]] = ()

    @property
    def room(self) -> int:
        """Bytes of the header page it takes."""
        more = SNAP_ID_BYTES if self.snapshot else 8 * len(self.entries) + _FRAME.size * len(self.frames)
        return RECORD_BYTES + 4 * len(self.crcs) + more


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """First page of a segment.

    What lower generations have above ``previous_sequence`` is void. That is the batch before ``first_sequence``: less
    than ``first_sequence - 1`` only where a recovery found the log shorter than what its disks had drained.
    """

    generation: int
    first_sequence: int
    previous_sequence: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A decoded batch header."""

    sequence: int
    synced_upto: int
    payload_pages: int
    records: tuple[Record, ...]


def seed_for(pool_id: UUID, generation: int) -> int:
    """Where CRCs of a segment's life begin."""
    seed: int = crc32c(pool_id.bytes + generation.to_bytes(8, "little"))
    return seed


def encode_segment_header(pool_id: UUID, header: SegmentHeader) -> bytes:
    """The first page of a segment; the u16 and u32 after the version are cipher suite and key id, 0 today."""
    body = _SEGMENT.pack(
        SEGMENT_MAGIC,
        VERSION,
        0,
        0,
        pool_id.bytes,
        header.generation,
        header.first_sequence,
        header.previous_sequence,
    )
    return (body + _CRC.pack(crc32c(body))).ljust(PAGE, b"\0")


def decode_segment_header(page: bytes, pool_id: UUID, path: str) -> SegmentHeader | None:
    """The header, or ``None`` where none was ever written whole. Raises ``Corrupt`` (``log.format``) for a foreign
    one."""
    if len(page) < _SEGMENT.size + _CRC.size or not page.startswith(SEGMENT_MAGIC):
        return None
    body = page[: _SEGMENT.size]
    if _CRC.unpack_from(page, _SEGMENT.size)[0] != crc32c(body):
        return None
    _, version, suite, _, pool, generation, first_sequence, previous = _SEGMENT.unpack(body)
    if version not in (1, VERSION) or suite != 0:
        raise Corrupt(
            "log.format",
            f"{path} has log format {version} (cipher suite {suite}), this program knows {VERSION} (0)",
            remedy="open the pool with the version of Innkeeper that wrote it, or a newer one",
        )
    if pool != pool_id.bytes:
        raise Corrupt("log.foreign", f"{path} belongs to pool {UUID(bytes=pool)}", remedy="put the right log back")
    return SegmentHeader(generation, first_sequence, previous)


def pool_of_segment(page: bytes) -> UUID | None:
    """Whose segment it is whose first page this is; None where that is not whole."""
    body = page[: _SEGMENT.size]
    if len(page) < PAGE or not page.startswith(SEGMENT_MAGIC):
        return None
    if _CRC.unpack_from(page, _SEGMENT.size)[0] != crc32c(body):
        return None
    return UUID(bytes=_SEGMENT.unpack(body)[4])


def encode_batch(
    pool_id: UUID, generation: int, seed: int, sequence: int, synced_upto: int, records: Sequence[Record]
) -> bytes:
    """The header page of a batch; the payload pages follow it in the order of the records' CRCs."""
    parts = []
    crcs: list[int] = []
    more = b""
    for record in records:
        amount = record.amount
        crcs += record.crcs
        if record.snapshot is not None:
            more += record.snapshot.bytes
        elif record.kind == MAP:
            amount |= len(record.frames) << _FRAMES_SHIFT
            more += b"".join(_FRAME.pack(*frame) for frame in record.frames)
            more += struct.pack(f"<{len(record.entries)}Q", *record.entries)
        parts.append(_RECORD.pack(record.disk, record.epoch, record.kind << _KIND_SHIFT | record.page, amount))
    body = b"".join(parts) + struct.pack(f"<{len(crcs)}I", *crcs) + more
    used = HEADER_BYTES + len(body)
    head = _BATCH.pack(
        BATCH_MAGIC, BATCH_VERSION, len(records), len(crcs), used, pool_id.bytes, generation, sequence, synced_upto
    )
    crc = extend_crc32c(extend_crc32c(seed, head), body)
    return (head + _CRC.pack(crc) + body).ljust(PAGE, b"\0")


def generation_of(page: bytes) -> int:
    """The generation of the segment that a batch header says it is of; 0 where it is none. Not verified."""
    if len(page) < PAGE or not page.startswith(BATCH_MAGIC):
        return 0
    return int(_BATCH.unpack_from(page)[6])


def decode_lone_batch(page: bytes, pool_id: UUID) -> Batch | None:
    """A batch of a segment whose header is not there."""
    if len(page) < PAGE or not page.startswith(BATCH_MAGIC):
        return None
    generation = generation_of(page)
    return decode_batch(page, seed_for(pool_id, generation), generation)


def decode_batch(page: bytes, seed: int, generation: int) -> Batch | None:
    """The batch whose header page this is, or ``None`` when it is none of this life of the segment."""
    if len(page) < PAGE or not page.startswith(BATCH_MAGIC):
        return None
    _, version, count, payload_pages, used, _, found, sequence, synced_upto = _BATCH.unpack_from(page)
    if version != BATCH_VERSION or found != generation or not HEADER_BYTES <= used <= PAGE:
        return None
    body = page[HEADER_BYTES:used]
    crc = extend_crc32c(extend_crc32c(seed, page[: _BATCH.size]), body)
    if _CRC.unpack_from(page, _BATCH.size)[0] != crc:
        return None
    try:
        return Batch(sequence, synced_upto, payload_pages, _decode_records(body, count, payload_pages))
    except (struct.error, ValueError):  # a checksum that is right by chance, or by somebody's will
        return None


def _decode_records(body: bytes, count: int, payload_pages: int) -> tuple[Record, ...]:
    crcs_at = count * RECORD_BYTES
    more_at = crcs_at + 4 * payload_pages
    crcs = struct.unpack_from(f"<{payload_pages}I", body, crcs_at)
    records: list[Record] = []
    taken = 0
    for disk, epoch, kind_page, amount in _RECORD.iter_unpack(body[:crcs_at]):
        kind = kind_page >> _KIND_SHIFT
        if kind == DATA:
            records.append(Record(disk, epoch, kind, kind_page & _PAGE_MASK, amount, crcs[taken : taken + amount]))
            taken += amount
            continue
        record = Record(disk, epoch, kind, kind_page & _PAGE_MASK, amount)
        if kind == SNAP:
            record = record._replace(snapshot=UUID(bytes=body[more_at : more_at + SNAP_ID_BYTES]))
            more_at += SNAP_ID_BYTES
        elif kind == MAP:
            record, more_at = _decode_map(record, body, more_at)
        records.append(record)
    return tuple(records)


def _decode_map(record: Record, body: bytes, at: int) -> tuple[Record, int]:
    """A MAP record with its frames and entries, which begin at ``at``, and where they end."""
    frames_at, entries_at = at, at + _FRAME.size * (record.amount >> _FRAMES_SHIFT)
    blocks = record.amount & _BLOCKS_MASK
    frames = [_FRAME.unpack_from(body, place) for place in range(frames_at, entries_at, _FRAME.size)]
    entries = struct.unpack_from(f"<{blocks}Q", body, entries_at)
    return record._replace(amount=blocks, entries=entries, frames=frames), entries_at + 8 * blocks
