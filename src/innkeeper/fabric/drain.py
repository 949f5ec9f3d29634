"""Draining: one sealed layer becomes extents, pieces and map pages, and its root the one that stands for it.

In address order, block by block: from 8 dirty pages on a block becomes one extent (zeros a hole, known content a second
name for a stored extent), below that each dirty page a piece. What went past the log is stored already and only named.
Pure of the pool's state: it reads the layer and writes groups; who stands on the layer is changed by the commit
(``catalog``).
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from blake3 import blake3

from innkeeper.fabric.dedup import Dedup
from innkeeper.fabric.groupwriter import GroupWriter, GroupWriters
from innkeeper.fabric.layers import CRC_MASK, POSITION_SHIFT, Layer
from innkeeper.fabric.layout import (
    BLOCK,
    EXTENT_FROM_PAGES,
    FANOUT,
    HOLE,
    PAGE,
    PAGES_PER_BLOCK,
    SLOT_BITS,
    ZERO_BLOCK,
    ZERO_PAGE,
    Root,
    corrupt,
    crc32c,
    entry_place,
    levels_for,
)
from innkeeper.fabric.maps import LeafEdit, MapEdit
from innkeeper.fabric.oplog import OpLog
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.reader import Reader
from innkeeper.fabric.store import GroupStore

PAGES_PER_LEAF = FANOUT * PAGES_PER_BLOCK


class Drained(NamedTuple):
    """A layer's new root, and by how many data bytes it holds more than the one the layer stood on."""

    root: Root
    added_bytes: int


