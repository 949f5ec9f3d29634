"""Sweeping: what nothing stands on is found by marking from all roots, and its space is taken back.

The reclaim protocol: under the maintenance lock (no drain is under way) mark from every root and choose groups; they
are ``closing`` from then on, so that deduplication finds nothing in them, and what was dead at the mark stays dead.
Then group by group, the lock released in between: a group without live items goes; one that is mostly dead is written
anew as generation N + 1 (numbers of slots stay), synced, its row swapped in meta, and generation N removed; readers
that still have it open finish, others look the row up again. Nothing that a held snapshot reaches is moved.
"""

from __future__ import annotations

import errno
from typing import Any

import numpy as np

from innkeeper.fabric.groups import (
    HASH_BYTES,
    ITEM_EXTENT,
    ITEM_MAP,
    MAP_AUX,
    NO_FRAME,
    RAW_EXTENT_AUX,
    ROW_BYTES,
    SlotTable,
    encode_frame,
    encode_header,
    group_path,
    pack_row,
)
from innkeeper.fabric.layout import (
    CODEC_RAW,
    PAGE,
    SLOT_BITS,
    corrupt,
    crc32c,
)
from innkeeper.fabric.marks import Marks, Slots
from innkeeper.fabric.store import LIVE, GroupRow
from innkeeper.fabric.upkeep import PoolUpkeep
from innkeeper.model.problems import Failed, NoSpace, Problem
from innkeeper.system.files import Buffer, write_all

CLOSING = "closing"
COMPACT_BELOW = 0.6
"""Share of live bytes below which a group is written anew."""
CHUNK_BYTES = 1 << 20
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
        generation = row.generation + 1
        path = group_path(self.store.directory, row.number, generation)
        file = self.io.files.open(path, create=True)
        file.truncate(0)
        buffers: list[Buffer] = [encode_header(self.pool_id, row.number, generation)]
        offset, flushed = PAGE, 0
        rows, aux = bytearray(), bytearray()
        for slot, keep in enumerate(live.tolist()):
            if not keep:
                rows += bytes(ROW_BYTES)
                continue
            old = table.row(slot)
            data = table.file.pread(old.stored, old.offset)
            if len(data) != old.stored or crc32c(data) != old.crc:
                raise corrupt(table.file.path, old.offset, "stored bytes fail their checksum")
            if old.codec == CODEC_RAW and (rest := offset % PAGE):
                buffers.append(bytes(PAGE - rest))
                offset += PAGE - rest
            rows += pack_row(offset, old.stored, old.item, old.codec, old.crc, len(aux))
            aux += _aux_of(table, slot)
            buffers.append(data)
            offset += old.stored
            if offset - flushed >= CHUNK_BYTES:
                flushed += write_all(file, buffers, flushed)
                buffers.clear()
        if rest := offset % PAGE:
            buffers.append(bytes(PAGE - rest))
            offset += PAGE - rest
        frame = encode_frame(
            row.number,
            generation,
            previous=NO_FRAME,
            first_slot=0,
            aux_base=0,
            rows=bytes(rows),
            aux=bytes(aux),
            notes=[],
        )
        buffers.append(frame)
        write_all(file, buffers, flushed)
        file.fdatasync()
        self.io.files.sync_dir(self.store.directory)
        size = offset + len(frame)
        with self.catalog.admin, self.catalog.meta.transaction() as change:
            change.put_group(row.number, generation, LIVE, size, offset)
        old_path = self.store.path(row.number)
        self.store.rows[row.number] = GroupRow(row.number, generation, LIVE, size, offset)
        self.store.forget(row.number)
        self._forget_hashes(table, live)
        self.io.files.unlink(old_path)
        return size

    def _forget_hashes(self, table: SlotTable, live: Slots) -> None:
        gone = []
        for slot in np.flatnonzero(~live).tolist():
            digest = table.extent_hash(slot)
            if digest is not None:
                gone.append((digest, table.number << SLOT_BITS | slot))
        if gone and self._fingerprints is not None:
            self._fingerprints.remove(gone)


def _aux_of(table: SlotTable, slot: int) -> bytes:
    row = table.row(slot)
    length = 0
    if row.item == ITEM_EXTENT:
        length = RAW_EXTENT_AUX.size if row.codec == CODEC_RAW else HASH_BYTES
    elif row.item == ITEM_MAP:
        length = MAP_AUX.size
    return bytes(table.aux[row.aux : row.aux + length])
