"""A huge disk without its data: map pages written by the fabric's own map writer, that name a few stored extents again
and again. Maps, heads, snapshots and all that reads them are as if the data had been written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from random import Random
from uuid import uuid4

from blake3 import blake3

from innkeeper.fabric.layout import BLOCK, FANOUT, Root, levels_for
from innkeeper.fabric.maps import MapEdit
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.pool import Pool

TIB = 1 << 40
LEAF_BYTES = FANOUT * BLOCK
_EXTENTS = 4 * FANOUT


class SparseDisk:
    """A disk of an open pool (``background=False``) whose map is filled by hand."""

    def __init__(self, pool: Pool, size_bytes: int) -> None:
        self.pool = pool
        self.id = str(uuid4())
        self.size_bytes = size_bytes
        storage = str(uuid4())
        pool.storage_create(storage)
        pool.disk_create(self.id, size_bytes, storage)
        self._chance = Random(1)
        self._writer = pool.writers.of("")
        self._extents = [self._extent() for _ in range(_EXTENTS)]

    def _extent(self) -> int:
        data = self._chance.randbytes(64) + bytes(BLOCK - 64)
        return self._writer.put_extent(data, blake3(data).digest(), None, Policy())

    @property
    def root(self) -> Root:
        return self.pool.catalog.disk(self.id).open.view.root

    def fill_leaves(self, leaves: Iterable[int]) -> None:
        """Every block of these leaves (64 MiB each) holds data, other data than before."""
        edit = self._edit()
        for number in leaves:
            leaf = edit.leaf(number)
            first = self._chance.randrange(_EXTENTS)
            for block in range(FANOUT):
                leaf.set_block(block, self._extents[(first + 7 * block) % _EXTENTS])
            edit.put_leaf(number, leaf)
        self._commit(edit)

    def change_blocks(self, blocks: Iterable[int]) -> None:
        """These blocks, in ascending order, hold other data than before."""
        edit = self._edit()
        number, leaf = -1, None
        for block in blocks:
            if block // FANOUT != number:
                if leaf is not None:
                    edit.put_leaf(number, leaf)
                number = block // FANOUT
                leaf = edit.leaf(number)
            assert leaf is not None
            before = leaf.entries[block % FANOUT]
            leaf.set_block(
                block % FANOUT, next(each for each in self._chance.sample(self._extents, 2) if each != before)
            )
        if leaf is not None:
            edit.put_leaf(number, leaf)
        self._commit(edit)

    def snapshot(self) -> str:
        """The id of a new snapshot."""
        made = str(uuid4())
        self.pool.snapshot_create({made: self.id})
        return made

    def _edit(self) -> MapEdit:
        return MapEdit(self.pool.store, self._writer, self.root, levels_for(self.size_bytes))

    def _commit(self, edit: MapEdit) -> None:
        """The order of a drain's commit: items, meta, readers."""
        pool, catalog = self.pool, self.pool.catalog
        before = catalog.counts.get(self.root.entry, 0)
        root = edit.finish()
        self._writer.sync()
        with catalog.admin:
            layer = catalog.disk(self.id).open
            layer.root = root
            catalog.counts[root.entry] = before + edit.added_bytes
            written = self._writer.commit(catalog.notes(pool.log.sequence))
            with catalog.meta.transaction() as change:
                catalog.write_all(change)
                for each in written:
                    change.put_group(each.row)
            for each in written:
                pool.store.rows[each.row.number] = replace(each.row)
                pool.store.extend(each.row.number, each.first_slot, each.rows, each.aux)
            with pool.lock:
                catalog.relink()


def spread(disk: SparseDisk, share: float) -> list[int]:
    """Leaves that together make this share of the disk, evenly all over it."""
    count = disk.size_bytes // LEAF_BYTES
    return list(range(0, count, max(1, round(1 / share))))