class Drainer:
    """Drains layers of one pool into its groups."""

    def __init__(self, log: OpLog, store: GroupStore, reader: Reader, writers: GroupWriters, dedup: Dedup) -> None:
        self._log = log
        self._store = store
        self._reader = reader
        self._writers = writers
        self._writer = writers.of("")
        self._dedup = dedup
        self._fresh: dict[bytes, int] = {}
        self._policy = Policy()
        self.keeps_damage = False
        """Whether damaged pages of the log are stored under the checksums that they no longer have (``mend``)."""

    def drain(self, layer: Layer, policy: Policy, writer: GroupWriter) -> Drained:
        """The root that holds ``layer`` over the root it stands on. Raises ``Corrupt``, ``OSError``, ``NoSpace``."""
        self._policy, self._writer = policy, writer
        pages, blocks = sorted(layer.pages), sorted(layer.blocks)
        top = max(pages[-1] + 1 if pages else 1, (blocks[-1] + 1) * PAGES_PER_BLOCK if blocks else 1)
        edit = MapEdit(self._store, self._writer, layer.root, levels_for(top * PAGE))
        reach = FANOUT ** (edit.levels - 1)
        leaves: set[int] = set()
        for start, end in layer.zeros:
            first, last = -(-start // PAGES_PER_LEAF), min(end // PAGES_PER_LEAF, reach)
            if first < last:
                edit.clear_leaves(first, last)
            leaves.update(
                leaf for leaf in (start // PAGES_PER_LEAF, (end - 1) // PAGES_PER_LEAF)
                if leaf < reach and not first <= leaf < last
            )  # fmt: skip
        by_leaf = {leaf: list(group) for leaf, group in groupby(pages, lambda page: page // PAGES_PER_LEAF)}
        stored = {leaf: list(group) for leaf, group in groupby(blocks, lambda block: block // FANOUT)}
        for number in sorted(leaves.union(by_leaf, stored)):
            leaf = edit.leaf(number)
            start = number * PAGES_PER_LEAF
            for low, high in layer.zeros.within(start, start + PAGES_PER_LEAF):
                _zero(leaf, low - start, high - start)
            for block in stored.get(number, ()):
                leaf.set_block(block % FANOUT, layer.blocks[block])
            self._drain_leaf(leaf, layer, by_leaf.get(number, []), start)
            edit.put_leaf(number, leaf)
        return Drained(edit.finish(), edit.added_bytes)

    def _drain_leaf(self, leaf: LeafEdit, layer: Layer, pages: list[int], start: int) -> None:
        values = layer.pages
        index = 0
        while index < len(pages):
            block = pages[index] // PAGES_PER_BLOCK
            first = index
            index += 1
            while index < len(pages) and pages[index] // PAGES_PER_BLOCK == block:
                index += 1
            dirty = pages[first:index]
            within = block - start // PAGES_PER_BLOCK
            if len(dirty) >= EXTENT_FROM_PAGES and not self.keeps_damage:
                self._join(leaf, within, block, dirty, values)
                continue
            table = leaf.pieces(within)
            for page in dirty:
                value = values[page]
                table[page % PAGES_PER_BLOCK] = self._piece(value) if value else HOLE

    def _piece(self, value: int) -> int:
        crc = value & CRC_MASK
        data = self._log.read(value >> POSITION_SHIFT, 1)
        if crc32c(data) != crc:
            if self.keeps_damage:
                return self._writer.put_piece(data.ljust(PAGE, b"\0"), crc)
            raise corrupt(*self._log.place(value >> POSITION_SHIFT), "a page of the log fails its checksum")
        return HOLE if data == ZERO_PAGE else self._writer.put_piece(data, crc)

    def _join(self, leaf: LeafEdit, within: int, block: int, dirty: list[int], values: dict[int, int]) -> None:
        """The whole block becomes an extent or a hole."""
        first = block * PAGES_PER_BLOCK
        run = values[dirty[0]]
        whole = len(dirty) == PAGES_PER_BLOCK and all(
            values[first + index] >> POSITION_SHIFT == (run >> POSITION_SHIFT) + index
            for index in range(PAGES_PER_BLOCK)
        )
        if whole and run:
            data = self._log.read(run >> POSITION_SHIFT, PAGES_PER_BLOCK)
        else:
            old = self._old_pages(leaf, within, dirty)
            parts = []
            for page in range(first, first + PAGES_PER_BLOCK):
                value = values.get(page)
                if value is None:
                    parts.append(old[page - first])
                else:
                    parts.append(self._log.read(value >> POSITION_SHIFT, 1) if value else ZERO_PAGE)
            data = b"".join(parts)
        crcs = [crc32c(data[at : at + PAGE]) for at in range(0, BLOCK, PAGE)]
        for page in dirty:
            value = values[page]
            if value and crcs[page - first] != value & CRC_MASK:
                raise corrupt(*self._log.place(value >> POSITION_SHIFT), "a page of the log fails its checksum")
        entry, before = self._extent(data, crcs), leaf.extent_before(within)
        if entry and before:
            self._store.content.succeed(before, entry, data)
        leaf.set_block(within, entry)

    def _old_pages(self, leaf: LeafEdit, within: int, dirty: list[int]) -> list[bytes]:
        """The block's pages below this layer, zeros where the layer zeroed a long range."""
        if len(dirty) == PAGES_PER_BLOCK:
            return [ZERO_PAGE] * PAGES_PER_BLOCK
        table = leaf.pieces(within)
        return [self._reader.sub_page(entry, index) if entry else ZERO_PAGE for index, entry in enumerate(table)]

    def _extent(self, data: bytes, crcs: list[int]) -> int:
        if data == ZERO_BLOCK:
            return HOLE
        digest = blake3(data).digest()
        if self._policy.dedup:
            known = self._fresh.get(digest) or self._dedup.find(digest)
            if known:
                return known
        entry = self._writer.put_extent(data, digest, crcs, self._policy)
        self._fresh[digest] = entry
        return entry

    def committed(self) -> None:
        """The entries of this drain may be used from now on: tell the fingerprints."""
        if self._fresh:
            self._dedup.fingerprints.add(
                (digest, group << SLOT_BITS | slot)
                for digest, (group, slot) in ((digest, entry_place(entry)) for digest, entry in self._fresh.items())
            )
            self._fresh.clear()

    def abandon(self) -> None:
        """Forget what was not committed."""
        self._fresh.clear()
        self._writers.abandon()


def _zero(leaf: LeafEdit, low: int, high: int) -> None:
    """Pages ``low`` .. ``high`` of a leaf become holes."""
    block = low // PAGES_PER_BLOCK
    while block * PAGES_PER_BLOCK < high:
        first = block * PAGES_PER_BLOCK
        start, end = max(low, first), min(high, first + PAGES_PER_BLOCK)
        if end - start == PAGES_PER_BLOCK:
            leaf.set_block(block, HOLE)
        elif leaf.entries[block] or leaf.is_split(block):
            table = leaf.pieces(block)
            for page in range(start, end):
                table[page - first] = HOLE
        block += 1
