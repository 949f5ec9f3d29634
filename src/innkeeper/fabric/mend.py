"""Mending a pool that is open: what is damaged is put right, or made an error of its own, so that the rest is of use.

A log with a hole ends before the hole, for all disks: they go on as after a power cut at that instant. Damaged pages of
the log are drained under the checksums that they no longer have, so that they read as errors. A group whose index is
damaged is written anew from what can be read of it. A damaged extent is put right from a sound one with the same
content. What is replaced and not known to be useless is set aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from innkeeper.fabric.aside import copy_aside, set_aside
from innkeeper.fabric.groups import (
    NO_FRAME,
    ROW_BYTES,
    Note,
    SlotTable,
    read_frame,
)
from innkeeper.fabric.layout import KIND_EXTENT, PAGES_PER_BLOCK, SLOTS_PER_GROUP, pack_entry
from innkeeper.fabric.marks import Marks, present
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.rebuild import frame_places
from innkeeper.fabric.replay import Replay
from innkeeper.fabric.rewrite import write_generation
from innkeeper.fabric.space import Limits
from innkeeper.fabric.verdicts import Findings
from innkeeper.model.problems import Problem
from innkeeper.system.files import File, Io


@dataclass(slots=True)
class Step:
    """Something that was done: ``what`` and ``why`` in words, and files that were set aside for it."""

    what: str
    why: str
    aside: list[str] = field(default_factory=list)


class MendingPool(Pool):
    """A pool whose log ends where it is damaged."""

    mending = True
    steps: tuple[Step, ...] = ()

    @classmethod
    def open(cls, io: Io, path: str, *, limits: Limits | None = None, background: bool = False) -> MendingPool:
        """As ``Pool.open``, without background work."""
        del background
        pool = cls(io, path.rstrip("/"), limits or Limits())
        pool.count_data()
        return pool

    def keep_cut_log(self, replay: Replay) -> None:
        cut = replay.cut_from or 0
        kept = [
            copy_aside(self.io.files, segment.file.path)
            for segment in replay.segments
            if segment.generation and segment.last_sequence >= cut
        ]
        names = ", ".join(sorted(self.catalog.disks)) or "none"
        self.steps = (
            Step(
                f"the log ends before batch {cut}: these disks go on as after a power cut at that instant, later writes"
                f" are lost: {names}",
                f"batches from {cut} to {replay.synced_upto} were synced and cannot be read in {self.path}/log",
                kept,
            ),
        )


def mend(pool: MendingPool, findings: Findings) -> list[Step]:
    """Do what can be done; for worker threads. What it did, the log's end included."""
    steps = list(pool.steps)
    steps += _drain_damaged(pool, findings)
    steps += _salvage_groups(pool, findings)
    steps += _take_equal(pool, findings)
    return steps


def _drain_damaged(pool: MendingPool, findings: Findings) -> list[Step]:
    bad = {where for pages in findings.pages.values() for where in pages.values()}
    damaged = [layer for layer in pool.catalog.layers if layer.damaged]
    if not bad and not damaged:
        return []
    kept = [copy_aside(pool.io.files, path) for path in sorted({where.partition(" at byte ")[0] for where in bad})]
    for layer in damaged:
        layer.damaged = None
    what = f"{len(bad)} damaged pages of the log read as errors from now on; all others are drained"
    steps = [Step(what, "; ".join(sorted(bad)[:5]), kept)]
    pool.drainer.keeps_damage = True
    try:
        for disk_id in sorted(pool.catalog.disks):
            try:
                pool.drain([disk_id])
            except Problem as refused:
                steps.append(Step(f"the undrained writes of disk {disk_id} stay in the log", refused.detail))
    finally:
        pool.drainer.keeps_damage = False
    return steps


def _take_equal(pool: MendingPool, findings: Findings) -> list[Step]:
    steps = []
    for (group, slot), (other, other_slot) in findings.equal.items():
        if pool.devices.all[pool.store.rows[group].device].remote:
            continue  # a scrub writes it anew
        try:
            data = pool.store.extent_pages(pack_entry(KIND_EXTENT, other, other_slot), 0, PAGES_PER_BLOCK)
            where = findings.slots[group][slot][0]
            if pool.put_right(group, slot, data):
                steps.append(Step(f"put right from the same content in group {other}", where))
        except Problem:
            continue  # it stays damaged, and is told so
    return steps


def _salvage_groups(pool: MendingPool, findings: Findings) -> list[Step]:
    """Groups in directories; what an object store has is its own to keep."""
    steps, gone = [], []
    for number, why in findings.groups.items():
        row = pool.store.rows[number]
        if pool.devices.all[row.device].remote:
            continue
        if pool.io.files.exists(pool.devices.shelf(row.device).name(row)):
            aside = _salvage(pool, row)
            steps.append(Step(f"group {number} is written anew from what can be read of it", why, [aside]))
        else:
            gone.append(number)
    return steps + _forget_lost(pool, gone)


def _forget_lost(pool: MendingPool, numbers: list[int]) -> list[Step]:
    """Groups whose files are gone, and that nothing needs, are no part of the pool any more."""
    if not numbers:
        return []
    try:
        needed = set(Marks.of_roots(pool.store, pool.catalog.roots()).live)
    except (Problem, OSError):
        return []  # what cannot be walked may need them
    steps = []
    for number in numbers:
        if number in needed:
            continue
        row = pool.store.rows[number]
        path = pool.devices.shelf(row.device).name(row)
        with pool.catalog.admin, pool.catalog.meta.transaction() as change:
            change.run("DELETE FROM groups WHERE number=?", (number,))
        del pool.store.rows[number]
        pool.store.forget(number)
        steps.append(Step(f"group {number} is forgotten: nothing needs it", f"{path} is not there"))
    return steps


def _salvage(pool: MendingPool, row: GroupRow) -> str:
    """Write the group's next generation from the frames that can be read; where the old one was set aside."""
    shelf = pool.devices.shelf(row.device)
    table, notes = read_what_is_there(shelf.open(row), row)
    draft = shelf.draft(row.number, row.generation + 1)
    try:
        fresh = draft.finish(write_generation(draft.file, pool.pool_id, row, table, present(table), notes=notes))
        draft.publish()
        with pool.catalog.admin, pool.catalog.meta.transaction() as change:
            change.put_group(fresh)
    except BaseException:
        draft.abandon()
        raise
    pool.store.rows[row.number] = fresh
    pool.store.forget(row.number)
    return set_aside(pool.io.files, shelf.name(row))


def read_what_is_there(file: File, row: GroupRow) -> tuple[SlotTable, list[Note]]:
    """A slot table of the frames that can be read; slots of others hold nothing."""
    table = SlotTable(row.number, row.generation, file)
    notes: list[Note] = []
    previous = NO_FRAME
    for offset in frame_places(file):
        try:
            frame = read_frame(file, offset, row.number, row.generation)
        except Problem:
            continue
        first, base = frame.first_slot * ROW_BYTES if frame else 0, frame.aux_base if frame else 0
        if frame is None or frame.previous < previous or first < len(table.rows) or base < len(table.aux):
            continue
        if offset > row.last_frame or first > SLOTS_PER_GROUP * ROW_BYTES:
            break
        table.rows += bytes(first - len(table.rows)) + frame.rows
        table.aux += bytes(base - len(table.aux)) + frame.aux
        notes += frame.notes
        previous = offset
    return table, notes
