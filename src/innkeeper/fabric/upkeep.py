"""Upkeep: draining layers and committing what was drained, and the background work that keeps the log short.

One drain or sweep runs at a time, under ``maintenance``. Order of a commit: items and map pages are synced, then one
meta transaction gives every head, snapshot and layer its new root, then readers see it, and only then is the log
trimmed.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress

from innkeeper.fabric.catalog import Disk
from innkeeper.fabric.control import PoolControl
from innkeeper.fabric.drain import Drained
from innkeeper.fabric.groupwriter import GroupWriter, Written
from innkeeper.fabric.layers import Layer
from innkeeper.fabric.layout import Root
from innkeeper.fabric.maps import DataCount
from innkeeper.fabric.relief import Relief
from innkeeper.fabric.space import Limits
from innkeeper.model.problems import Failed, NoSpace, Problem
from innkeeper.system.clock import Activity
from innkeeper.system.files import Io

DRAIN_AT = 0.4
"""Share of the log's bound from which the drain works without being asked."""
MOST_BLOCKS = 16384
"""Undrained blocks that went past the log (1 GiB) from which it does so too: they take memory, and time to recover."""
SYNC_BYTES = 64 << 20
"""What nobody has flushed after so much was written is put on the medium in the background: a restart reads again from
the medium whatever was not, before it serves anybody."""
IDLE_DRAIN_S = 20.0
SHORT_BYTES = 1 << 30
"""With less room than this, what was removed is swept at once."""
REST_S = 1.0
RETRY_S = 5.0


