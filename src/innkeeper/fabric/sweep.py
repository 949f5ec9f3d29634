"""Sweeping: what nothing stands on is found by marking from all roots, and its space is taken back.

The reclaim protocol: under the maintenance lock (no drain is under way) mark from every root and choose groups; they
are ``closing`` from then on, so that deduplication finds nothing in them, and what was dead at the mark stays dead.
Then group by group, the lock released in between: a group without live items goes; one that is mostly dead is written
anew as generation N + 1 (numbers of slots stay), synced, its row swapped in meta, and generation N removed; readers
that still have it open finish, others look the row up again. Nothing that a held snapshot reaches is moved.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from innkeeper.fabric.devices import Device
from innkeeper.fabric.groups import ROW_BYTES, SlotTable
from innkeeper.fabric.layout import (
    PAGE,
    SLOT_BITS,
)
from innkeeper.fabric.marks import Marks, Slots
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.rewrite import AS_THEY_ARE, NOTHING, write_generation
from innkeeper.fabric.shelves import Draft
from innkeeper.fabric.space import Limits
from innkeeper.fabric.store import LIVE
from innkeeper.fabric.upkeep import IDLE_DRAIN_S, SHORT_BYTES, PoolUpkeep
from innkeeper.model.problems import Failed, NoSpace, Problem
from innkeeper.system.clock import Activity
from innkeeper.system.files import Io

CLOSING = "closing"
COMPACT_BELOW = 0.6
"""Share of live bytes below which a group is written anew; below, where somebody waits for room."""
COMPACT_BELOW_IN_NEED = 0.9
SWEEP_AT = 2.0
"""Stored bytes, as a multiple of those found live, from which a sweep is due."""
SWEEP_FROM_BYTES = 1 << 30
LOOK_S = 10.0
MOST_REST_S = 2.0
HOLD_S = 1.0
"""For how long a sweep in need keeps the drain waiting: the log goes on taking writes meanwhile."""


def leisure(stored_bytes: int, live_bytes: int) -> float:
    """The share of its rests that a sweep may take: all when it has just become due, none once dead bytes outgrow it.

    Writers that make more dead than a resting sweep takes back would fill any file system.
    """
    beyond = stored_bytes - SWEEP_AT * live_bytes - SWEEP_FROM_BYTES
    return min(1.0, max(0.0, 1.0 - beyond / max(live_bytes, SWEEP_FROM_BYTES)))


class TakenBack(NamedTuple):
    """What became of a group: written anew, else removed; and what that freed."""

    compacted: bool
    freed_bytes: int


class PoolSweep(PoolUpkeep):
    """Taking back what nothing stands on."""

    _live_bytes = 0
    _held_back = frozenset[str]()
    """The holds at the last sweep, where that left dead data for their sake."""
    _kept_at: tuple[int, float] | None = None
    """``commits`` and the time when a sweep last left dead groups that the log names."""
    _sweeper: Activity | None = None
    sweep_problem: Problem | None = None
    paused = False
    """Background work but the drain rests."""

    def __init__(self, io: Io, path: str, limits: Limits) -> None:
        self._one_sweep = threading.Lock()
        super().__init__(io, path, limits)

    def sweep_is_due(self) -> bool:
        if self.sweep_wanted or self._held_back - set(self.catalog.holds):
            return True
        if self._kept_at is not None:
            commits, at = self._kept_at
            if commits != self.commits and self.io.clock.monotonic() - at > IDLE_DRAIN_S:
                return True
        return self._stored_bytes() > SWEEP_AT * self._live_bytes + SWEEP_FROM_BYTES

    def _stored_bytes(self) -> int:
        return sum(row.size_bytes for row in list(self.store.rows.values()))

    def start_upkeep(self) -> None:
        super().start_upkeep()
        self._sweeper = self.io.scheduler.start("fabric-sweep", self._sweep_step)

    def stop_upkeep(self) -> None:
        if self._sweeper is not None:
            self._sweeper.stop()
            self._sweeper = None
        super().stop_upkeep()

    def wake_sweeper(self) -> None:
        if self._sweeper is not None:
            self._sweeper.kick()

    def ask_for_sweep(self, ticket: int) -> None:
        """Have a sweep for somebody who waits for room; cheap, for the event loop."""
        self.relief.ask_sweep(ticket)
        self.wake_sweeper()

    def _sweep_step(self) -> float:
        short, in_need = self._room_is_short(), self.relief.wants_sweep
        if self.read_only or not (in_need or (self.sweep_is_due() and (short or not self.paused))):
            return LOOK_S
        ticket, freed = self.relief.begin_sweep(), 0
        try:
            if in_need:
                freed = self.sweep(COMPACT_BELOW_IN_NEED, enough_bytes=SHORT_BYTES)["freed_bytes"]
            else:
                self.sweep(gentle=not short)
            self.sweep_problem = None
        except Problem as problem:
            self.sweep_problem = problem
            self.sweep_wanted = True
        if in_need:
            self.relief.end_sweep(ticket, freed)
            self.on_room()  # or who waits is to be told that there is none
        return LOOK_S

    def rest_after(self, work_s: float) -> float:
        """How long background work rests for the foreground's sake; the curator knows."""
        return 0.0

    def sweep(
        self, compact_below: float = COMPACT_BELOW, *, gentle: bool = False, enough_bytes: int | None = None
    ) -> dict[str, Any]:
        """Take back dead space; for worker threads. Returns groups removed and compacted and bytes freed.

        ``gentle``: with rests for the foreground. ``enough_bytes``: only until there is so much room.

        Raises ``Corrupt`` (nothing is reclaimed while a map cannot be read), ``NoSpace``, ``Failed``.
        """
        self._check_writable()
        with self._one_sweep:  # what one has chosen must not be freed for another by the end of a third
            return self._sweep(compact_below, gentle, enough_bytes)

    def _sweep(self, compact_below: float, gentle: bool, enough_bytes: int | None) -> dict[str, Any]:
        self.sweep_wanted = False
        with self.catalog.admin, self.lock:
            self.catalog.collect()
        removed = compacted = freed = 0
        try:
            self._settle()
            with self.maintenance:
                marks, chosen, holds = self._choose(compact_below)
            if chosen:  # a power cut must not take the writes that made dead what is taken back
                self.sync_blocking(self.log.sequence)
            while chosen:
                began = self.io.clock.monotonic()
                with self.maintenance:
                    for each in self._take_back(chosen, marks, holds, self._hold_s(gentle)):
                        removed += not each.compacted
                        compacted += each.compacted
                        freed += each.freed_bytes
                self.on_room()
                if enough_bytes is not None and self.room_bytes() >= enough_bytes:
                    self.sweep_wanted |= bool(chosen)
                    break
                if gentle:
                    self._rest(self.io.clock.monotonic() - began)
        except OSError as refused:
            if refused.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace("pool.full", f"the sweep of {self.path} has no room", cause=str(refused)) from refused
            raise Failed("sweep.failed", f"the sweep of {self.path} failed", cause=str(refused)) from refused
        finally:
            for row in list(self.store.rows.values()):
                if row.state == CLOSING:
                    row.state = LIVE
        self.meters.sweeps += 1
        self.meters.groups_removed += removed
        self.meters.groups_compacted += compacted
        self.meters.swept_bytes += freed
        return {"groups_removed": removed, "groups_compacted": compacted, "freed_bytes": freed}

    def _settle(self) -> None:
        """Let meta know the groups that no stream writes to any more: until then, which may be for long where nobody
        writes, they are nobody's to take back."""
        if self.bypass.left:
            self.sync_blocking(self.log.sequence)  # most of the work, while a drain may go on
            with self.maintenance:
                self.settle_groups()

    def _take_back(self, chosen: list[int], marks: Marks, holds: frozenset[str], hold_s: float) -> Iterator[TakenBack]:
        """Remove or compact the first of ``chosen``, and more while it takes less than ``hold_s``; under
        ``maintenance``. Leaves the rest to another sweep where somebody has begun to hold a snapshot."""
        until = self.io.clock.monotonic() + hold_s
        while chosen:
            if set(self.catalog.holds) - holds:
                chosen.clear()
                self.sweep_wanted = True
                return
            began = self.io.clock.monotonic()
            row = self.store.rows[chosen.pop(0)]
            before, table = row.size_bytes, self.store.table(row.number)
            mask = marks.of(row.number, table.slots)
            if mask.any():
                yield TakenBack(True, before - self._compact(row, table, mask))
            else:
                self._remove(row, table)
                yield TakenBack(False, before)
            now = self.io.clock.monotonic()
            self.meters.sweep_s.add(now - began)
            if now >= until:
                return

    def _hold_s(self, gentle: bool) -> float:
        """For how long to go on at a time: for one group where there is leisure."""
        if not gentle or self._room_is_short():
            return HOLD_S
        return HOLD_S * (1.0 - leisure(self._stored_bytes(), self._live_bytes))

    def _rest(self, work_s: float) -> None:
        """Leave the processor and the medium to the foreground for a while, unless space is needed sooner."""
        rest_s = min(MOST_REST_S, self.rest_after(work_s)) * leisure(self._stored_bytes(), self._live_bytes)
        self.io.clock.sleep(0.0 if self._room_is_short() else rest_s)

    def _choose(self, compact_below: float) -> tuple[Marks, list[int], frozenset[str]]:
        """Mark, and set the groups worth the work to ``closing``, those with least to copy first."""
        open_numbers = self.busy_groups
        for row in [row for number, row in list(self.store.rows.items()) if number not in open_numbers]:
            row.state = CLOSING  # before the mark: a stream finds nothing in them that the mark does not see
        in_flight = self.bypass.in_flight()
        with self.catalog.admin:
            roots = self.catalog.roots()
            holds = frozenset(self.catalog.holds)
            layers = list(self.catalog.layers)
        named = {number for layer in layers for number in list(layer.groups)}
        marks = Marks.of_roots(self.store, roots)
        marks.add_layers(layers)
        marks.add(np.array(in_flight, dtype=np.uint64))
        held = self._held_groups()
        chosen: list[tuple[float, int]] = []
        live_total = 0
        for number, row in sorted(self.store.rows.items()):
            if number in open_numbers:
                live_total += row.size_bytes
                continue
            table = self.store.table(number)
            rows = np.frombuffer(bytes(table.rows), dtype="<u4").reshape(-1, ROW_BYTES // 4)
            live = int((rows[marks.of(number, table.slots), 1] & 0xFFFFFF).sum())
            live_total += live
            share = live / max(1, row.size_bytes)
            if not live or (share < compact_below and row.size_bytes - live > 16 * PAGE):
                chosen.append((share, number))
        self._held_back = holds if any(number in held for _, number in chosen) else frozenset()
        chosen = [each for each in chosen if each[1] not in held]
        kept = {number for share, number in chosen if not share and number in named}
        self._kept_at = (self.commits, self.io.clock.monotonic()) if kept else None
        if kept:  # a record of the log names them; until that is drained, recovery would miss them
            chosen = [each for each in chosen if each[1] not in kept]
        self._live_bytes = live_total
        chosen.sort()
        closing = {number for _, number in chosen}
        for number, row in list(self.store.rows.items()):
            if row.state == CLOSING and number not in closing:
                row.state = LIVE
        return marks, [number for _, number in chosen], holds

    def _held_groups(self) -> set[int]:
        """Groups that a held snapshot reaches: who holds it may read their files directly."""
        with self.catalog.admin:
            views = [self.catalog.snapshots[each].frozen.view for each in set(self.catalog.holds.values())]
        marks = Marks.of_roots(self.store, [view.root for view in views])
        for view in views:
            marks.add_layers(view.layers)
        return set(marks.live)

    def _remove(self, row: GroupRow, table: SlotTable) -> None:
        with self.catalog.admin, self.catalog.meta.transaction() as change:
            change.run("DELETE FROM groups WHERE number=?", (row.number,))
        del self.store.rows[row.number]
        self.store.forget(row.number)
        self.copies.drop(row.number)
        self._forget_hashes(table, np.zeros(table.slots, dtype=np.bool_))
        self.devices.shelf(row.device).remove(row)

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
        draft, fresh = self.written(row, table, live, device, instead)
        self.swap_in(fresh, draft)
        return fresh.size_bytes

    def written(
        self,
        row: GroupRow,
        table: SlotTable,
        live: Slots,
        device: Device,
        instead: Mapping[int, bytes] = NOTHING,
        policies: Mapping[int, Policy] = AS_THEY_ARE,
    ) -> tuple[Draft, GroupRow]:
        """The next generation of a group, on the medium of ``device`` but without a place yet, and its row."""
        if table.copied:  # what is damaged in a copy is to go no further
            table = self.store.own_table(row.number)
        draft = self.devices.shelf(device.id).draft(row.number, row.generation + 1)
        try:
            fresh = write_generation(draft.file, self.pool_id, row, table, live, instead, policies)
            return draft, draft.finish(replace(fresh, device=device.id))
        except BaseException:
            draft.abandon()
            raise

    def swap_in(self, fresh: GroupRow, draft: Draft) -> None:
        """Let a group's next generation take the present one's place; what fails before that leaves nothing of it."""
        old = self.store.rows[fresh.number]
        try:
            draft.publish()
            with self.catalog.admin, self.catalog.meta.transaction() as change:
                change.put_group(fresh)
        except BaseException:
            draft.abandon()
            raise
        self.store.rows[fresh.number] = fresh
        self.store.forget(fresh.number)
        self.copies.drop(fresh.number)
        with suppress(OSError):  # what stays goes when the pool is opened again
            self.devices.shelf(old.device).remove(old)

    def _forget_hashes(self, table: SlotTable, live: Slots) -> None:
        gone = []
        for slot in np.flatnonzero(~live).tolist():
            digest = table.extent_hash(slot)
            if digest is not None:
                gone.append((digest, table.number << SLOT_BITS | slot))
        if gone and self._fingerprints is not None:
            self._fingerprints.remove(gone)
