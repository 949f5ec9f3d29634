"""Writing a group anew: its next generation, with only the items that are still wanted, in the slots they had."""

from __future__ import annotations

from uuid import UUID

from innkeeper.fabric.groups import (
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
from innkeeper.fabric.layout import CODEC_RAW, PAGE, corrupt, crc32c
from innkeeper.fabric.marks import Slots
from innkeeper.fabric.store import LIVE, GroupRow
from innkeeper.system.files import Buffer, FileSystem, write_all

CHUNK_BYTES = 1 << 20


def write_generation(
    files: FileSystem, path: str, pool_id: UUID, row: GroupRow, table: SlotTable, live: Slots
) -> GroupRow:
    """Write generation N + 1 of the group in ``row`` to ``path`` and sync it; returns its row.

    The notes of roots go with it, so that meta can be rebuilt. Raises ``Corrupt``, ``OSError``.
    """
    generation = row.generation + 1
    file = files.open(path, create=True)
    file.truncate(0)
    buffers: list[Buffer] = [encode_header(pool_id, row.number, generation)]
    offset, flushed = PAGE, 0
    rows, aux = bytearray(), bytearray()
    for slot, keep in enumerate(live.tolist()):
        if not keep:
            rows += bytes(ROW_BYTES)
            continue
        old = table.row(slot)
        data = table.file.pread(old.stored, old.offset)
        if len(data) != old.stored or crc32c(data) != old.crc:
            raise corrupt(table.file.path, old.offset, "stored bytes fail their checksum")
        if old.codec == CODEC_RAW and (rest := offset % PAGE):
            buffers.append(bytes(PAGE - rest))
            offset += PAGE - rest
        rows += pack_row(offset, old.stored, old.item, old.codec, old.crc, len(aux))
        aux += _aux_of(table, slot)
        buffers.append(data)
        offset += old.stored
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
        notes=_notes(table, row),
    )
    buffers.append(frame)
    write_all(file, buffers, flushed)
    file.fdatasync()
    return GroupRow(row.number, generation, LIVE, offset + len(frame), offset)


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