class PoolUpkeep(PoolControl):
    """Draining, by hand or in the background."""

    _drainer_activity: Activity | None = None
    _writer_activity: Activity | None = None
    _last_drain = 0.0
    _synced_bytes = 0
    """What had been written when this last synced."""
    drain_problem: Problem | None = None
    commits = 0
    """Counts drained layers."""

    def __init__(self, io: Io, path: str, limits: Limits) -> None:
        self.relief = Relief()
        super().__init__(io, path, limits)

    def start_upkeep(self) -> None:
        """Start the background activities: write-out of the log, and the drain."""
        self._last_drain = self.io.clock.monotonic()
        self._writer_activity = self.io.scheduler.start("fabric-log", self._write_out_step)
        self._drainer_activity = self.io.scheduler.start("fabric-drain", self._drain_step)
        self.log.kick = self._kick

    def stop_upkeep(self) -> None:
        for activity in (self._writer_activity, self._drainer_activity):
            if activity is not None:
                activity.stop()
        self._writer_activity = self._drainer_activity = None

    def _kick(self) -> None:
        if self._writer_activity is not None:
            self._writer_activity.kick()
        if self._drainer_activity is not None and self._log_is_long():
            self._drainer_activity.kick()

    def ask_for_drain(self, disks: Iterable[Disk]) -> int | None:
        """Have the disks' writes drained soon; cheap, for the event loop. The ticket of ``relief``; None where nobody
        drains in the background."""
        if self._drainer_activity is None:
            return None
        ticket = self.relief.ask(disk.id for disk in disks)
        self._drainer_activity.kick()
        return ticket

    def _log_is_long(self) -> bool:
        """Whether the log, or what went past it and stands in layers, is to be drained now."""
        if self.log.used_bytes > self.limits.log_bytes * DRAIN_AT:
            return True
        return sum(len(layer.blocks) for layer in list(self.catalog.layers)) > MOST_BLOCKS

    def _room_is_short(self) -> bool:
        return self.room_bytes() < SHORT_BYTES

    def _write_out_step(self) -> float:
        try:
            self.log.write_out()
            self.log.prepare()
            written = self.log.appended_bytes + self.bypass.put_bytes
            if written - self._synced_bytes >= SYNC_BYTES:
                self._synced_bytes = written
                self.sync_blocking(self.log.sequence)
        except (OSError, Problem):
            return RETRY_S  # the sync that follows meets the same medium and reports it
        return REST_S

    def _drain_step(self) -> float:
        """Drain one layer when the log is long, when room is short, or when nothing was drained for a while."""
        idle = self.io.clock.monotonic() - self._last_drain > IDLE_DRAIN_S
        if self.relief.wants_drain and not self.read_only:
            return self._drain_asked()
        if self.read_only or not (self._log_is_long() or idle or (self.sweep_wanted and self._room_is_short())):
            return REST_S
        try:
            worked = self.drain_oldest()
            if not worked:
                self._free_log()
        except Problem as problem:
            self.drain_problem = problem
            return RETRY_S
        self.drain_problem = None
        if self.sweep_is_due():
            self.wake_sweeper()
        if worked and self._log_is_long():
            return 0.0
        self._last_drain = self.io.clock.monotonic()
        return REST_S

    def data_below(self, root: Root) -> int:
        """Data bytes below a root; walks its maps where no commit has counted them. Raises ``Corrupt``, ``OSError``."""
        known = self.catalog.counts.get(root.entry)
        if known is None:
            known = self.catalog.counts[root.entry] = DataCount(self.store).of(root)
        return known

    def count_data(self) -> None:
        """Count what no commit has: the disks of a pool that an earlier version wrote, or whose meta was rebuilt."""
        for disk in self.catalog.disks.values():
            with suppress(Problem, OSError):  # a damaged map is told where it is read
                self.data_below(disk.open.view.root)

    def sweep_is_due(self) -> bool:
        """Whether a sweep would be worth its work; the sweep knows."""
        return False

    def wake_sweeper(self) -> None:
        """Have a sweep soon; the sweep knows how."""

    # -- draining --------------------------------------------------------------------------------------------------

    def _drain_asked(self) -> float:
        ticket, disks = self.relief.begin_drain()
        try:
            self.drain(disks)
            self.drain_problem = None
        except Problem as problem:
            self.drain_problem = problem
        self.relief.drained = ticket
        self.on_room()  # or who waits is to be told that there is none
        return 0.0 if self.drain_problem is None else RETRY_S

    def drain(self, disk_ids: Collection[str] | None = None) -> dict[str, int]:
        """Drain everything written before the call, or what those disks have; for worker threads.

        Returns ``{"layers": n}``. Raises ``Corrupt`` where a page of the log is damaged, ``NoSpace``, ``Failed``.
        """
        self._check_writable()
        with self.catalog.admin, self.lock:
            sequence = self.append_pending()
            disks = [disk for disk in self.catalog.disks.values() if disk_ids is None or disk.id in disk_ids]
            for disk in disks:
                self.catalog.seal(disk, sequence)
            wanted = {layer for disk in disks for layer in _chain(disk.open)}
            todo = [
                layer
                for layer in self.catalog.layers
                if layer.seal_seq is not None and (disk_ids is None or layer in wanted)
            ]
        layers = 0
        while layer := self._bottom_of(todo):
            self._drain_layer(layer)
            layers += 1
        self._free_log()
        return {"layers": layers}

    def drain_oldest(self) -> bool:
        """Drain the layer that holds the oldest record of the log; False when there is none."""
        with self.catalog.admin:
            with self.lock:
                waiting = [layer for layer in self.catalog.layers if layer.first_seq is not None and not layer.damaged]
                if not waiting:
                    return False
                layer = min(waiting, key=lambda each: each.first_seq or 0)
                if layer.seal_seq is None:
                    sequence = self.append_pending()
                    self.catalog.seal(self.catalog.by_number[layer.number], sequence)
                while layer.base is not None:
                    layer = layer.base
            if layer.seal_seq is None:
                return False
        self._drain_layer(layer)
        return True

    def _bottom_of(self, todo: list[Layer]) -> Layer | None:
        with self.catalog.admin:
            live = [layer for layer in todo if layer in self.catalog.layers and layer.base is None]
            return min(live, key=lambda layer: layer.seal_seq or 0, default=None)

    def _drain_layer(self, layer: Layer) -> None:
        """Drain a sealed layer that stands on a root, and commit."""
        with self.maintenance:
            if layer.gone or layer.base is not None:
                return
            with self.catalog.admin:
                policy, tier = self.catalog.policy_of(layer), self.catalog.tier_of_layer(layer)
            writer = self.writers.of(tier)
            began, put_before = self.io.clock.monotonic(), writer.put_bytes
            try:
                drained = self.drainer.drain(layer, policy, writer)
                writer.sync()
                self.sync_groups()
                self._commit(layer, drained, writer)
            except OSError as refused:
                self.drainer.abandon()
                raise _drain_problem(refused, self.path) from refused
            except BaseException:
                self.drainer.abandon()
                raise
            self.drainer.committed()
            self.meters.drain_s.add(self.io.clock.monotonic() - began)
            self.meters.drained_pages += len(layer.pages)
            self.meters.drained_blocks += len(layer.blocks)
            self.meters.put_bytes += writer.put_bytes - put_before
        self.on_room()

    def _commit(self, layer: Layer, drained: Drained, writer: GroupWriter) -> None:
        catalog = self.catalog
        with catalog.admin:
            if layer.gone:
                self.drainer.abandon()
                return
            layers, snapshots = catalog.rebase(layer, drained.root)
            catalog.layers.pop(layer, None)
            catalog.counts[drained.root.entry] = self.data_below(layer.root) + drained.added_bytes
            try:
                with self.lock:
                    notes = catalog.notes(self.log.sequence)
                written = writer.commit(notes)
                with self.lock:  # between an append and its entry in a layer nobody knows that it is needed
                    needed = catalog.oldest_needed(self.log.sequence)
                with catalog.meta.transaction() as change:
                    catalog.write_all(change)
                    change.put("log_needed_from", needed)
                    for each in written:
                        change.put_group(each.row)
                    recorded = self.bypass.record(change)
            except BaseException:
                catalog.layers[layer] = None
                catalog.unrebase(layer, layers, snapshots)
                raise
            self.bypass.recorded(recorded)
            self.commits += 1
            self._adopt(written)
            with self.lock:
                layer.gone = True
                catalog.relink()
            self.log.trim(needed)

    def settle_groups(self) -> None:
        """Let meta know all groups as far as they reach; under ``maintenance``. Raises ``Problem``."""
        self.sync_groups()
        with self.catalog.admin, self.catalog.meta.transaction() as change:
            recorded = self.bypass.record(change)
        self.bypass.recorded(recorded)

    def _free_log(self) -> None:
        """Free what of the log no layer needs; where a disk was removed before its drain, no commit does so."""
        catalog = self.catalog
        with catalog.admin:
            with self.lock:
                needed = catalog.oldest_needed(self.log.sequence)
            if not self.log.could_trim(needed):
                return
            with catalog.meta.transaction() as change:
                change.put("log_needed_from", needed)
            self.log.trim(needed)
        self.on_room()

    def _adopt(self, written: list[Written]) -> None:
        """Let readers find what a commit wrote."""
        for each in written:
            self.store.rows[each.row.number] = each.row
            self.store.extend(each.row.number, each.first_slot, each.rows, each.aux)


def _chain(layer: Layer | None) -> Iterator[Layer]:
    """A layer and those under it."""
    while layer is not None:
        yield layer
        layer = layer.base


def _drain_problem(refused: OSError, path: str) -> Problem:
    if refused.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("pool.full", f"the drain of {path} has no room", cause=str(refused), remedy="free space there")
    return Failed("drain.failed", f"the drain of {path} failed", cause=str(refused), remedy="look at the disk's health")
