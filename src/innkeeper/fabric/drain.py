"""Draining: one sealed layer becomes extents, pieces and map pages, and its root the one that stands for it.

In address order, block by block: from 8 dirty pages on a block becomes one extent (zeros a hole, known content a second
name for a stored extent), below that each dirty page a piece. What went past the log is stored already and only named.
Pure of the pool's state: it reads the layer and writes groups; who stands on the layer is changed by the commit
(``catalog``).
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

from innkeeper.fabric.bench import Bench, Benches, Want
from innkeeper.fabric.dedup import Dedup
from innkeeper.fabric.fingerprints import KEY_BYTES
from innkeeper.fabric.groupwriter import GroupWriter, GroupWriters
from innkeeper.fabric.layers import CRC_MASK, POSITION_SHIFT, Layer
from innkeeper.fabric.layout import (
    BLOCK,
    EXTENT_FROM_PAGES,
    FANOUT,
    HOLE,
    KIND_EXTENT,
    PAGE,
    PAGES_PER_BLOCK,
    SLOT_BITS,
    ZERO_PAGE,
    Root,
    corrupt,
    crc32c,
    entry_kind,
    entry_place,
    levels_for,
)
from innkeeper.fabric.maps import LeafEdit, MapEdit
from innkeeper.fabric.oplog import OpLog
from innkeeper.fabric.packing import BAD, BLOCKS, GOOD
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

    def __init__(
        self, log: OpLog, store: GroupStore, reader: Reader, writers: GroupWriters, dedup: Dedup, benches: Benches
    ) -> None:
        self._log = log
        self._store = store
        self._reader = reader
        self._writers = writers
        self._writer = writers.of("")
        self._dedup = dedup
        self._benches = benches
        self._fresh: dict[bytes, int] = {}
        self._policy = Policy()
        self.keeps_damage = False
        """Whether damaged pages of the log are stored under the checksums that they no longer have (``mend``)."""

    def drain(self, layer: Layer, policy: Policy, writer: GroupWriter) -> Drained:
        """The root that holds ``layer`` over the root it stands on. Raises ``Corrupt``, ``OSError``, ``NoSpace``."""
        self._policy, self._writer = policy, writer
        with self._benches.bench() as bench:
            return self._drain(layer, bench)

    def _drain(self, layer: Layer, bench: Bench) -> Drained:
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
            self._drain_leaf(leaf, layer, by_leaf.get(number, []), bench)
            edit.put_leaf(number, leaf)
        return Drained(edit.finish(), edit.added_bytes)

    def _drain_leaf(self, leaf: LeafEdit, layer: Layer, pages: list[int], bench: Bench) -> None:
        """Dirty pages of one leaf become pieces and extents, as many at once as the bench has room for."""
        pieces: list[int] = []
        joins: list[list[int]] = []
        for _, group in groupby(pages, lambda page: page // PAGES_PER_BLOCK):
            dirty = list(group)
            if len(dirty) >= EXTENT_FROM_PAGES and not self.keeps_damage:
                joins.append(dirty)
            else:
                pieces += dirty
        for at in range(0, len(pieces), BLOCKS * PAGES_PER_BLOCK):
            self._put_pieces(leaf, layer.pages, pieces[at : at + BLOCKS * PAGES_PER_BLOCK], bench)
        for at in range(0, len(joins), BLOCKS):
            self._join(leaf, layer.pages, joins[at : at + BLOCKS], bench)

    def _put_pieces(self, leaf: LeafEdit, values: dict[int, int], pages: list[int], bench: Bench) -> None:
        logged = [page for page in pages if values[page]]
        verdicts = bench.load([self._want(at, values[page]) for at, page in enumerate(logged)])
        entries = dict.fromkeys(pages, HOLE)
        put, area = self._writer.put_piece, bench.area
        for at, page in enumerate(logged):
            if verdicts[at] == GOOD:
                entries[page] = put(bytes(area[at * PAGE : (at + 1) * PAGE]), values[page] & CRC_MASK)
            elif verdicts[at] == BAD:
                entries[page] = self._doubtful_piece(values[page])
        for page, entry in entries.items():
            leaf.pieces(page // PAGES_PER_BLOCK % FANOUT)[page % PAGES_PER_BLOCK] = entry

    def _want(self, at: int, value: int) -> Want:
        file, page = self._log.source(value >> POSITION_SHIFT)
        return at, file, page, value & CRC_MASK

    def _doubtful_piece(self, value: int) -> int:
        """A piece of a page that could not be read at first, or failed its checksum."""
        if self.keeps_damage:
            data = self._log.read(value >> POSITION_SHIFT, 1)
            return self._writer.put_piece(data.ljust(PAGE, b"\0"), value & CRC_MASK)
        data = self._page(value)
        return HOLE if data == ZERO_PAGE else self._writer.put_piece(data, value & CRC_MASK)

    def _page(self, value: int) -> bytes:
        """A page of the log. Raises ``Corrupt``, ``OSError``."""
        data = self._log.read(value >> POSITION_SHIFT, 1)
        if crc32c(data) != value & CRC_MASK:
            raise corrupt(*self._log.place(value >> POSITION_SHIFT), "a page of the log fails its checksum")
        return data

    def _join(self, leaf: LeafEdit, values: dict[int, int], joins: list[list[int]], bench: Bench) -> None:
        """Whole blocks become extents or holes."""
        area = bench.area
        wants: list[Want] = []
        pages: list[int] = []
        for at, dirty in enumerate(joins):
            if len(dirty) < PAGES_PER_BLOCK:
                area[at * BLOCK : (at + 1) * BLOCK] = self._old_block(leaf, dirty)
            for page in dirty:
                place = at * PAGES_PER_BLOCK + page % PAGES_PER_BLOCK
                if values[page]:
                    wants.append(self._want(place, values[page]))
                    pages.append(page)
                else:
                    area[place * PAGE : (place + 1) * PAGE] = ZERO_PAGE
        verdicts = bench.load(wants)
        if BAD in verdicts:
            for (place, *_), page, verdict in zip(wants, pages, verdicts, strict=True):
                if verdict == BAD:
                    area[place * PAGE : (place + 1) * PAGE] = self._page(values[page])
        content = self._store.content
        for at, (dirty, entry) in enumerate(zip(joins, self._extents(len(joins), bench), strict=True)):
            within = dirty[0] // PAGES_PER_BLOCK % FANOUT
            before = leaf.extent_before(within)
            if entry and before and content.has(before):
                content.succeed(before, entry, bytes(area[at * BLOCK : (at + 1) * BLOCK]))
            leaf.set_block(within, entry)

    def _old_block(self, leaf: LeafEdit, dirty: list[int]) -> bytes:
        """A block below this layer, of which ``dirty`` pages do not matter; zeros where the layer zeroed a long
        range."""
        table = leaf.pieces(dirty[0] // PAGES_PER_BLOCK % FANOUT)
        if entry_kind(table[0]) == KIND_EXTENT and table.count(table[0]) == PAGES_PER_BLOCK:
            return self._store.extent_pages(table[0], 0, PAGES_PER_BLOCK)
        gone = {page % PAGES_PER_BLOCK for page in dirty}
        parts = [
            self._reader.sub_page(entry, index) if entry and index not in gone else ZERO_PAGE
            for index, entry in enumerate(table)
        ]
        return b"".join(parts)

    def _extents(self, count: int, bench: Bench) -> list[int]:
        """The map entries of the first blocks of the bench; known content gets a second name."""
        digests = bench.digests(count)
        dedup = self._policy.dedup
        places = self._dedup.places([digest for digest in digests if digest]) if dedup else {}
        entries: list[int | None] = []
        wanted: dict[int, bytes] = {}
        asked: set[bytes] = set()
        for at, digest in enumerate(digests):
            entry: int | None = None if digest else HOLE
            if digest and dedup:
                entry = self._fresh.get(digest) or self._stored(places, digest)
            if entry is None and not (dedup and digest in asked):
                wanted[at] = digest
                asked.add(digest)
            entries.append(entry)
        packed = bench.pack(list(wanted.items()), self._policy)
        for (at, digest), each in zip(wanted.items(), packed, strict=True):
            entry = self._writer.put_packed(each._replace(stored=bytes(each.stored)), self._policy)
            entries[at] = self._fresh[digest] = entry
        return [self._fresh[digest] if entry is None else entry for digest, entry in zip(digests, entries, strict=True)]

    def _stored(self, places: dict[bytes, int], digest: bytes) -> int | None:
        place = places.get(digest[:KEY_BYTES])
        return None if place is None else self._dedup.entry(place, digest)

    def committed(self) -> None:
        """The entries of this drain may be used from now on: tell the fingerprints."""
        if self._fresh:
            self._dedup.fingerprints.add(
                (digest, group << SLOT_BITS | slot)
                for digest, (group, slot) in ((digest, entry_place(entry)) for digest, entry in self._fresh.items())
            )
            self._fresh.clear()
        self._dedup.fingerprints.settle()

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
