"""Maps: finding a block's entry, and editing a radix into a new one.

A map page is a run of u64: 1,024 entries, and in a leaf 16 more for each split block (its *sub-table*, found by the
slot field of the block's entry). A sub-table's entry is a hole, a piece, or an extent meaning "the page of that extent
with my own index". Map pages are immutable: an edit writes the changed leaves and every node above them anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from innkeeper.fabric.layout import (
    BLOCK,
    FANOUT,
    HOLE,
    KIND_EXTENT,
    KIND_MAP,
    KIND_SPLIT,
    PAGE,
    PAGES_PER_BLOCK,
    Root,
    entry_kind,
    pack_entry,
)
from innkeeper.fabric.store import GroupStore


def leaf_entry(store: GroupStore, root: Root, leaf: int, *, nowait: bool = False) -> int:
    """The map entry of leaf page ``leaf`` (blocks ``leaf * 1024`` on), ``HOLE`` where all are holes."""
    entry, level = root
    if leaf >= FANOUT ** (level - 1):
        return HOLE
    while level > 1 and entry:
        level -= 1
        entry = store.map_page(entry, nowait=nowait)[leaf // FANOUT ** (level - 1) % FANOUT]
    return entry


def block_entry(store: GroupStore, root: Root, block: int, *, nowait: bool = False) -> tuple[int, memoryview | None]:
    """(entry, leaf page) of a block; no leaf where it is a hole for want of one."""
    entry = leaf_entry(store, root, block // FANOUT, nowait=nowait)
    if not entry:
        return HOLE, None
    page = store.map_page(entry, nowait=nowait)
    return page[block % FANOUT], page


def sub_table(page: memoryview, entry: int) -> memoryview:
    """The 16 entries of a split block."""
    at = FANOUT + PAGES_PER_BLOCK * (entry & 0x3FFFF)
    return page[at : at + PAGES_PER_BLOCK]


def leaf_data_bytes(page: memoryview | bytes | None) -> int:
    """Bytes below a leaf that are no hole: 64 KiB for an extent, 4 KiB for a page of a split block."""
    if page is None:
        return 0
    entries = np.frombuffer(page, dtype=np.uint64)
    kinds = entries[:FANOUT] >> np.uint64(60)
    return BLOCK * int((kinds == KIND_EXTENT).sum()) + PAGE * int(np.count_nonzero(entries[FANOUT:]))


class MapSink(Protocol):
    """Where new map pages go."""

    def put_map(self, data: bytes, level: int) -> int:
        """Store a map page; returns its map entry."""


class LeafEdit:
    """One leaf being changed: ``entries`` (1,024) and sub-tables by block."""

    def __init__(self, page: memoryview | None) -> None:
        self._page = page
        self.entries: array[int] = array("Q", page[:FANOUT] if page is not None else bytes(FANOUT * 8))
        self._tables: dict[int, list[int]] = {}

    def is_split(self, block: int) -> bool:
        """Whether the block has been given pieces to change."""
        return block in self._tables

    def extent_before(self, block: int) -> int:
        """The entry of an extent that the block had pages of before it was changed; 0 where there was none."""
        entry = self.entries[block]
        if entry_kind(entry) == KIND_SPLIT and self._page is not None:
            return next((each for each in sub_table(self._page, entry) if entry_kind(each) == KIND_EXTENT), HOLE)
        return entry if entry_kind(entry) == KIND_EXTENT else HOLE

    def pieces(self, block: int) -> list[int]:
        """The 16 entries of a block as a list to change; the block becomes split when the leaf is packed."""
        table = self._tables.get(block)
        if table is None:
            entry = self.entries[block]
            if entry_kind(entry) == KIND_SPLIT and self._page is not None:
                table = list(sub_table(self._page, entry))
            else:
                table = [entry] * PAGES_PER_BLOCK
            self._tables[block] = table
        return table

    def set_block(self, block: int, entry: int) -> None:
        """The block is a hole or one extent."""
        self._tables.pop(block, None)
        self.entries[block] = entry

    @property
    def data_bytes_before(self) -> int:
        return leaf_data_bytes(self._page)

    def pack(self) -> bytes | None:
        """The new page, or ``None`` when every block is a hole."""
        tail = array("Q")
        entries = self.entries
        for block in range(FANOUT):
            table: list[int] | memoryview | None = self._tables.get(block)
            entry = entries[block]
            if table is not None:
                if not any(table):
                    entries[block] = HOLE
                    continue
            elif entry_kind(entry) == KIND_SPLIT and self._page is not None:
                table = sub_table(self._page, entry)
            else:
                continue
            entries[block] = pack_entry(KIND_SPLIT, 0, len(tail) // PAGES_PER_BLOCK)
            tail.extend(table)
        if not any(entries):
            return None
        return entries.tobytes() + tail.tobytes()


class MapEdit:
    """A radix being changed. Leaves are put in any order; ``finish`` writes the nodes above them."""

    def __init__(self, store: GroupStore, sink: MapSink, root: Root, levels: int) -> None:
        self._store = store
        self._sink = sink
        self.levels = self._levels = max(levels, root.levels)
        self._nodes: dict[tuple[int, int], array[int]] = {}
        entry, level = root
        while level < self._levels:
            level += 1
            if entry:
                node = array("Q", bytes(FANOUT * 8))
                node[0] = entry
                self._nodes[level, 0] = node
                entry = HOLE
        self._root = entry
        self.added_bytes = 0
        """By how much the data below has grown."""

    def _child(self, level: int, index: int) -> int:
        """The entry that stands for node ``index`` of ``level`` as it is now on the medium."""
        if level == self._levels:
            return self._root
        node = self._nodes.get((level + 1, index // FANOUT))
        if node is not None:
            return node[index % FANOUT]
        parent = self._child(level + 1, index // FANOUT)
        return self._store.map_page(parent)[index % FANOUT] if parent else HOLE

    def _node(self, level: int, index: int) -> array[int]:
        node = self._nodes.get((level, index))
        if node is None:
            entry = self._child(level, index)
            node = array("Q", self._store.map_page(entry)[:FANOUT] if entry else bytes(FANOUT * 8))
            self._nodes[level, index] = node
        return node

    def leaf(self, index: int) -> LeafEdit:
        """The leaf to change; give it back with ``put_leaf``."""
        entry = self._child(1, index)
        return LeafEdit(self._store.map_page(entry) if entry else None)

    def put_leaf(self, index: int, leaf: LeafEdit) -> None:
        before = leaf.data_bytes_before
        data = leaf.pack()
        self.added_bytes += leaf_data_bytes(data) - before
        self._set_leaf(index, HOLE if data is None else self._sink.put_map(data, 1))

    def _set_leaf(self, index: int, entry: int) -> None:
        if self._levels == 1:
            self._root = entry
        else:
            self._node(2, index // FANOUT)[index % FANOUT] = entry

    def clear_leaves(self, start: int, end: int) -> None:
        """Every block of leaves ``start`` .. ``end`` becomes a hole; costs only for what is there."""
        index = start
        while index < end:
            if self._levels > 1 and not self._present(index // FANOUT):
                index = (index // FANOUT + 1) * FANOUT
                continue
            if entry := self._child(1, index):
                self.added_bytes -= leaf_data_bytes(self._store.map_page(entry))
                self._set_leaf(index, HOLE)
            index += 1

    def _present(self, node: int) -> bool:
        return (2, node) in self._nodes or self._child(2, node) != HOLE

    def finish(self) -> Root:
        """Write the changed nodes from the bottom up; returns the new root."""
        for level in range(2, self._levels + 1):
            for (_, index), node in [item for item in self._nodes.items() if item[0][0] == level]:
                entry = self._sink.put_map(node.tobytes(), level) if any(node) else HOLE
                if level == self._levels:
                    self._root = entry
                else:
                    self._node(level + 1, index // FANOUT)[index % FANOUT] = entry
        return Root(self._root, self._levels)


def walk_maps(store: GroupStore, root: Root, seen: set[int]) -> Iterator[tuple[int, int, memoryview]]:
    """(entry, level, page) of every map page under ``root`` whose entry is not in ``seen``; adds them to it."""
    todo = [(root.entry, root.levels)] if root.entry else []
    while todo:
        entry, level = todo.pop()
        if entry in seen:
            continue
        seen.add(entry)
        page = store.map_page(entry)
        yield entry, level, page
        if level > 1:
            todo += [(child, level - 1) for child in page if entry_kind(child) == KIND_MAP]


class DataCount:
    """Data bytes below map pages; what clones share is counted once and remembered."""

    def __init__(self, store: GroupStore) -> None:
        self._store = store
        self._known: dict[int, int] = {0: 0}

    def of(self, root: Root) -> int:
        return self._below(root.entry, root.levels)

    def _below(self, entry: int, level: int) -> int:
        known = self._known.get(entry)
        if known is None:
            page = self._store.map_page(entry)
            if level > 1:
                known = sum(self._below(child, level - 1) for child in page if entry_kind(child) == KIND_MAP)
            else:
                known = leaf_data_bytes(page)
            self._known[entry] = known
        return known
