"""Sizes, map entries and checksums that every part of the fabric agrees on. Format: docs/fabric-format.md."""

from __future__ import annotations

from typing import NamedTuple

import google_crc32c

from innkeeper.model.problems import Corrupt

PAGE = 4096
BLOCK = 65536
PAGES_PER_BLOCK = BLOCK // PAGE
FANOUT = 1024
MAX_LEVELS = 3
MAX_DISK_BYTES = FANOUT**MAX_LEVELS * BLOCK
SECTOR = 512
EXTENT_FROM_PAGES = 8
"""Dirty pages of a block from which the drain makes one extent; below, pieces."""

HOLE = 0
KIND_EXTENT = 1
KIND_PIECE = 2
KIND_SPLIT = 3
KIND_MAP = 4

ALLOCATOR_BITS = 12
GROUP_BITS = 30
SLOT_BITS = 18
SLOTS_PER_GROUP = 1 << SLOT_BITS
MAX_GROUP = (1 << GROUP_BITS) - 1
_SLOT_MASK = SLOTS_PER_GROUP - 1
KIND_SHIFT = ALLOCATOR_BITS + GROUP_BITS + SLOT_BITS
_ALLOCATOR_SHIFT = GROUP_BITS + SLOT_BITS

CODEC_RAW = 0
CODEC_LZ4 = 1
CODEC_ZSTD = 2
CODEC_NAMES = {CODEC_RAW: "raw", CODEC_LZ4: "lz4", CODEC_ZSTD: "zstd"}

ZERO_PAGE = bytes(PAGE)
ZERO_BLOCK = bytes(BLOCK)

crc32c = google_crc32c.value
"""CRC-32C of a bytes object."""
extend_crc32c = google_crc32c.extend
"""``extend_crc32c(seed, data)``: CRC-32C that goes on from ``seed``."""


class Entry(NamedTuple):
    """A map entry taken apart."""

    kind: int
    allocator: int
    group: int
    slot: int


class Root(NamedTuple):
    """The top of a disk's radix: a map entry (0: all holes) and how many levels stand below it, itself included."""

    entry: int
    levels: int


EMPTY_ROOT = Root(HOLE, 1)


def pack_entry(kind: int, group: int, slot: int, allocator: int = 0) -> int:
    """The u64 of a map entry: kind 4 bits, allocator 12, group 30, slot 18, from the top."""
    if not (0 <= group <= MAX_GROUP and 0 <= slot <= _SLOT_MASK and 0 <= kind < 16 and 0 <= allocator < 4096):
        raise ValueError(f"no map entry can hold kind {kind} allocator {allocator} group {group} slot {slot}")
    return kind << KIND_SHIFT | allocator << _ALLOCATOR_SHIFT | group << SLOT_BITS | slot


def unpack_entry(entry: int) -> Entry:
    """The parts of a map entry."""
    return Entry(
        entry >> KIND_SHIFT, entry >> _ALLOCATOR_SHIFT & 0xFFF, entry >> SLOT_BITS & MAX_GROUP, entry & _SLOT_MASK
    )


def entry_kind(entry: int) -> int:
    return entry >> KIND_SHIFT


def entry_place(entry: int) -> tuple[int, int]:
    """(group, slot) of an entry."""
    return entry >> SLOT_BITS & MAX_GROUP, entry & _SLOT_MASK


def levels_for(size_bytes: int) -> int:
    """Radix levels that a disk of that size needs: 1 up to 64 MiB, 2 up to 64 GiB, 3 up to 64 TiB."""
    levels, reach = 1, FANOUT * BLOCK
    while reach < size_bytes:
        levels, reach = levels + 1, reach * FANOUT
    return levels


def corrupt(path: str, offset: int, what: str) -> Corrupt:
    """The problem of stored bytes that fail their checksum, naming the place."""
    return Corrupt(
        "fabric.corrupt",
        f"{path} at byte {offset}: {what}",
        cause="the medium or something that writes to it has changed stored bytes",
        remedy="run 'inn fabric check', replace the medium, and restore the disks it names from a backup",
    )
