"""Figures: how much data disks hold, and what it takes once equal blocks are stored once and compressed.

``data_bytes`` is what of the disks is no hole (64 KiB for an extent, 4 KiB for a page of a split block), each disk by
itself; ``distinct_bytes`` the extents and pieces which hold that, unpacked, each counted once; ``stored_bytes`` what
these and the map pages take in groups. So data over distinct is what deduplication and clones save, and distinct over
stored items is what compression saves. Writes that are not drained are counted apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from innkeeper.fabric.catalog import Disk
from innkeeper.fabric.check import PoolCheck
from innkeeper.fabric.groups import ITEM_EXTENT, ITEM_MAP, ITEM_PIECE, ROW_BYTES
from innkeeper.fabric.layout import BLOCK, PAGE
from innkeeper.fabric.marks import Marks
from innkeeper.fabric.store import GroupStore


@dataclass(frozen=True, slots=True)
class Stored:
    """What some roots reach: unpacked and stored bytes of extents and pieces, stored bytes of map pages."""

    distinct_bytes: int
    item_bytes: int
    map_bytes: int

    @property
    def stored_bytes(self) -> int:
        return self.item_bytes + self.map_bytes


def stored_of(store: GroupStore, marks: Marks) -> Stored:
    """Add up what is marked. Raises ``Corrupt``, ``OSError``."""
    distinct = items = maps = 0
    for number in marks.live:
        table = store.table(number)
        sizes = np.frombuffer(bytes(table.rows), dtype="<u4").reshape(-1, ROW_BYTES // 4)[:, 1]
        sizes = sizes[marks.of(number, table.slots)]
        kinds, stored = sizes >> 24 & 0xF, (sizes & 0xFFFFFF).astype(np.int64)
        distinct += BLOCK * int((kinds == ITEM_EXTENT).sum()) + PAGE * int((kinds == ITEM_PIECE).sum())
        maps += int(stored[kinds == ITEM_MAP].sum())
        items += int(stored[kinds != ITEM_MAP].sum())
    return Stored(distinct, items, maps)


def _ratio(more: int, less: int) -> float:
    return round(more / less, 2) if less else 1.0


class PoolFigures(PoolCheck):
    """Figures of a disk, of a storage, of all."""

    def figures(self, disk_id: str | None = None, storage_id: str | None = None) -> dict[str, Any]:
        """What a disk, the disks of a storage, or all disks hold and take; for worker threads.

        ``data_bytes``, ``distinct_bytes``, ``stored_bytes``, ``undrained_bytes`` of the disks as they are now and the
        ratios between them; ``snapshot_bytes``: what is stored besides for their snapshots alone. Draining and sweeping
        wait meanwhile: it walks all map pages. Raises ``NotFound``, ``Corrupt``, ``Failed``.
        """
        with self.maintenance:
            with self.catalog.admin:
                disks = self._chosen(disk_id, storage_id)
                chosen = {disk.id for disk in disks}
                heads = [disk.open.view.root for disk in disks]
                snapshots = [
                    snapshot.frozen.view.root
                    for snapshot in self.catalog.snapshots.values()
                    if snapshot.disk_id in chosen or snapshot.storage_id == storage_id or not (disk_id or storage_id)
                ]
                undrained = {layer: layer.data_bytes for disk in disks for layer in disk.open.view.layers}
            marks = Marks.of_roots(self.store, heads)
            own = stored_of(self.store, marks)
            marks.walk(self.store, snapshots)
            data = sum(self.data_below(root) for root in heads)
            return {
                "data_bytes": data,
                "distinct_bytes": own.distinct_bytes,
                "stored_bytes": own.stored_bytes,
                "snapshot_bytes": stored_of(self.store, marks).stored_bytes - own.stored_bytes,
                "undrained_bytes": sum(undrained.values()),
                "dedup_ratio": _ratio(data, own.distinct_bytes),
                "compression_ratio": _ratio(own.distinct_bytes, own.item_bytes),
            }

    def places(self, disk_id: str) -> list[dict[str, Any]]:
        """Where what a disk reaches is: of each device the groups, and the stored bytes of its items in them.

        For worker threads. Raises ``NotFound``, ``Corrupt``, ``OSError``.
        """
        with self.maintenance:
            with self.catalog.admin:
                root = self.catalog.disk(disk_id).open.view.root
            marks = Marks.of_roots(self.store, [root])
            found: dict[str, list[int]] = {}
            for number in marks.live:
                table = self.store.table(number)
                sizes = np.frombuffer(bytes(table.rows), dtype="<u4").reshape(-1, ROW_BYTES // 4)[:, 1]
                place = found.setdefault(self.store.rows[number].device, [0, 0])
                place[0] += int((sizes[marks.of(number, table.slots)] & 0xFFFFFF).astype(np.int64).sum())
                place[1] += 1
            return [
                {
                    "device": device,
                    "path": self.devices.all[device].path,
                    "tier": self.devices.all[device].tier,
                    "stored_bytes": stored,
                    "groups": groups,
                }
                for device, (stored, groups) in found.items()
            ]

    def hot(self, limit: int = 20) -> list[dict[str, Any]]:
        """The groups that were read most in the last 10 minutes, with the disks that reach them; for worker threads."""
        with self.maintenance:
            touches = self.heat.touches(self.io.clock.monotonic())
            hottest = sorted(touches, key=lambda number: (-touches[number], number))
            hottest = [number for number in hottest if number in self.store.rows][:limit]
            if not hottest:
                return []
            with self.catalog.admin:
                roots = {disk.id: disk.open.view.root for disk in self.catalog.disks.values()}
            reached = {disk_id: set(Marks.of_roots(self.store, [root]).live) for disk_id, root in roots.items()}
            rows = [self.store.rows[number] for number in hottest]
            return [
                {
                    "number": row.number,
                    "device": row.device,
                    "tier": self.devices.all[row.device].tier,
                    "size_bytes": row.size_bytes,
                    "touches": touches[row.number],
                    "disks": sorted(disk_id for disk_id, groups in reached.items() if row.number in groups),
                }
                for row in rows
            ]

    def _chosen(self, disk_id: str | None, storage_id: str | None) -> list[Disk]:
        if disk_id is not None:
            return [self.catalog.disk(disk_id)]
        if storage_id is not None:
            storage = self.catalog.storage(storage_id)
            return [disk for disk in self.catalog.disks.values() if disk.storage_id == storage.id]
        return list(self.catalog.disks.values())
