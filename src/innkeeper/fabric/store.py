"""Reading stored items by map entry, with every checksum verified, and the caches in front of that.

The caches are keyed by map entry: an entry names the same bytes for ever, also after its group was moved or compacted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar
from uuid import UUID

from innkeeper.fabric.cache import ContentCache, default_bytes
from innkeeper.fabric.codecs import Undecodable, decode
from innkeeper.fabric.devices import HOME, Devices
from innkeeper.fabric.groups import ITEM_EXTENT, ITEM_MAP, ITEM_PIECE, Row, SlotTable, check_header, group_path
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
from innkeeper.fabric.meta import GroupRow
from innkeeper.system.files import File, FileSystem

K = TypeVar("K")
V = TypeVar("V")

OPEN = "open"
LIVE = "live"


class WouldBlock(Exception):
    """What was asked for is not in memory and the caller said not to wait."""


class Lru(Generic[K, V]):
    """Least recently used values within a bound of bytes. Safe for threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        with self._lock:
            item = self._items.get(key)
            if item is None:
                return None
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        with self._lock:
            old = self._items.pop(key, None)
            if old is not None:
                self._used -= old[1]
            self._items[key] = (value, size_bytes)
            self._used += size_bytes
            while self._used > self._limit and len(self._items) > 1:
                _, (_, gone) = self._items.popitem(last=False)
                self._used -= gone

    def drop(self, key: K) -> None:
        with self._lock:
            old = self._items.pop(key, None)
            if old is not None:
                self._used -= old[1]


class GroupStore:
    """Groups of one pool, read by (group, slot). Knows rows; the drain and the sweep change them after commits."""

    def __init__(
        self,
        files: FileSystem,
        devices: Devices,
        pool_id: UUID,
        *,
        table_bytes: int = 24 << 20,
        map_bytes: int = 24 << 20,
        content_bytes: int | None = None,
    ) -> None:
        self.files = files
        self._devices = devices
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

    def path(self, number: int) -> str:
        row = self.rows[number]
        return group_path(self._devices.directory(row.device), number, row.generation)

    def table(self, number: int, *, nowait: bool = False) -> SlotTable:
        """The slot table of a group. Raises ``Corrupt``, ``OSError``, ``WouldBlock``."""
        table = self._tables.get(number)
        row = self.rows.get(number)
        if row is None:
            raise corrupt(self._devices.directory(HOME), 0, f"there is no group {number}")
        if table is not None and table.generation == row.generation:
            return table
        path = group_path(self._devices.directory(row.device), number, row.generation)
        file = self.files.open(path)
        page = file.pread_nowait(PAGE, 0) if nowait else file.pread(PAGE, 0)
        if page is None:
            raise WouldBlock
        check_header(page, self.pool_id, number, row.generation, path)
        table = SlotTable.load(file, number, row.generation, row.last_frame, nowait=nowait)
        if table is None:
            raise WouldBlock
        self._tables.put(number, table, table.size_bytes)
        return table

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
        data = file.pread_nowait(row.stored, row.offset) if nowait else file.pread(row.stored, row.offset)
        if data is None:
            raise WouldBlock
        if len(data) != row.stored or crc32c(data) != row.crc:
            raise corrupt(file.path, row.offset, "stored bytes fail their checksum")
        return data

    def _decoded(self, entry: int, item: int, nowait: bool) -> tuple[bytes, SlotTable, Row]:
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

        Parts of one that is stored as it is are read for themselves: the page cache has them as cheaply.
        """
        data = self.content.get(entry)
        if data is not None:
            return data if count == PAGES_PER_BLOCK else data[first * PAGE : (first + count) * PAGE]
        group, slot = entry_place(entry)
        table = self.table(group, nowait=nowait)
        row = table.row(slot)
        if row.codec != CODEC_RAW or row.item != ITEM_EXTENT or count == PAGES_PER_BLOCK:
            data = self._decoded(entry, ITEM_EXTENT, nowait)[0]
            if keep:
                self.content.put(entry, data)
                self.touched.add(group)
                self.read_of_late.add(group)
            else:
                self.scanned.add(group)
                self.read_of_late.add(group)
            return data if count == PAGES_PER_BLOCK else data[first * PAGE : (first + count) * PAGE]
        self.touched.add(group)
        self.read_of_late.add(group)
        offset = row.offset + first * PAGE
        length = count * PAGE
        data = table.file.pread_nowait(length, offset) if nowait else table.file.pread(length, offset)
        if data is None:
            raise WouldBlock
        for index in range(count):
            part = data if count == 1 else data[index * PAGE : (index + 1) * PAGE]
            if len(part) != PAGE or crc32c(part) != table.page_crc(row, first + index):
                raise corrupt(table.file.path, offset + index * PAGE, "stored bytes fail their checksum")
        return data

    def piece(self, entry: int, *, nowait: bool = False) -> bytes:
        """The 4 KiB of a piece."""
        group, slot = entry_place(entry)
        table = self.table(group, nowait=nowait)
        row = table.row(slot)
        if row.item != ITEM_PIECE:
            raise corrupt(table.file.path, row.offset, f"slot {slot} holds item kind {row.item}, not a piece")
        self.touched.add(group)
        self.read_of_late.add(group)
        return self._stored(table.file, row, nowait)
