"""Reading a view: layers over a root, each page verified by the checksum its index or slot row holds."""

from __future__ import annotations

from innkeeper.fabric.layers import CRC_MASK, POSITION_SHIFT, View, find
from innkeeper.fabric.layout import (
    BLOCK,
    FANOUT,
    HOLE,
    KIND_EXTENT,
    KIND_PIECE,
    KIND_SHIFT,
    KIND_SPLIT,
    PAGE,
    PAGES_PER_BLOCK,
    ZERO_BLOCK,
    ZERO_PAGE,
    Root,
    corrupt,
    crc32c,
    entry_kind,
)
from innkeeper.fabric.maps import block_entry, leaf_entry, sub_table
from innkeeper.fabric.oplog import OpLog
from innkeeper.fabric.store import GroupStore, WouldBlock
from innkeeper.model.problems import Corrupt
from innkeeper.system.files import Buffer

BULK_PAGES = 64
"""Longer reads do not fill the content cache: keeping 1 MiB costs more than reading it out of the page cache (fresh
memory has to be found for it), and who reads so much at once seldom reads it again."""
MOST_LEAF_BYTES = 4 << 20
"""Of the map pages that the event loop remembers by itself."""
PAGES_PER_LEAF = FANOUT * PAGES_PER_BLOCK
LEAF_SPAN = FANOUT * BLOCK
"""Bytes of a disk that one leaf map page stands for."""
DATA_FLAGS = 0
HOLE_FLAGS = 3
"""NBD_STATE_HOLE | NBD_STATE_ZERO."""


