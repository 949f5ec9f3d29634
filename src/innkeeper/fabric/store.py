"""Reading stored items by map entry, with every checksum verified, and the caches in front of that.

The caches are keyed by map entry: an entry names the same bytes for ever, also after its group was moved or compacted.
"""

from __future__ import annotations

from uuid import UUID

from innkeeper.fabric.cache import ContentCache, default_bytes
from innkeeper.fabric.codecs import Undecodable, decode
from innkeeper.fabric.copies import Copies
from innkeeper.fabric.devices import HOME, Devices
from innkeeper.fabric.groups import ITEM_EXTENT, ITEM_MAP, ITEM_PIECE, Row, SlotTable, check_header
from innkeeper.fabric.inflight import InFlight
from innkeeper.fabric.layout import (
    BLOCK,
    CODEC_RAW,
    FANOUT,
    PAGE,
    PAGES_PER_BLOCK,
    corrupt,
    crc32c,
    entry_place,
)
from innkeeper.fabric.lru import Lru
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.meters import Histogram
from innkeeper.model.problems import Corrupt
from innkeeper.system.clock import Clock
from innkeeper.system.files import Buffer, File

OPEN = "open"
LIVE = "live"


class WouldBlock(Exception):
    """What was asked for is not in memory and the caller said not to wait."""


