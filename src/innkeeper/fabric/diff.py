"""Changed blocks between two snapshots: map pages compared vectorised, and undrained layers looked through.

Equal map entries name equal bytes, so equal subtrees are skipped: the cost follows the change. Layers that only one of
the two looks through add the blocks they touch. A block listed may still hold equal bytes (rewritten with what it had);
a block not listed never differs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from innkeeper.fabric.layers import Layer, View, find
from innkeeper.fabric.layout import (
    CODEC_NAMES,
    EMPTY_ROOT,
    FANOUT,
    HOLE,
    KIND_EXTENT,
    KIND_SPLIT,
    PAGES_PER_BLOCK,
    Root,
    entry_kind,
    entry_place,
)
from innkeeper.fabric.maps import block_entry, leaf_entry
from innkeeper.fabric.store import GroupStore

Words = NDArray[np.uint64]
Mask = NDArray[np.bool_]
LeafPair = tuple[int, int, int]
"""Leaf, its map entry, the base's."""
_ZEROS: Words = np.zeros(FANOUT, dtype=np.uint64)
_KIND_SHIFT = np.uint64(60)
_SLOT_MASK = np.uint64(0x3FFFF)
EMPTY_VIEW = View((), EMPTY_ROOT)


def changed(store: GroupStore, view: View, base: View, start: int, limit: int) -> tuple[list[list[Any]], int | None]:
    """Up to ``limit`` blocks from ``start`` on in which ``view`` may differ from ``base``, and where to go on.

    Each is ``[block, kind, hash, location]``; see ``Pool.changed_blocks``. Without layers and with ``EMPTY_VIEW`` as
    base: every block that is no hole. Raises ``Corrupt``, ``OSError``.
    """
    alone = base is EMPTY_VIEW
    result: list[list[Any]] = []
    for leaf, mask in changed_masks(store, view, base, start // FANOUT):
        for within in np.flatnonzero(mask).tolist():
            block = leaf * FANOUT + within
            if block < start:
                continue
            if len(result) == limit:
                return result, block
            fact = _describe(store, view, block)
            if fact[1] != "hole" or not alone:
                result.append(fact)
    return result, None


def changed_sets(store: GroupStore, view: View, base: View) -> tuple[set[int], set[int]]:
    """(all blocks in which ``view`` may differ from ``base``, those of them in which ``view`` has data).

    What waits zeroed in a layer over data that is mapped counts as data. Raises ``Corrupt``, ``OSError``.
    """
    everything: set[int] = set()
    data: set[int] = set()
    filled = [_blocks(layer, filled=True) for layer in view.layers]
    for leaf, mask in changed_masks(store, view, base):
        held = _leaf_arrays(store, leaf_entry(store, view.root, leaf))[0] != HOLE
        for blocks in filled:
            held[_within(blocks, leaf)] = True
        everything.update((np.flatnonzero(mask) + leaf * FANOUT).tolist())
        data.update((np.flatnonzero(mask & held) + leaf * FANOUT).tolist())
    return everything, data


def changed_masks(store: GroupStore, view: View, base: View, first: int = 0) -> Iterator[tuple[int, Mask]]:
    """(leaf, which of its 1,024 blocks may differ) in ascending order, from leaf ``first`` on."""
    layers = [layer for layer in (*view.layers, *base.layers) if (layer in view.layers) != (layer in base.layers)]
    touched = [_blocks(layer) for layer in layers]
    pairs = leaf_pairs(store, view.root, base.root, first)
    if layers:
        pairs = _joined(pairs, sorted(_touched_leaves(store, view.root, base.root, layers, first)))
    for leaf, mine, other in pairs:
        mask = _entries_mask(store, mine, other)
        for layer, blocks in zip(layers, touched, strict=True):
            _touch(layer, blocks, leaf, mask)
        if mask.any():
            yield leaf, mask


def _joined(pairs: Iterator[LeafPair], others: list[int]) -> Iterator[LeafPair]:
    """The pairs, and between them, as if equal, the leaves that are not among them."""
    at = 0
    for pair in pairs:
        while at < len(others) and others[at] < pair[0]:
            yield others[at], HOLE, HOLE
            at += 1
        if at < len(others) and others[at] == pair[0]:
            at += 1
        yield pair
    for leaf in others[at:]:
        yield leaf, HOLE, HOLE


def _blocks(layer: Layer, *, filled: bool = False) -> NDArray[np.int64]:
    """The blocks that a layer has, or has pages of, ascending; or those with something that is not zeroed."""
    pages = [page for page, value in list(layer.pages.items()) if value or not filled]
    whole = [block for block, entry in list(layer.blocks.items()) if entry or not filled]
    return np.union1d(np.fromiter(pages, dtype=np.int64) // PAGES_PER_BLOCK, np.fromiter(whole, dtype=np.int64))


def _within(blocks: NDArray[np.int64], leaf: int) -> NDArray[np.int64]:
    """Those of a leaf, counted from its first."""
    low, high = np.searchsorted(blocks, (leaf * FANOUT, (leaf + 1) * FANOUT))
    return blocks[low:high] - leaf * FANOUT


def _touched_leaves(store: GroupStore, root: Root, base: Root, layers: list[Layer], first: int) -> set[int]:
    """Leaves of which a layer has pages, or zeroed ranges over data."""
    leaves: set[int] = set()
    per_leaf = FANOUT * PAGES_PER_BLOCK
    for layer in layers:
        leaves.update(leaf for leaf in np.unique(_blocks(layer) // FANOUT).tolist() if leaf >= first)
        ranges = [(start // per_leaf, (end - 1) // per_leaf) for start, end in layer.zeros]
        if ranges:
            for leaf, _, _ in _present(store, root, base):
                if leaf >= first and any(low <= leaf <= high for low, high in ranges):
                    leaves.add(leaf)
    return leaves


def _entries_mask(store: GroupStore, mine: int, other: int) -> Mask:
    """Blocks of a leaf whose entries differ."""
    if mine == other:
        return np.zeros(FANOUT, dtype=np.bool_)
    left, left_tables = _leaf_arrays(store, mine)
    right, right_tables = _leaf_arrays(store, other)
    mask: Mask = left != right
    if len(left_tables) and len(right_tables):
        both = np.flatnonzero((left >> _KIND_SHIFT == KIND_SPLIT) & (right >> _KIND_SHIFT == KIND_SPLIT))
        differ = left_tables[left[both] & _SLOT_MASK] != right_tables[right[both] & _SLOT_MASK]
        mask[both] = differ.any(axis=1)
    return mask


def _leaf_arrays(store: GroupStore, entry: int) -> tuple[Words, Words]:
    if not entry:
        return _ZEROS, _ZEROS.reshape(-1, PAGES_PER_BLOCK)
    page = np.frombuffer(store.map_page(entry), dtype=np.uint64)
    return page[:FANOUT], page[FANOUT:].reshape(-1, PAGES_PER_BLOCK)


def _touch(layer: Layer, blocks: NDArray[np.int64], leaf: int, mask: Mask) -> None:
    """Mark what a layer, with pages in ``blocks``, says of a leaf."""
    mask[_within(blocks, leaf)] = True
    start = leaf * FANOUT * PAGES_PER_BLOCK
    for first, end in layer.zeros.within(start, start + FANOUT * PAGES_PER_BLOCK):
        mask[(first - start) // PAGES_PER_BLOCK : (end - start - 1) // PAGES_PER_BLOCK + 1] = True


def _describe(store: GroupStore, view: View, block: int) -> list[Any]:
    first = block * PAGES_PER_BLOCK
    values = [find(view.layers, first + index) for index in range(PAGES_PER_BLOCK)] if view.layers else []
    if values and values[0] is not None and values[0] < 0 and len(set(values)) == 1:
        return _extent(store, block, -values[0])
    if any(values):
        return [block, "data", None, None]
    entry, _ = block_entry(store, view.root, block)
    if any(value is not None for value in values):
        return [block, "hole" if entry == HOLE or None not in values else "data", None, None]
    if entry == HOLE:
        return [block, "hole", None, None]
    if entry_kind(entry) != KIND_EXTENT:
        return [block, "data", None, None]
    return _extent(store, block, entry)


def _extent(store: GroupStore, block: int, entry: int) -> list[Any]:
    group, slot = entry_place(entry)
    table = store.table(group)
    row = table.row(slot)
    digest = table.extent_hash(slot)
    assert digest is not None
    if table.file.far or table.copied:  # nobody else is to read those
        return [block, "extent", digest.hex(), None]
    return [block, "extent", digest.hex(), [table.file.path, row.offset, row.stored, CODEC_NAMES[row.codec]]]


def leaf_pairs(store: GroupStore, root: Root, base: Root, first: int = 0) -> Iterator[LeafPair]:
    """Every leaf from ``first`` on whose map entries differ, in ascending order."""
    yield from _walk(store, max(root.levels, base.levels), 0, root, base, first)


def _present(store: GroupStore, root: Root, base: Root) -> Iterator[LeafPair]:
    """As ``leaf_pairs``, of every leaf that either has."""
    yield from leaf_pairs(store, root, EMPTY_ROOT)
    yield from leaf_pairs(store, base, EMPTY_ROOT)


def _walk(store: GroupStore, level: int, index: int, mine: Root, other: Root, first: int) -> Iterator[LeafPair]:
    """Compare two subtrees that both stand for node ``index`` of ``level``; one may have fewer levels."""
    if mine == other or not (mine.entry or other.entry) or (index + 1) * FANOUT ** (level - 1) <= first:
        return
    if level == 1:
        yield index, mine.entry, other.entry
        return
    left, right = _children(store, mine, level), _children(store, other, level)
    differ = left != right
    if mine.levels < level or other.levels < level:
        differ[0] = True
    for child in np.flatnonzero(differ).tolist():
        yield from _walk(
            store,
            level - 1,
            index * FANOUT + child,
            _child(mine, level, left, child),
            _child(other, level, right, child),
            first,
        )


def _children(store: GroupStore, node: Root, level: int) -> Words:
    if node.levels < level or not node.entry:
        return _ZEROS
    return np.frombuffer(store.map_page(node.entry), dtype=np.uint64)[:FANOUT]


def _child(node: Root, level: int, children: Words, child: int) -> Root:
    """A node with fewer levels is its own first child."""
    if node.levels < level:
        return node if child == 0 else EMPTY_ROOT
    return Root(int(children[child]), level - 1)
