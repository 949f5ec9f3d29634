"""Verifying one stored item: that it can be read, has its checksum, decodes, and has its hash."""

from __future__ import annotations

from blake3 import blake3

from innkeeper.fabric.codecs import Undecodable, decode
from innkeeper.fabric.groups import ITEM_DEAD, ITEM_EXTENT, ITEM_MAP, ITEM_PIECE, ROW_BYTES, Row, SlotTable
from innkeeper.fabric.layout import BLOCK, CODEC_RAW, PAGE, crc32c
from innkeeper.fabric.objects import StoreError


def is_dead(table: SlotTable, slot: int) -> bool:
    """Whether the slot's item was reclaimed."""
    return table.rows[slot * ROW_BYTES + 7] & 15 == ITEM_DEAD


def raw_bytes(table: SlotTable, row: Row) -> int:
    """How many bytes the item has when it is decoded."""
    if row.item == ITEM_MAP:
        return table.map_facts(row)[0]
    return PAGE if row.item == ITEM_PIECE else BLOCK


def wrong_with(table: SlotTable, slot: int, row: Row) -> str | None:
    """What is wrong with an item that is not dead; None when all is well. Raises ``StoreError``: nobody can tell."""
    try:
        data = table.file.pread(row.stored, row.offset)
    except StoreError:
        raise
    except OSError as refused:
        return str(refused)
    if len(data) != row.stored or crc32c(data) != row.crc:
        return "stored bytes fail their checksum"
    try:
        data = decode(data, row.codec, raw_bytes(table, row))
    except Undecodable as broken:
        return str(broken)
    if row.item != ITEM_EXTENT:
        return None
    if table.extent_hash(slot) != blake3(data).digest():
        return "the extent's bytes do not have its hash"
    if row.codec == CODEC_RAW and any(
        crc32c(data[at : at + PAGE]) != table.page_crc(row, at // PAGE) for at in range(0, BLOCK, PAGE)
    ):
        return "a page of the extent fails its checksum"
    return None
