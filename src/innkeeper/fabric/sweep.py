"""Sweeping: what nothing stands on is found by marking from all roots, and its space is taken back.

The reclaim protocol: under the maintenance lock (no drain is under way) mark from every root and choose groups; they
are ``closing`` from then on, so that deduplication finds nothing in them, and what was dead at the mark stays dead.
Then group by group, the lock released in between: a group without live items goes; one that is mostly dead is written
anew as generation N + 1 (numbers of slots stay), synced, its row swapped in meta, and generation N removed; readers
that still have it open finish, others look the row up again. Nothing that a held snapshot reaches is moved.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from innkeeper.fabric.devices import Device
from innkeeper.fabric.groups import (
    ROW_BYTES,
    SlotTable,
    group_path,
)
from innkeeper.fabric.layout import (
    PAGE,
    SLOT_BITS,
)
from innkeeper.fabric.marks import Marks, Slots
from innkeeper.fabric.rewrite import NOTHING, write_generation
from innkeeper.fabric.store import LIVE, GroupRow
from innkeeper.fabric.upkeep import PoolUpkeep
from innkeeper.model.problems import Failed, NoSpace, Problem

CLOSING = "closing"
COMPACT_BELOW = 0.6
"""Share of live bytes below which a group is written anew."""
SWEEP_AT = 2.0
"""Stored bytes, as a multiple of those found live, from which a sweep is due."""
SWEEP_FROM_BYTES = 1 << 30


class PoolSweep(PoolUpkeep):
    """Taking back what nothing stands on."""

    _live_bytes = 0

    def sweep_is_due(self) -> bool:
        stored = sum(row.size_bytes for row in list(self.store.rows.values()))
        return self.sweep_wanted or stored > SWEEP_AT * self._live_bytes + SWEEP_FROM_BYTES

    def _sweep_step(self) -> None:
        try:
            self.sweep()
        except Problem as problem:
            self.drain_problem = problem

    def sweep(self, compact_below: float = COMPACT_BELOW) -> dict[str, Any]:
        """Take back dead space; for worker threads. Returns groups removed and compacted and bytes freed.

        Raises ``Corrupt`` (nothing is reclaimed while a map cannot be read), ``NoSpace``, ``Failed``.
        """
        self._check_writable()
        self.sweep_wanted = False
        with self.catalog.admin, self.lock:
            self.catalog.collect()
        removed = compacted = freed = 0
        try:
            with self.maintenance:
                marks, chosen, holds = self._choose(compact_below)
            for number in chosen:
                with self.maintenance:
                    if frozenset(self.catalog.holds) != holds:
                        break
                    row = self.store.rows[number]
                    before = row.size_bytes
                    table = self.store.table(number)
                    mask = marks.of(number, table.slots)
                    if mask.any():
                        after = self._compact(row, table, mask)
                        compacted += 1
                    else:
                        after = 0
                        self._remove(row, table)
                        removed += 1
                    freed += before - after
        except OSError as refused:
            if refused.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace("pool.full", f"the sweep of {self.path} has no room", cause=str(refused)) from refused
            raise Failed("sweep.failed", f"the sweep of {self.path} failed", cause=str(refused)) from refused
        finally:
            for row in self.store.rows.values():
                if row.state == CLOSING:
                    row.state = LIVE
        if freed:
            self.on_room()
        return {"groups_removed": removed, "groups_compacted": compacted, "freed_bytes": freed}

    def _choose(self, compact_below: float) -> tuple[Marks, list[int], frozenset[str]]:
        """Mark, and set the groups worth the work to ``closing``, those with least to copy first."""
        with self.catalog.admin:
            roots = self.catalog.roots()
            holds = frozenset(self.catalog.holds)
            held_roots = [self.catalog.snapshots[each].frozen.view.root for each in set(self.catalog.holds.values())]
        marks = Marks.of_roots(self.store, roots)
        held = set(Marks.of_roots(self.store, held_roots).live)
        open_number = self.writer.number
        chosen: list[tuple[float, int]] = []
        live_total = 0
        for number, row in sorted(self.store.rows.items()):
            if number == open_number:
                live_total += row.size_bytes
                continue
            table = self.store.table(number)
            rows = np.frombuffer(bytes(table.rows), dtype="<u4").reshape(-1, ROW_BYTES // 4)
            live = int((rows[marks.of(number, table.slots), 1] & 0xFFFFFF).sum())
            live_total += live
            share = live / max(1, row.size_bytes)
            if number not in held and share < compact_below and row.size_bytes - live > 16 * PAGE:
                chosen.append((share, number))
            elif number not in held and not live:
                chosen.append((0.0, number))
        self._live_bytes = live_total
        chosen.sort()
        for _, number in chosen:
            self.store.rows[number].state = CLOSING
        return marks, [number for _, number in chosen], holds

    def _remove(self, row: GroupRow, table: SlotTable) -> None:
        with self.catalog.admin, self.catalog.meta.transaction() as change:
            change.run("DELETE FROM groups WHERE number=?", (row.number,))
        path = self.store.path(row.number)
        del self.store.rows[row.number]
        self.store.forget(row.number)
        self._forget_hashes(table, np.zeros(table.slots, dtype=np.bool_))
        self.io.files.unlink(path)

    def _compact(self, row: GroupRow, table: SlotTable, live: Slots) -> int:
        """Write generation N + 1 with only the live items; returns its size."""
        size = self.rewrite(row, table, live, self.devices.all[row.device])
        self._forget_hashes(table, live)
        return size

    def rewrite(
        self, row: GroupRow, table: SlotTable, live: Slots, device: Device, instead: Mapping[int, bytes] = NOTHING
    ) -> int:
        """Write a group anew, as the next generation, on ``device``, and let it take the old one's place.

        ``instead``: extents by slot that take the place of damaged ones.

        Under ``maintenance``. Readers that have the old one open finish. Returns its size. Raises ``Corrupt``,
        ``OSError`` and what a meta transaction raises; then the old one stays.
        """
        path = group_path(device.groups, row.number, row.generation + 1)
        try:
            fresh = write_generation(self.io.files, path, self.pool_id, row, table, live, instead)
            self.io.files.sync_dir(device.groups)
            fresh = replace(fresh, device=device.id)
            with self.catalog.admin, self.catalog.meta.transaction() as change:
                change.put_group(fresh.number, fresh.generation, LIVE, fresh.size_bytes, fresh.last_frame, device.id)
        except BaseException:
            with suppress(OSError):  # what cannot be removed now goes when the pool is opened again
                self.io.files.unlink(path)
            raise
        old_path = self.store.path(row.number)
        self.store.rows[row.number] = fresh
        self.store.forget(row.number)
        self.io.files.unlink(old_path)
        return fresh.size_bytes

    def _forget_hashes(self, table: SlotTable, live: Slots) -> None:
        gone = []
        for slot in np.flatnonzero(~live).tolist():
            digest = table.extent_hash(slot)
            if digest is not None:
                gone.append((digest, table.number << SLOT_BITS | slot))
        if gone and self._fingerprints is not None:
            self._fingerprints.remove(gone)
