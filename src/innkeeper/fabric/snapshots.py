"""Snapshots of a disk as a tree: what each changed, and what would be free without it."""

from __future__ import annotations

from typing import Any

from innkeeper.fabric.catalog import Snapshot
from innkeeper.fabric.diff import EMPTY_VIEW, changed_sets
from innkeeper.fabric.figures import PoolFigures
from innkeeper.fabric.layers import View
from innkeeper.fabric.layout import BLOCK
from innkeeper.model.problems import Failed


class PoolSnapshots(PoolFigures):
    """Sizes of snapshots."""

    def snapshot_sizes(self, disk_id: str) -> list[dict[str, Any]]:
        """Of each snapshot of the disk ``changed_bytes``, what it holds that the one before it had not (all that it
        holds for the first of a tree), and ``own_bytes``, what of that nothing taken later, no clone and not the disk
        itself still has; for worker threads.

        Both count whole blocks before deduplication and compression. The cost follows what changed from one to the
        next. Raises ``Corrupt``, ``Failed``.
        """
        with self.maintenance:
            with self.catalog.admin:
                views = [
                    (each.id, each.frozen.view, self._before(each), self._after(each))
                    for each in self.catalog.snapshots.values()
                    if each.disk_id == disk_id
                ]
            return [self._sizes(*each) for each in views]

    def _sizes(self, snapshot_id: str, view: View, before: View, after: list[View]) -> dict[str, Any]:
        _, own = self._changed(view, before)
        changed_bytes = BLOCK * len(own)
        for later in after:
            if not own:
                break
            own = own & self._changed(later, view)[0]
        return {"id": snapshot_id, "changed_bytes": changed_bytes, "own_bytes": BLOCK * len(own)}

    def _before(self, snapshot: Snapshot) -> View:
        """What the snapshot's disk went on from."""
        disk = self.catalog.disks.get(snapshot.disk_id)
        parent = self.catalog.snapshots.get(snapshot.parent or (disk.origin if disk is not None else ""))
        return parent.frozen.view if parent is not None else EMPTY_VIEW

    def _after(self, snapshot: Snapshot) -> list[View]:
        """What went on from the snapshot: later ones, the disk, clones and their first snapshots."""
        catalog = self.catalog
        views = [each.frozen.view for each in catalog.snapshots.values() if each.parent == snapshot.id]
        views += [disk.open.view for disk in catalog.disks.values() if disk.parent == snapshot.id]
        clones = [disk for disk in catalog.disks.values() if disk.origin == snapshot.id]
        views += [clone.open.view for clone in clones if not clone.parent]
        known = {clone.id for clone in clones}
        views += [each.frozen.view for each in catalog.snapshots.values() if each.disk_id in known and not each.parent]
        return views

    def _changed(self, view: View, base: View) -> tuple[set[int], set[int]]:
        """As ``changed_sets``; under ``maintenance``, so that what both stand on stays where it is."""
        try:
            return changed_sets(self.store, view, base)
        except OSError as refused:
            raise Failed("disk.read", "stored bytes cannot be read", cause=str(refused)) from refused
