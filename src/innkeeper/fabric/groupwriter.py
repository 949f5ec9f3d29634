"""Appending items to groups. Only the drain and the sweep do it, one at a time, under the pool's maintenance lock.

``commit`` makes everything put since the last one durable and says which group rows meta must record; only after meta
did may an entry be used. A writer that failed is abandoned: it starts a new group, and what it wrote without a commit
is never looked at again; groups that hold nothing else are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from innkeeper.fabric.codecs import WORTH_COMPRESSING, encode
from innkeeper.fabric.devices import HOME, Device
from innkeeper.fabric.groups import (
    EXTENT_AUX,
    GROUP_BYTES,
    ITEM_EXTENT,
    ITEM_MAP,
    ITEM_PIECE,
    MAP_AUX,
    NO_FRAME,
    RAW_EXTENT_AUX,
    Note,
    encode_frame,
    encode_header,
    group_path,
    pack_row,
)
from innkeeper.fabric.layout import (
    BLOCK,
    CODEC_RAW,
    KIND_EXTENT,
    KIND_MAP,
    KIND_PIECE,
    PAGE,
    SLOTS_PER_GROUP,
    crc32c,
    pack_entry,
)
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.policy import TIERS, Policy
from innkeeper.fabric.store import LIVE, OPEN
from innkeeper.system.files import File, FileSystem, write_all

FLUSH_BYTES = 1 << 20
WRITE_OUT_BYTES = 8 << 20


class Packed(NamedTuple):
    """An extent as it is stored: bytes, codec, CRC-32C, aux."""

    stored: bytes
    codec: int
    crc: int
    aux: bytes


def pack_extent(
    data: bytes, digest: bytes, page_crcs: list[int] | None, policy: Policy, *, hurried: bool = False
) -> Packed:
    """Pack a block of 64 KiB by a policy; ``page_crcs`` saves computing them again, ``hurried`` some time."""
    stored, codec = encode(data, policy.compression, policy.level, WORTH_COMPRESSING, hurried=hurried)
    if codec != CODEC_RAW:
        return Packed(stored, codec, crc32c(stored), EXTENT_AUX.pack(digest))
    if page_crcs is None:
        page_crcs = [crc32c(data[at : at + PAGE]) for at in range(0, BLOCK, PAGE)]
    return Packed(data, CODEC_RAW, crc32c(data), RAW_EXTENT_AUX.pack(digest, *page_crcs))


@dataclass(slots=True)
class Written:
    """A group as a commit leaves it, and what came to its slot table."""

    row: GroupRow
    file: File
    first_slot: int
    rows: bytes
    aux: bytes


class GroupWriter:
    """Puts items and returns their map entries."""

    def __init__(
        self,
        files: FileSystem,
        place: Callable[[str], Device],
        pool_id: UUID,
        next_number: Callable[[], int],
        *,
        group_bytes: int = GROUP_BYTES,
        tier: str = "",
    ) -> None:
        self._files = files
        self._place = place
        self._tier = tier
        self._codes: set[str] = set()
        """Codes of the policies that the open group's extents were packed by."""
        self._device = Device(HOME, "")
        self._pool_id = pool_id
        self._next_number = next_number
        self._group_bytes = group_bytes
        self._file: File | None = None
        self._number = 0
        self._buffers: list[bytes] = []
        self._offset = self._flushed = self._started = 0
        self._slots = self._first_slot = 0
        self._rows = bytearray()
        self._aux = bytearray()
        self._aux_base = 0
        self._last_frame = NO_FRAME
        self._written: list[Written] = []
        self._created: dict[str, str] = {}
        """Paths of the groups made since the last commit, each with its directory."""
        self._code = ""
        self.put_bytes = 0
        """Bytes of items put since the writer was made."""

    # -- items -----------------------------------------------------------------------------------------------------

    def put_piece(self, data: bytes, crc: int) -> int:
        """A 4 KiB page and its CRC-32C; returns the map entry."""
        return pack_entry(KIND_PIECE, *self._put(data, ITEM_PIECE, CODEC_RAW, crc, b""))

    def put_extent(self, data: bytes, digest: bytes, page_crcs: list[int] | None, policy: Policy) -> int:
        """A block of 64 KiB under its BLAKE3 hash; ``page_crcs`` saves computing them again."""
        return self.put_packed(pack_extent(data, digest, page_crcs, policy), policy)

    def put_packed(self, packed: Packed, policy: Policy) -> int:
        """An extent that was packed by ``policy``; returns the map entry."""
        self._code = policy.code
        return pack_entry(KIND_EXTENT, *self._put(packed.stored, ITEM_EXTENT, packed.codec, packed.crc, packed.aux))

    def put_map(self, data: bytes, level: int) -> int:
        """A map page."""
        stored, codec = encode(data, "lz4", 0, len(data) - 1)
        aux = MAP_AUX.pack(len(data), level)
        return pack_entry(KIND_MAP, *self._put(stored, ITEM_MAP, codec, crc32c(stored), aux))

    def _put(self, data: bytes, item: int, codec: int, crc: int, aux: bytes) -> tuple[int, int]:
        size = len(data)
        if self._file is None or self._offset + size > self._group_bytes or self._slots >= SLOTS_PER_GROUP:
            self._next_group()
        if codec == CODEC_RAW and (rest := self._offset % PAGE):
            self._buffers.append(bytes(PAGE - rest))
            self._offset += PAGE - rest
        if item == ITEM_EXTENT:
            self._codes.add(self._code)
        slot = self._slots
        self._rows += pack_row(self._offset, size, item, codec, crc, self._aux_base + len(self._aux))
        self._aux += aux
        self._buffers.append(data)
        self._offset += size
        self._slots = slot + 1
        self.put_bytes += size
        if self._offset - self._flushed >= FLUSH_BYTES:
            self._flush()
        return self._number, slot

    def _flush(self) -> None:
        assert self._file is not None
        if not self._buffers:
            return
        data = b"".join(self._buffers)
        write_all(self._file, [data], self._flushed)
        self._buffers.clear()
        self._flushed = self._offset
        if self._flushed - self._started >= WRITE_OUT_BYTES:
            self._file.write_out(self._started, self._flushed - self._started)
            self._started = self._flushed

    # -- groups ----------------------------------------------------------------------------------------------------

    def _next_group(self) -> None:
        if self._file is not None:
            self._frame([], LIVE)
        number = self._next_number()
        self._device = self._place(self._tier)
        self._codes = set()
        path = group_path(self._device.groups, number, 0)
        file = self._files.open(path, create=True)
        self._created[path] = self._device.groups
        self._number = number
        self._buffers = [encode_header(self._pool_id, number, 0)]
        self._offset = PAGE
        self._flushed = self._started = 0
        self._slots = self._first_slot = 0
        self._rows = bytearray()
        self._aux = bytearray()
        self._aux_base = 0
        self._last_frame = NO_FRAME
        self._file = file

    def _frame(self, notes: list[Note], state: str) -> None:
        """Close what was put with an index frame."""
        assert self._file is not None
        if rest := self._offset % PAGE:
            self._buffers.append(bytes(PAGE - rest))
            self._offset += PAGE - rest
        frame = encode_frame(
            self._number,
            0,
            previous=self._last_frame,
            first_slot=self._first_slot,
            aux_base=self._aux_base,
            rows=bytes(self._rows),
            aux=bytes(self._aux),
            notes=notes,
        )
        self._last_frame = self._offset
        self._buffers.append(frame)
        self._offset += len(frame)
        self._flush()
        coding = ",".join(sorted(self._codes))
        row = GroupRow(self._number, 0, state, self._offset, self._last_frame, self._device.id, self._tier, coding)
        self._written.append(Written(row, self._file, self._first_slot, bytes(self._rows), bytes(self._aux)))
        self._first_slot = self._slots
        self._aux_base += len(self._aux)
        self._rows = bytearray()
        self._aux = bytearray()
        if state == LIVE:
            self._file = None

    def sync(self) -> None:
        """Put what was written so far on the medium, so that the commit that follows has little left to wait for."""
        if self._file is not None:
            self._flush()
            self._file.fdatasync()
        for each in self._written:
            each.file.fdatasync()

    def commit(self, notes: list[Note]) -> list[Written]:
        """Everything put so far is on the medium when this returns; the rows that meta must record. Raises
        ``OSError``."""
        written = self._frames(notes)
        for each in written:
            each.file.fdatasync()
        if self._created:
            for directory in set(self._created.values()):
                self._files.sync_dir(directory)
            self._created = {}
        return written

    def keep(self) -> list[Written]:
        """Everything put so far is in the kernel and indexed when this returns, and stays whatever fails later.

        Raises ``OSError``.
        """
        written = self._frames([])
        self._created = {}
        return written

    def _frames(self, notes: list[Note]) -> list[Written]:
        if self._file is not None and (self._rows or notes):
            self._frame(notes, OPEN)
        written, self._written = self._written, []
        return written

    @property
    def number(self) -> int | None:
        """The group that items go to now, if one is open."""
        return None if self._file is None else self._number

    def leave(self, device_id: str) -> None:
        """Put nothing more into a group on that device. Nothing may be waiting for a commit."""
        if self._device.id == device_id:
            self._file = None

    def close(self, number: int) -> None:
        """Put nothing more into that group. Nothing may be waiting for an index frame."""
        if self._number == number:
            self._file = None

    def abandon(self) -> None:
        """Forget what was neither committed nor kept, and its groups; the next item begins a new one."""
        self._file = None
        self._written = []
        created, self._created = self._created, {}
        for path in created:
            with suppress(OSError):  # what cannot be removed now goes when the pool is opened again
                self._files.unlink(path)


class GroupWriters:
    """The writers of a pool: one for data that heat places, and one for each tier that disks are bound to."""

    def __init__(
        self,
        files: FileSystem,
        place: Callable[[str], Device],
        pool_id: UUID,
        next_number: Callable[[], int],
        *,
        group_bytes: int = GROUP_BYTES,
    ) -> None:
        self._by_tier = {
            tier: GroupWriter(files, place, pool_id, next_number, group_bytes=group_bytes, tier=tier) for tier in TIERS
        }

    def of(self, tier: str) -> GroupWriter:
        return self._by_tier[tier]

    @property
    def numbers(self) -> set[int]:
        """The groups that items go to now."""
        return {writer.number for writer in self._by_tier.values() if writer.number is not None}

    def leave(self, device_id: str) -> None:
        """Put nothing more into groups on that device. Nothing may be waiting for a commit."""
        for writer in self._by_tier.values():
            writer.leave(device_id)

    def close(self, number: int) -> None:
        """Put nothing more into that group. Nothing may be waiting for an index frame."""
        for writer in self._by_tier.values():
            writer.close(number)

    def abandon(self) -> None:
        """Forget what was not committed."""
        for writer in self._by_tier.values():
            writer.abandon()