class Reader:
    """Reads views of one pool. ``nowait`` calls raise ``WouldBlock`` instead of waiting for the medium."""

    def __init__(self, log: OpLog, store: GroupStore) -> None:
        self._log = log
        self._store = store
        self._leaves: dict[int, dict[int, memoryview | None]] = {}
        """Leaf map pages (None: all holes) that ``page_in_memory`` used, by their numbers, by the roots' entries."""
        self._leaf_bytes = 0

    def page(self, view: View, page: int, *, nowait: bool = False) -> bytes:
        """One page of 4 KiB."""
        value = find(view.layers, page)
        if value is None:
            return self._mapped(view, page, 1, nowait)
        if value < 0:
            return self._store.extent_pages(-value, page % PAGES_PER_BLOCK, 1, nowait=nowait)
        return self._logged(value, 1, (value & CRC_MASK,), nowait) if value else ZERO_PAGE

    def page_in_memory(self, view: View, page: int) -> Buffer:
        """As ``page``, without waiting, and quicker; for the event loop only. The buffer may be part of a longer one.

        A root's entry names the same map for ever, so what was found below it once need not be looked up again.
        """
        if find(view.layers, page) is not None:
            return self.page(view, page, nowait=True)
        root = view.root
        known = self._leaves.get(root.entry)
        number = page // PAGES_PER_LEAF
        leaf = self._find_leaf(root, number) if known is None or number not in known else known[number]
        if leaf is None:
            return ZERO_PAGE
        entry = leaf[page // PAGES_PER_BLOCK % FANOUT]
        if entry >> KIND_SHIFT == KIND_EXTENT:
            return self._store.extent_page(entry, page % PAGES_PER_BLOCK)
        return self._mapped(view, page, 1, True)

    def _find_leaf(self, root: Root, number: int) -> memoryview | None:
        """A leaf by way of the nodes above it; remembered."""
        entry = leaf_entry(self._store, root, number, nowait=True)
        leaf = self._store.map_page(entry, nowait=True) if entry else None
        self._leaf_bytes += 200 + (leaf.nbytes if leaf is not None else 0)
        if self._leaf_bytes > MOST_LEAF_BYTES:
            self._leaves.clear()
            self._leaf_bytes = 0
        self._leaves.setdefault(root.entry, {})[number] = leaf
        return leaf

    def pages(self, view: View, first: int, count: int, *, nowait: bool = False) -> list[bytes]:
        """``count`` pages from ``first`` on, as buffers that follow each other."""
        layers = view.layers
        end = first + count
        parts: list[bytes] = []
        page = first
        while page < end:
            value = find(layers, page)
            start = page
            page += 1
            if value is None:
                while page < end and find(layers, page) is None:
                    page += 1
                self._mapped_run(view, start, page, nowait, parts)
            elif value < 0:
                within = start % PAGES_PER_BLOCK
                while page < end and page % PAGES_PER_BLOCK and find(layers, page) == value:
                    page += 1
                keep = count <= BULK_PAGES
                parts.append(self._store.extent_pages(-value, within, page - start, nowait=nowait, keep=keep))
            elif value:
                crcs = [value & CRC_MASK]
                position = value >> POSITION_SHIFT
                while page < end:
                    after = find(layers, page)
                    if not after or after < 0 or after >> POSITION_SHIFT != position + page - start:
                        break
                    crcs.append(after & CRC_MASK)
                    page += 1
                parts.append(self._logged(value, page - start, crcs, nowait))
            else:
                parts.append(ZERO_PAGE)
        return parts

    def _logged(self, value: int, count: int, crcs: tuple[int, ...] | list[int], nowait: bool) -> bytes:
        position = value >> POSITION_SHIFT
        data = self._log.read_nowait(position, count) if nowait else self._log.read(position, count)
        if data is None:
            raise WouldBlock
        if count == 1:
            if crc32c(data) != crcs[0]:
                raise corrupt(*self._log.place(position), "a page of the log fails its checksum")
            return data
        for index, crc in enumerate(crcs):
            if crc32c(data[index * PAGE : (index + 1) * PAGE]) != crc:
                raise corrupt(*self._log.place(position + index), "a page of the log fails its checksum")
        return data

    def _mapped_run(self, view: View, page: int, end: int, nowait: bool, parts: list[bytes]) -> None:
        keep = end - page <= BULK_PAGES
        while page < end:
            count = min(end, (page // PAGES_PER_BLOCK + 1) * PAGES_PER_BLOCK) - page
            parts.append(self._mapped(view, page, count, nowait, keep))
            page += count

    def _mapped(self, view: View, page: int, count: int, nowait: bool, keep: bool = True) -> bytes:
        """Pages of one block as the map has them."""
        store = self._store
        entry, leaf = block_entry(store, view.root, page // PAGES_PER_BLOCK, nowait=nowait)
        first = page % PAGES_PER_BLOCK
        if entry == HOLE:
            return ZERO_BLOCK if count == PAGES_PER_BLOCK else ZERO_BLOCK[: count * PAGE]
        kind = entry_kind(entry)
        if kind == KIND_EXTENT:
            return store.extent_pages(entry, first, count, nowait=nowait, keep=keep)
        if kind != KIND_SPLIT or leaf is None:
            raise Corrupt("fabric.corrupt", f"block {page // PAGES_PER_BLOCK} has a map entry of kind {kind}")
        table = sub_table(leaf, entry)
        if count == 1:
            return self.sub_page(table[first], first, nowait)
        return b"".join([self.sub_page(table[index], index, nowait) for index in range(first, first + count)])

    def sub_page(self, entry: int, index: int, nowait: bool = False) -> bytes:
        """The page that entry ``index`` of a sub-table stands for."""
        if entry == HOLE:
            return ZERO_PAGE
        kind = entry_kind(entry)
        if kind == KIND_PIECE:
            return self._store.piece(entry, nowait=nowait)
        if kind != KIND_EXTENT:
            raise Corrupt("fabric.corrupt", f"a split block has an entry of kind {kind}")
        return self._store.extent_pages(entry, index, 1, nowait=nowait)

    def block(self, root_view: View, block: int) -> bytes:
        """The 64 KiB of a block."""
        return b"".join(self.pages(root_view, block * PAGES_PER_BLOCK, PAGES_PER_BLOCK))

    def allocation(self, view: View, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, NBD base:allocation flags) runs that cover the range in bytes; a hole reads as zeros. May block."""
        runs: list[tuple[int, int]] = []
        end = offset + length
        touched = _touched_leaves(view, offset, end)
        while offset < end:
            leaf = offset // LEAF_SPAN
            stop = min(end, (leaf + 1) * LEAF_SPAN)
            if leaf in touched:
                self._add_blocks(runs, view, offset, stop)
            elif entry := leaf_entry(self._store, view.root, leaf):
                page = self._store.map_page(entry)
                while offset < stop:
                    size = min(stop, (offset // BLOCK + 1) * BLOCK) - offset
                    block = page[offset // BLOCK % FANOUT]
                    if entry_kind(block) == KIND_SPLIT:
                        self._add_blocks(runs, view, offset, offset + size)
                    else:
                        _add_run(runs, size, DATA_FLAGS if block else HOLE_FLAGS)
                    offset += size
            else:
                _add_run(runs, stop - offset, HOLE_FLAGS)
            offset = stop
        return runs

    def _add_blocks(self, runs: list[tuple[int, int]], view: View, offset: int, end: int) -> None:
        while offset < end:
            block, within = divmod(offset, BLOCK)
            size = min(end - offset, BLOCK - within)
            for part, flags in self._block_allocation(view, block, within, size):
                _add_run(runs, part, flags)
            offset += size

    def _block_allocation(self, view: View, block: int, within: int, size: int) -> list[tuple[int, int]]:
        entry, leaf = block_entry(self._store, view.root, block)
        table = sub_table(leaf, entry) if leaf is not None and entry_kind(entry) == KIND_SPLIT else None
        first = block * PAGES_PER_BLOCK
        result = []
        while size:
            page = within // PAGE
            part = min(size, (page + 1) * PAGE - within)
            value = find(view.layers, first + page)
            if value is None:
                value = table[page] if table is not None else entry
            result.append((part, DATA_FLAGS if value else HOLE_FLAGS))
            within += part
            size -= part
        return result


def _add_run(runs: list[tuple[int, int]], length: int, flags: int) -> None:
    if runs and runs[-1][1] == flags:
        runs[-1] = (runs[-1][0] + length, flags)
    else:
        runs.append((length, flags))


def _touched_leaves(view: View, offset: int, end: int) -> set[int]:
    """Leaves of the byte range in which some layer says something."""
    first, last = offset // LEAF_SPAN, (end - 1) // LEAF_SPAN
    pages = LEAF_SPAN // PAGE
    touched: set[int] = set()
    for layer in view.layers:
        if first == last:
            if not layer.empty:
                touched.add(first)
            continue
        written = {page // pages for page in list(layer.pages)} | {block // FANOUT for block in list(layer.blocks)}
        touched.update(leaf for leaf in written if first <= leaf <= last)
        for low, high in layer.zeros.within(offset // PAGE, -(-end // PAGE)):
            touched.update(range(low // pages, (high - 1) // pages + 1))
    return touched