class GroupStore:
    """Groups of one pool, read by (group, slot). Knows rows; the drain and the sweep change them after commits."""

    def __init__(
        self,
        devices: Devices,
        copies: Copies,
        pool_id: UUID,
        *,
        table_bytes: int = 24 << 20,
        map_bytes: int = 24 << 20,
        content_bytes: int | None = None,
        watch: tuple[Clock, Histogram] | None = None,
    ) -> None:
        """``watch`` is told how long blocking reads take."""
        self._devices = devices
        self._copies = copies
        self.pool_id = pool_id
        self.rows: dict[int, GroupRow] = {}
        self._tables: Lru[int, SlotTable] = Lru(table_bytes)
        self._maps: Lru[int, memoryview] = Lru(map_bytes)
        self.touched: set[int] = set()
        """Groups that were read since the last look at it; below, by long reads only."""
        self.scanned: set[int] = set()
        self.read_of_late: set[int] = set()
        """Groups that were read since the curator last looked."""
        self.content = ContentCache(content_bytes or default_bytes())
        self._in_flight = InFlight()
        self._watch = watch

    def path(self, number: int) -> str:
        """Where a group is, for people."""
        row = self.rows[number]
        return self._devices.shelf(row.device).name(row)

    def open(self, row: GroupRow) -> File:
        """A group's file, to be read from its medium rather than from what is cached of it."""
        return self._devices.shelf(row.device).open(row, fresh=True)

    def table(self, number: int, *, nowait: bool = False) -> SlotTable:
        """The slot table of a group. Raises ``Corrupt``, ``OSError``, ``WouldBlock``."""
        table = self._tables.get(number)
        row = self.rows.get(number)
        if row is None:
            raise corrupt(self._devices.all[HOME].groups, 0, f"there is no group {number}")
        if table is not None and table.generation == row.generation:
            return table
        table = self._copied_table(row, nowait)
        if table is None:
            try:
                file = self._devices.shelf(row.device).open(row)
            except FileNotFoundError as gone:
                raise corrupt(self.path(number), 0, "the file is not there") from gone
            table = self._load(row, file, nowait)
        self._tables.put(number, table, table.size_bytes)
        if self.rows.get(number) is not row:  # a commit came in between and told a table that was not here yet
            self._tables.drop(number)
            return self.table(number, nowait=nowait)
        return table

    def own_table(self, number: int) -> SlotTable:
        """The slot table of a group as its medium has it, whatever copies or caches have. Raises ``Corrupt``,
        ``OSError``."""
        table = self.table(number)
        row = self.rows[number]
        return self._load(row, self.open(row), False) if table.copied or table.file.far else table

    def _copied_table(self, row: GroupRow, nowait: bool) -> SlotTable | None:
        """The table of a group's fast copy, if it has one that is of use."""
        file = self._copies.open(row)
        if file is None:
            return None
        try:
            table = self._load(row, file, nowait)
        except (Corrupt, OSError):
            self._copies.drop(row.number)
            return None
        table.copied = True
        return table

    def _load(self, row: GroupRow, file: File, nowait: bool) -> SlotTable:
        page = file.pread_nowait(PAGE, 0) if nowait else file.pread(PAGE, 0)
        if page is None:
            raise WouldBlock
        check_header(page, self.pool_id, row.number, row.generation, file.path)
        table = SlotTable.load(file, row.number, row.generation, row.last_frame, nowait=nowait)
        if table is None:
            raise WouldBlock
        return table

    def _copy_failed(self, entry: int, nowait: bool) -> bool:
        """After a failed read: whether it was of a copy, which is gone now, so that the next one is of the group."""
        number = entry_place(entry)[0]
        if nowait or not self._copies.drop(number):
            return False
        self._tables.drop(number)
        return True

    def extend(self, number: int, first_slot: int, rows: bytes, aux: bytes) -> None:
        """Tell a loaded table of the slots a commit added."""
        table = self._tables.get(number)
        if table is not None and table.slots == first_slot:
            table.rows += rows
            table.aux += aux
            self._tables.put(number, table, table.size_bytes)
        elif table is not None and table.slots < first_slot:
            self._tables.drop(number)

    def forget(self, number: int) -> None:
        """Drop what is cached of a group's table: it moved or went."""
        self._tables.drop(number)

    def _stored(self, file: File, row: Row, nowait: bool) -> bytes:
        data = file.pread_nowait(row.stored, row.offset) if nowait else self._read(file, row.stored, row.offset)
        if data is None:
            raise WouldBlock
        if len(data) != row.stored or crc32c(data) != row.crc:
            raise corrupt(file.path, row.offset, "stored bytes fail their checksum")
        return data

    def _read(self, file: File, length: int, offset: int) -> bytes:
        if self._watch is None:
            return file.pread(length, offset)
        clock, latency = self._watch
        began = clock.monotonic()
        data = file.pread(length, offset)
        latency.add(clock.monotonic() - began)
        return data

    def lookups(self) -> dict[str, dict[str, int]]:
        """How the caches of map pages and slot tables fare."""
        return {"map_pages": self._maps.facts(), "slot_tables": self._tables.facts()}

    def _decoded(self, entry: int, item: int, nowait: bool) -> tuple[bytes, SlotTable, Row]:
        try:
            return self._decode(entry, item, nowait)
        except (Corrupt, OSError):
            if not self._copy_failed(entry, nowait):
                raise
        return self._decode(entry, item, nowait)

    def _decode(self, entry: int, item: int, nowait: bool) -> tuple[bytes, SlotTable, Row]:
        group, slot = entry_place(entry)
        table = self.table(group, nowait=nowait)
        row = table.row(slot)
        if row.item != item:
            raise corrupt(table.file.path, row.offset, f"slot {slot} holds item kind {row.item}, not {item}")
        data = self._stored(table.file, row, nowait)
        raw_bytes = table.map_facts(row)[0] if item == ITEM_MAP else BLOCK
        try:
            return decode(data, row.codec, raw_bytes), table, row
        except Undecodable as broken:
            raise corrupt(table.file.path, row.offset, str(broken)) from broken

    def map_page(self, entry: int, *, nowait: bool = False) -> memoryview:
        """The u64 entries of a map page: 1,024, then 16 for every split block of a leaf."""
        page = self._maps.get(entry)
        if page is None:
            data, table, row = self._decoded(entry, ITEM_MAP, nowait)
            if len(data) < FANOUT * 8 or len(data) % (PAGES_PER_BLOCK * 8):
                raise corrupt(table.file.path, row.offset, f"a map page has {len(data)} bytes")
            page = memoryview(data).cast("Q")
            self._maps.put(entry, page, len(data) + 200)
        return page

    def extent_pages(self, entry: int, first: int, count: int, *, nowait: bool = False, keep: bool = True) -> bytes:
        """Pages ``first`` .. ``first + count`` (of 16) of an extent; ``keep``: the content cache is to have it.

        Parts of one that is stored as it is are read for themselves: the page cache has them as cheaply, where the
        file is near.
        """
        data = self.content.get(entry)
        if data is not None:
            return data if count == PAGES_PER_BLOCK else data[first * PAGE : (first + count) * PAGE]
        group, slot = entry_place(entry)
        table = self.table(group, nowait=nowait)
        row = table.row(slot)
        if row.codec != CODEC_RAW or row.item != ITEM_EXTENT or count == PAGES_PER_BLOCK or table.file.far:
            data = self._kept_extent(entry, nowait) if keep else self._decoded(entry, ITEM_EXTENT, nowait)[0]
            (self.touched if keep else self.scanned).add(group)
            self.read_of_late.add(group)
            return data if count == PAGES_PER_BLOCK else data[first * PAGE : (first + count) * PAGE]
        self.touched.add(group)
        self.read_of_late.add(group)
        try:
            return self._raw_pages(table, row, first, count, nowait)
        except (Corrupt, OSError):
            if not self._copy_failed(entry, nowait):
                raise
        return self.extent_pages(entry, first, count, nowait=nowait, keep=keep)

    def _raw_pages(self, table: SlotTable, row: Row, first: int, count: int, nowait: bool) -> bytes:
        """Some pages of an extent that is stored as it is, each with its own checksum."""
        offset = row.offset + first * PAGE
        length = count * PAGE
        data = table.file.pread_nowait(length, offset) if nowait else self._read(table.file, length, offset)
        if data is None:
            raise WouldBlock
        for index in range(count):
            part = data if count == 1 else data[index * PAGE : (index + 1) * PAGE]
            if len(part) != PAGE or crc32c(part) != table.page_crc(row, first + index):
                raise corrupt(table.file.path, offset + index * PAGE, "stored bytes fail their checksum")
        return data

    def _kept_extent(self, entry: int, nowait: bool) -> bytes:
        """An extent that the content cache does not have and keeps from now on; read by one thread at a time."""
        while (other := self._in_flight.begin(entry)) is not None:
            if nowait:
                raise WouldBlock
            with other:
                found = self.content.get(entry)
            if found is not None:
                return found
        try:
            data = self.content.get(entry)  # it may have come since the caller looked
            if data is None:
                data = self._decoded(entry, ITEM_EXTENT, nowait)[0]
                self.content.put(entry, data)
            return data
        finally:
            self._in_flight.end(entry)

    def extent_page(self, entry: int, index: int) -> Buffer:
        """One page of an extent, without waiting; a part of the cache's own copy when that has it."""
        data = self.content.get(entry)
        if data is not None:
            return memoryview(data)[index * PAGE : (index + 1) * PAGE]
        return self.extent_pages(entry, index, 1, nowait=True)

    def piece(self, entry: int, *, nowait: bool = False) -> bytes:
        """The 4 KiB of a piece."""
        group, slot = entry_place(entry)
        table = self.table(group, nowait=nowait)
        row = table.row(slot)
        if row.item != ITEM_PIECE:
            raise corrupt(table.file.path, row.offset, f"slot {slot} holds item kind {row.item}, not a piece")
        self.touched.add(group)
        self.read_of_late.add(group)
        try:
            return self._stored(table.file, row, nowait)
        except (Corrupt, OSError):
            if not self._copy_failed(entry, nowait):
                raise
        return self.piece(entry, nowait=nowait)
