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

VERSION = 1
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
HEADER_BYTES = _BATCH.size + _CRC.size
RECORD_BYTES = _RECORD.size
SNAP_ID_BYTES = 16
MAX_RECORD_PAGES = 512
_KIND_SHIFT = 56
_PAGE_MASK = (1 << _KIND_SHIFT) - 1


class Record(NamedTuple):
    """One change of one disk.

    ``page`` and ``amount`` in pages of 4 KiB for DATA and ZERO; RESIZE has the new size in bytes in ``amount``; SNAP
    has the snapshot in ``snapshot``. ``crcs`` has one CRC-32C per payload page of a DATA record.
    """

    disk: int
    epoch: int
    kind: int
    page: int
    amount: int
    crcs: Sequence[int] = ()
    snapshot: UUID | None = None

    @property
    def room(self) -> int:
        """Bytes of the header page it takes."""
        return RECORD_BYTES + 4 * len(self.crcs) + (SNAP_ID_BYTES if self.snapshot else 0)


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
    if version != VERSION or suite != 0:
        raise Corrupt(
            "log.format",
            f"{path} has log format {version} (cipher suite {suite}), this program knows {VERSION} (0)",
            remedy="open the pool with the version of Innkeeper that wrote it, or a newer one",
        )
    if pool != pool_id.bytes:
        raise Corrupt("log.foreign", f"{path} belongs to pool {UUID(bytes=pool)}", remedy="put the right log back")
    return SegmentHeader(generation, first_sequence, previous)


def encode_batch(
    pool_id: UUID, generation: int, seed: int, sequence: int, synced_upto: int, records: Sequence[Record]
) -> bytes:
    """The header page of a batch; the payload pages follow it in the order of the records' CRCs."""
    parts = []
    crcs: list[int] = []
    ids = b""
    for record in records:
        parts.append(_RECORD.pack(record.disk, record.epoch, record.kind << _KIND_SHIFT | record.page, record.amount))
        crcs += record.crcs
        if record.snapshot is not None:
            ids += record.snapshot.bytes
    body = b"".join(parts) + struct.pack(f"<{len(crcs)}I", *crcs) + ids
    used = HEADER_BYTES + len(body)
    head = _BATCH.pack(
        BATCH_MAGIC, VERSION, len(records), len(crcs), used, pool_id.bytes, generation, sequence, synced_upto
    )
    crc = extend_crc32c(extend_crc32c(seed, head), body)
    return (head + _CRC.pack(crc) + body).ljust(PAGE, b"\0")


def decode_batch(page: bytes, seed: int, generation: int) -> Batch | None:
    """The batch whose header page this is, or ``None`` when it is none of this life of the segment."""
    if len(page) < PAGE or not page.startswith(BATCH_MAGIC):
        return None
    _, version, count, payload_pages, used, _, found, sequence, synced_upto = _BATCH.unpack_from(page)
    if version != VERSION or found != generation or not HEADER_BYTES <= used <= PAGE:
        return None
    body = page[HEADER_BYTES:used]
    crc = extend_crc32c(extend_crc32c(seed, page[: _BATCH.size]), body)
    if _CRC.unpack_from(page, _BATCH.size)[0] != crc:
        return None
    crcs_at = count * RECORD_BYTES
    ids_at = crcs_at + 4 * payload_pages
    crcs = struct.unpack_from(f"<{payload_pages}I", body, crcs_at)
    records: list[Record] = []
    taken = 0
    for disk, epoch, kind_page, amount in _RECORD.iter_unpack(body[:crcs_at]):
        kind = kind_page >> _KIND_SHIFT
        own: Sequence[int] = ()
        snapshot = None
        if kind == DATA:
            own = crcs[taken : taken + amount]
            taken += amount
        elif kind == SNAP:
            snapshot = UUID(bytes=body[ids_at : ids_at + SNAP_ID_BYTES])
            ids_at += SNAP_ID_BYTES
        records.append(Record(disk, epoch, kind, kind_page & _PAGE_MASK, amount, own, snapshot))
    return Batch(sequence, synced_upto, payload_pages, tuple(records))
