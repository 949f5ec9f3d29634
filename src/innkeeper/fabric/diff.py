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
_ZEROS: Words = np.zeros(FANOUT, dtype=np.uint64)
_KIND_SHIFT = np.uint64(60)
_SLOT_MASK = np.uint64(0x3FFFF)
EMPTY_VIEW = View((), EMPTY_ROOT)


def changed(store: GroupStore, view: View, base: View, start: int, limit: int) -> tuple[list[list[Any]], int | None]:
    """Up to ``limit`` blocks from ``start`` on in which ``view`` may differ from ``base``, and where to go on.

    Each is ``[block, kind, hash, location]``; see ``Pool.changed_blocks``. Without layers and with ``EMPTY_VIEW`` as
    base: every block that is no hole. Raises ``Corrupt``, ``OSError``.
    """
    layers = [layer for layer in (*view.layers, *base.layers) if (layer in view.layers) != (layer in base.layers)]
    alone = base is EMPTY_VIEW
    result: list[list[Any]] = []
    for leaf in sorted(_leaves(store, view.root, base.root, layers, start // FANOUT)):
        mask = _root_mask(store, view.root, base.root, leaf)
        for layer in layers:
            _touched(layer, leaf, mask)
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


def _leaves(store: GroupStore, root: Root, base: Root, layers: list[Layer], first: int) -> set[int]:
    leaves = {leaf for leaf, _, _ in leaf_pairs(store, root, base) if leaf >= first}
    per_leaf = FANOUT * PAGES_PER_BLOCK
    for layer in layers:
        if layer.pages:
            pages = np.fromiter(list(layer.pages), dtype=np.int64)
            leaves.update(leaf for leaf in np.unique(pages // per_leaf).tolist() if leaf >= first)
        ranges = [(start // per_leaf, (end - 1) // per_leaf) for start, end in layer.zeros]
        if ranges:
            for leaf, _, _ in _present(store, root, base):
                if leaf >= first and any(low <= leaf <= high for low, high in ranges):
                    leaves.add(leaf)
    return leaves


def _root_mask(store: GroupStore, root: Root, base: Root, leaf: int) -> Mask:
    mine, other = leaf_entry(store, root, leaf), leaf_entry(store, base, leaf)
    if mine == other:
        return np.zeros(FANOUT, dtype=np.bool_)
    left, left_tables = _leaf_arrays(store, mine)
    right, right_tables = _leaf_arrays(store, other)
    mask: Mask = left != right
    both = np.flatnonzero((left >> _KIND_SHIFT == KIND_SPLIT) & (right >> _KIND_SHIFT == KIND_SPLIT))
    if len(both):
        differ = left_tables[left[both] & _SLOT_MASK] != right_tables[right[both] & _SLOT_MASK]
        mask[both] = differ.any(axis=1)
    return mask


def _leaf_arrays(store: GroupStore, entry: int) -> tuple[Words, Words]:
    if not entry:
        return _ZEROS, _ZEROS.reshape(-1, PAGES_PER_BLOCK)
    page = np.frombuffer(store.map_page(entry), dtype=np.uint64)
    return page[:FANOUT], page[FANOUT:].reshape(-1, PAGES_PER_BLOCK)


def _touched(layer: Layer, leaf: int, mask: Mask) -> None:
    start = leaf * FANOUT * PAGES_PER_BLOCK
    end = start + FANOUT * PAGES_PER_BLOCK
    if layer.pages:
        pages = np.fromiter(list(layer.pages), dtype=np.int64)
        own = pages[(pages >= start) & (pages < end)]
        mask[(own - start) // PAGES_PER_BLOCK] = True
    for low, high in layer.zeros.within(start, end):
        mask[(low - start) // PAGES_PER_BLOCK : (high - start - 1) // PAGES_PER_BLOCK + 1] = True


def _describe(store: GroupStore, view: View, block: int) -> list[Any]:
    first = block * PAGES_PER_BLOCK
    values = [find(view.layers, first + index) for index in range(PAGES_PER_BLOCK)] if view.layers else []
    if any(values):
        return [block, "data", None, None]
    entry, _ = block_entry(store, view.root, block)
    if any(value is not None for value in values):
        return [block, "hole" if entry == HOLE or None not in values else "data", None, None]
    if entry == HOLE:
        return [block, "hole", None, None]
    if entry_kind(entry) != KIND_EXTENT:
        return [block, "data", None, None]
    group, slot = entry_place(entry)
    table = store.table(group)
    row = table.row(slot)
    digest = table.extent_hash(slot)
    assert digest is not None
    return [block, "extent", digest.hex(), [table.file.path, row.offset, row.stored, CODEC_NAMES[row.codec]]]


def leaf_pairs(store: GroupStore, root: Root, base: Root) -> Iterator[tuple[int, int, int]]:
    """(leaf, entry, base entry) of every leaf whose map entries differ."""
    yield from _walk(store, max(root.levels, base.levels), 0, root, base)


def _present(store: GroupStore, root: Root, base: Root) -> Iterator[tuple[int, int, int]]:
    """As ``leaf_pairs``, of every leaf that either has."""
    yield from leaf_pairs(store, root, EMPTY_ROOT)
    yield from leaf_pairs(store, base, EMPTY_ROOT)


def _walk(store: GroupStore, level: int, index: int, mine: Root, other: Root) -> Iterator[tuple[int, int, int]]:
    """Compare two subtrees that both stand for node ``index`` of ``level``; one may have fewer levels."""
    if mine == other or not (mine.entry or other.entry):
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
