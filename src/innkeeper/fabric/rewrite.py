"""Writing a group anew: its next generation, with only the items that are still wanted, in the slots they had."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from uuid import UUID

from innkeeper.fabric.codecs import WORTH_COMPRESSING, Undecodable, decode, encode
from innkeeper.fabric.groups import (
    EXTENT_AUX,
    HASH_BYTES,
    ITEM_EXTENT,
    ITEM_MAP,
    MAP_AUX,
    NO_FRAME,
    RAW_EXTENT_AUX,
    ROW_BYTES,
    Note,
    SlotTable,
    encode_frame,
    encode_header,
    pack_row,
    read_frame,
)
from innkeeper.fabric.layout import BLOCK, CODEC_RAW, PAGE, crc32c
from innkeeper.fabric.marks import Slots
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.store import LIVE
from innkeeper.system.files import Buffer, File, write_all

CHUNK_BYTES = 1 << 20
NOTHING: Mapping[int, bytes] = MappingProxyType({})
AS_THEY_ARE: Mapping[int, Policy] = MappingProxyType({})


def write_generation(
    file: File,
    pool_id: UUID,
    row: GroupRow,
    table: SlotTable,
    live: Slots,
    instead: Mapping[int, bytes] = NOTHING,
    policies: Mapping[int, Policy] = AS_THEY_ARE,
    notes: list[Note] | None = None,
) -> GroupRow:
    """Write generation N + 1 of the group in ``row`` to an empty file and sync it; returns its row.

    ``instead``: extents (64 KiB) by slot, put in the place of damaged ones. ``policies``: what extents are packed by
    anew, by slot. The notes of roots go with it, those in its frames or ``notes``, so that meta can be rebuilt.

    Raises ``Corrupt``, ``OSError``.
    """
    generation = row.generation + 1
    buffers: list[Buffer] = [encode_header(pool_id, row.number, generation)]
    offset, flushed = PAGE, 0
    rows, aux = bytearray(), bytearray()
    for slot, keep in enumerate(live.tolist()):
        if not keep:
            rows += bytes(ROW_BYTES)
            continue
        data, item, codec, crc, item_aux = _stored(table, slot, instead.get(slot), policies.get(slot))
        if codec == CODEC_RAW and (rest := offset % PAGE):
            buffers.append(bytes(PAGE - rest))
            offset += PAGE - rest
        rows += pack_row(offset, len(data), item, codec, crc, len(aux))
        aux += item_aux
        buffers.append(data)
        offset += len(data)
        if offset - flushed >= CHUNK_BYTES:
            flushed += write_all(file, buffers, flushed)
            buffers.clear()
    if rest := offset % PAGE:
        buffers.append(bytes(PAGE - rest))
        offset += PAGE - rest
    frame = encode_frame(
        row.number,
        generation,
        previous=NO_FRAME,
        first_slot=0,
        aux_base=0,
        rows=bytes(rows),
        aux=bytes(aux),
        notes=_notes(table, row) if notes is None else notes,
    )
    buffers.append(frame)
    write_all(file, buffers, flushed)
    file.fdatasync()
    return GroupRow(row.number, generation, LIVE, offset + len(frame), offset, row.device, row.tier, row.coding)


def _stored(
    table: SlotTable, slot: int, instead: bytes | None, policy: Policy | None
) -> tuple[bytes, int, int, int, bytes]:
    """What is written for a slot."""
    if instead is not None:
        return _encoded(table, slot, instead, policy or Policy())
    copied = _copied(table, slot)
    if policy is None or copied[1] != ITEM_EXTENT or crc32c(copied[0]) != copied[3]:
        return copied
    try:
        data = decode(copied[0], copied[2], BLOCK)
    except Undecodable:
        return copied
    return _encoded(table, slot, data, policy)


def _copied(table: SlotTable, slot: int) -> tuple[bytes, int, int, int, bytes]:
    """(stored bytes, item, codec, CRC, aux) of a slot as it is.

    What is damaged goes along under the checksum that it no longer has: it stays as detectable as it was, and its group
    can be repaired, moved and compacted.
    """
    old = table.row(slot)
    data = table.file.pread(old.stored, old.offset).ljust(old.stored, b"\0")
    return data, old.item, old.codec, old.crc, _aux_of(table, slot)


def _encoded(table: SlotTable, slot: int, data: bytes, policy: Policy) -> tuple[bytes, int, int, int, bytes]:
    """The same of an extent whose content is given."""
    digest = table.extent_hash(slot)
    assert digest is not None
    stored, codec = encode(data, policy.compression, policy.level, WORTH_COMPRESSING)
    if codec == CODEC_RAW:
        aux = RAW_EXTENT_AUX.pack(digest, *(crc32c(data[at : at + PAGE]) for at in range(0, BLOCK, PAGE)))
    else:
        aux = EXTENT_AUX.pack(digest)
    return stored, ITEM_EXTENT, codec, crc32c(stored), aux


def _notes(table: SlotTable, row: GroupRow) -> list[Note]:
    """The youngest note of each subject in the group's frames."""
    found: dict[UUID, Note] = {}
    offset = row.last_frame
    while offset != NO_FRAME:
        frame = read_frame(table.file, offset, row.number, row.generation)
        assert frame is not None
        for note in frame.notes:
            if note.subject not in found or note.sequence > found[note.subject].sequence:
                found[note.subject] = note
        offset = frame.previous
    return list(found.values())


def _aux_of(table: SlotTable, slot: int) -> bytes:
    row = table.row(slot)
    length = 0
    if row.item == ITEM_EXTENT:
        length = RAW_EXTENT_AUX.size if row.codec == CODEC_RAW else HASH_BYTES
    elif row.item == ITEM_MAP:
        length = MAP_AUX.size
    return bytes(table.aux[row.aux : row.aux + length])
