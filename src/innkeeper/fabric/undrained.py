"""What the log says of disks and snapshots when meta is lost: where snapshots sealed it, and disks that it alone knows.

Pure: from batches and the roots that were found to rows for a new meta.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from uuid import UUID, uuid5

from innkeeper.fabric.groups import LACKS_ORIGIN, Note
from innkeeper.fabric.layout import EMPTY_ROOT, HOLE, PAGE, PAGES_PER_BLOCK
from innkeeper.fabric.logformat import DATA, MAP, RESIZE, SNAP
from innkeeper.fabric.meta import LayerRow
from innkeeper.fabric.replay import Found


@dataclass(slots=True)
class Head:
    """A disk or snapshot as it stands: a root, or ``layer`` over one."""

    note: Note
    layer: int = 0
    from_seq: int = 0
    size_bytes: int = 0
    doubt: str = ""
    """What of it may be missing."""


@dataclass(slots=True)
class Reconstruction:
    """Rows of a new meta, and the first sequence that the log has."""

    disks: list[Head] = field(default_factory=list)
    snapshots: list[Head] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    first_sequence: int = 0
    nameless: list[str] = field(default_factory=list)
    """Disks whose ids nobody remembers: they got new ones."""


def reconstruct(notes: Iterable[Note], batches: list[Found], pool_id: UUID) -> Reconstruction:
    """Put the undrained layers of ``batches`` over the roots of ``notes``."""
    result = Reconstruction(first_sequence=batches[0].batch.sequence if batches else 0)
    known = list(notes)
    disks = [note for note in known if note.subject == note.disk_id or note.levels & LACKS_ORIGIN]
    disks += _nameless(disks, batches, pool_id, result)
    layer_of = _layers(disks, batches, result)
    for note in disks:
        own = [row for row in result.layers if row.number == note.number]
        head = Head(note, own[-1].id if own else 0, own[-1].seal_seq if own else note.sequence, note.size_bytes)
        if not own and note.levels & LACKS_ORIGIN:
            head.layer = layer_of.get(note.disk_id, 0)
            if not head.layer:
                head.doubt = "what its origin had not drained when it was cloned is missing"
        result.disks.append(head)
    sealed = {row.id: row for row in result.layers}
    for note in known:
        if note.subject == note.disk_id or note.levels & LACKS_ORIGIN:
            continue
        layer = layer_of.pop(note.subject, 0)
        result.snapshots.append(Head(note, layer, sealed[layer].seal_seq if layer else note.sequence, note.size_bytes))
    by_number = {note.number: note for note in disks}
    for snapshot_id, layer in layer_of.items():
        disk = by_number[sealed[layer].number]
        note = Note(snapshot_id, disk.subject, disk.number, disk.levels, disk.size_bytes, disk.root, disk.sequence)
        result.snapshots.append(Head(note, layer, sealed[layer].seal_seq, disk.size_bytes))
    return result


def _layers(disks: list[Note], batches: list[Found], result: Reconstruction) -> dict[UUID, int]:
    """A layer for each snapshot that sealed what is not drained; layers' numbers by snapshot."""
    by_number = {note.number: note for note in disks}
    last: dict[int, LayerRow] = {}
    found: dict[UUID, int] = {}
    origins: list[tuple[LayerRow, UUID]] = []
    for each in batches:
        sequence = each.batch.sequence
        for record in each.batch.records:
            disk = by_number.get(record.disk)
            if record.kind != SNAP or disk is None or record.snapshot is None or sequence <= disk.sequence:
                continue
            below = last.get(record.disk)
            row = LayerRow(
                id=len(result.layers) + 1,
                number=record.disk,
                base=below.id if below else 0,
                root=disk.root,
                levels=disk.levels & ~LACKS_ORIGIN,
                from_seq=below.seal_seq if below else disk.sequence,
                seal_seq=sequence,
            )
            if below is None and disk.levels & LACKS_ORIGIN:
                origins.append((row, disk.disk_id))
            result.layers.append(row)
            last[record.disk] = row
            found[record.snapshot] = row.id
    for row, origin in origins:
        at = result.layers.index(row)
        result.layers[at] = LayerRow(
            row.id, row.number, found.get(origin, 0), row.root, row.levels, row.from_seq, row.seal_seq
        )
    return found


def _nameless(disks: list[Note], batches: list[Found], pool_id: UUID, result: Reconstruction) -> list[Note]:
    """Disks that only the log knows, by their numbers."""
    known = {note.number for note in disks}
    ends: dict[int, int] = {}
    for each in batches:
        for record in each.batch.records:
            if record.disk in known or record.kind not in (DATA, MAP, RESIZE):
                continue
            pages = len(record.entries) * PAGES_PER_BLOCK if record.kind == MAP else record.amount
            end = record.amount if record.kind == RESIZE else (record.page + pages) * PAGE
            ends[record.disk] = max(ends.get(record.disk, 0), end)
    made = []
    for number, end in sorted(ends.items()):
        disk_id = uuid5(pool_id, f"disk {number}")
        made.append(Note(disk_id, disk_id, number, EMPTY_ROOT.levels, end, HOLE, 0))
        result.nameless.append(str(disk_id))
    return made
