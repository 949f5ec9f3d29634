"""Marks: which slots of which groups are reachable from some roots."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from innkeeper.fabric.groups import ITEM_DEAD, ROW_BYTES, SlotTable
from innkeeper.fabric.layers import Layer
from innkeeper.fabric.layout import KIND_EXTENT, KIND_PIECE, SLOT_BITS, Root, entry_place
from innkeeper.fabric.maps import walk_maps
from innkeeper.fabric.store import GroupStore

Slots = NDArray[np.bool_]


def present(table: SlotTable) -> Slots:
    """Which slots of a group still hold an item."""
    packed = np.frombuffer(bytes(table.rows), dtype="<u4").reshape(-1, ROW_BYTES // 4)[:, 1]
    found: Slots = (packed >> 24 & 0xF) != ITEM_DEAD
    return found


class Marks:
    """Which slots of which groups are reachable."""

    def __init__(self) -> None:
        self.live: dict[int, Slots] = {}
        self.seen: set[int] = set()
        """Map pages that have been walked."""

    @classmethod
    def of_roots(cls, store: GroupStore, roots: Iterable[Root]) -> Marks:
        """Everything reachable from ``roots``. Raises ``Corrupt``, ``OSError``."""
        marks = cls()
        marks.walk(store, roots)
        return marks

    def walk(self, store: GroupStore, roots: Iterable[Root]) -> None:
        """Mark what is reachable from more roots."""
        for root in roots:
            for entry, _, page in walk_maps(store, root, self.seen):
                group, slot = entry_place(entry)
                self.add(np.array([group << SLOT_BITS | slot], dtype=np.uint64))
                entries = np.frombuffer(page, dtype=np.uint64)
                kinds = entries >> np.uint64(60)
                own = entries[(kinds == KIND_EXTENT) | (kinds == KIND_PIECE)]
                self.add(own & np.uint64((1 << 48) - 1))

    def add_layers(self, layers: Iterable[Layer]) -> None:
        """Mark the extents that went past the log into these layers."""
        for layer in layers:
            entries = np.fromiter(list(layer.blocks.values()), dtype=np.uint64)
            self.add(entries[entries != 0] & np.uint64((1 << 48) - 1))

    def add(self, places: NDArray[np.uint64]) -> None:
        """Mark (group << 18 | slot) places."""
        groups = (places >> np.uint64(SLOT_BITS)).astype(np.int64)
        slots = (places & np.uint64((1 << SLOT_BITS) - 1)).astype(np.int64)
        order = np.argsort(groups, kind="stable")
        groups, slots = groups[order], slots[order]
        bounds = np.flatnonzero(np.diff(groups)) + 1
        for first, part in zip([0, *bounds.tolist()], np.split(slots, bounds), strict=True):
            if len(part):
                self._mark(int(groups[first]), part)

    def _mark(self, group: int, slots: NDArray[np.int64]) -> None:
        top = int(slots.max()) + 1
        mask = self.live.get(group)
        if mask is None or len(mask) < top:
            wider = np.zeros(max(top, 0 if mask is None else 2 * len(mask)), dtype=np.bool_)
            if mask is not None:
                wider[: len(mask)] = mask
            mask = self.live[group] = wider
        mask[slots] = True

    def of(self, group: int, slots: int) -> Slots:
        """The mask of a group, ``slots`` long."""
        mask = self.live.get(group)
        result = np.zeros(slots, dtype=np.bool_)
        if mask is not None:
            result[: len(mask)] = mask[:slots]
        return result
