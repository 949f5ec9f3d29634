"""Appending items to groups. Only the drain and the sweep do it, one at a time, under the pool's maintenance lock.

``commit`` makes everything put since the last one durable and says which group rows meta must record; only after meta
did may an entry be used. A writer that failed is abandoned: it starts a new group, and what it wrote without a commit
is never looked at again; groups that hold nothing else are removed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

from innkeeper.fabric.codecs import encode
from innkeeper.fabric.devices import HOME, Device
from innkeeper.fabric.groups import (
    GROUP_BYTES,
    ITEM_EXTENT,
    ITEM_MAP,
    ITEM_PIECE,
    MAP_AUX,
    NO_FRAME,
    Note,
    encode_frame,
    encode_header,
    group_path,
    pack_row,
)
from innkeeper.fabric.layout import (
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
from innkeeper.fabric.packing import Packed
from innkeeper.fabric.policy import TIERS, Policy
from innkeeper.fabric.store import LIVE, OPEN
from innkeeper.system.direct import aligned_buffer
from innkeeper.system.files import Buffer, File, FileSystem, write_all, write_all_pages

FLUSH_BYTES = 1 << 20
WRITE_OUT_BYTES = 8 << 20
FEW_BUFFERS = 64
"""More are joined before they are written: a system call takes longer to look at each of them than a copy does."""


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
        past_cache: bool = False,
    ) -> None:
        """``past_cache``: what is put is written past the page cache where that can be."""
        self._pages = aligned_buffer(2 * FLUSH_BYTES) if past_cache else None
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
        self._buffers: list[Buffer] = []
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

    def put_packed(self, packed: Packed, policy: Policy) -> int:
        """An extent that was packed by ``policy``; returns the map entry. Views are looked at until ``keep``."""
        self._code = policy.code
        return pack_entry(KIND_EXTENT, *self._put(packed.stored, ITEM_EXTENT, packed.codec, packed.crc, packed.aux))

    def put_map(self, data: bytes, level: int) -> int:
        """A map page."""
        stored, codec = encode(data, "lz4", 0, len(data) - 1)
        aux = MAP_AUX.pack(len(data), level)
        return pack_entry(KIND_MAP, *self._put(stored, ITEM_MAP, codec, crc32c(stored), aux))

    def _put(self, data: Buffer, item: int, codec: int, crc: int, aux: bytes) -> tuple[int, int]:
        size = len(data)
        self._offset = max(self._offset, self._flushed)
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
        if self._pages is not None:
            self._flush_pages(self._file, self._pages)
            return
        few = len(self._buffers) <= FEW_BUFFERS
        write_all(self._file, self._buffers if few else [b"".join(self._buffers)], self._flushed)
        self._buffers.clear()
        self._flushed = self._offset
        if self._flushed - self._started >= WRITE_OUT_BYTES:
            self._file.write_out(self._started, self._flushed - self._started)
            self._started = self._flushed

    def _flush_pages(self, file: File, pages: memoryview) -> None:
        """Write whole pages; what the last one lacks is filled up, and the next item begins behind it."""
        filled = 0
        for buffer in self._buffers:
            view = memoryview(buffer)
            while view:
                count = min(len(view), len(pages) - filled)
                pages[filled : filled + count] = view[:count]
                view, filled = view[count:], filled + count
                if filled == len(pages):
                    write_all_pages(file, pages, self._flushed)
                    self._flushed, filled = self._flushed + filled, 0
        if filled:
            end = -(-filled // PAGE) * PAGE
            pages[filled:end] = bytes(end - filled)
            write_all_pages(file, pages[:end], self._flushed)
            self._flushed += end
        self._buffers.clear()

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
        self._offset = max(self._offset, self._flushed)
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
        past_cache: bool = False,
    ) -> None:
        self._by_tier = {
            tier: GroupWriter(
                files, place, pool_id, next_number, group_bytes=group_bytes, tier=tier, past_cache=past_cache
            )
            for tier in TIERS
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
