"""Rebuilding a lost or damaged meta from the groups, which describe themselves, and from the log.

Every index frame carries the roots of all disks and snapshots as they were at its commit; the youngest note of each
counts. Writes that were not drained come back from the log at the next opening. Snapshots that were not drained are
found in the log, and so are disks that no commit has met, but for their ids (``undrained``). What only meta knew is
gone: storages' policies (all disks get one new storage), attachments, holds, reverts since the last commit, and which
disks were removed since. The pool gets a new incarnation: nobody is to compare what it says now with what it said
before.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from innkeeper.fabric.aside import set_aside
from innkeeper.fabric.core import GENERATION_SHIFT, NUMBERS_AT_ONCE
from innkeeper.fabric.devices import HOME, Device, Devices, open_shelf, read_identity
from innkeeper.fabric.groups import (
    FRAME_MAGIC,
    LACKS_ORIGIN,
    NO_FRAME,
    Frame,
    Note,
    check_header,
    has_header,
    read_frame,
)
from innkeeper.fabric.layers import Layer
from innkeeper.fabric.layout import PAGE
from innkeeper.fabric.mapped import MappedGroups
from innkeeper.fabric.meta import DiskRow, GroupRow, Meta, SnapshotRow
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.replay import Replay, read_log
from innkeeper.fabric.shelves import DirectoryShelf, Shelf
from innkeeper.fabric.store import LIVE
from innkeeper.fabric.undrained import Head, reconstruct
from innkeeper.model.problems import Corrupt, Problem
from innkeeper.system.files import File, Io

SCAN_BYTES = 1 << 20
Notes = dict[UUID, Note]
EPOCH_STEP = 1 << 20
"""Added to epochs nobody remembers: the log's records carry lower ones."""


def rebuild_meta(io: Io, path: str) -> dict[str, Any]:
    """Write a new ``meta.db`` for the pool in ``path``; one that is there is set aside.

    Returns how many groups, disks and snapshots were found, which got new ids, and what may be missing of which. Raises
    ``Conflict`` (``pool.locked``), ``Corrupt``, ``OSError``.
    """
    files = io.files
    lock = files.lock(f"{path}/lock")
    try:
        identity = read_identity(files, path)
        if identity is None:
            raise Corrupt("pool.format", f"there is no {path}/pool.json", remedy="restore it from a backup")
        pool_id, others = identity
        groups: dict[int, GroupRow] = {}
        notes: Notes = {}
        _gather_groups(DirectoryShelf(files, Device(HOME, path).groups), HOME, pool_id, groups, notes)
        for device in others:
            shelf = open_shelf(io, path, pool_id, device) if device.remote else DirectoryShelf(files, device.groups)
            _gather_groups(shelf, device.id, pool_id, groups, notes)
        for each in ("meta.db", "meta.db-wal", "meta.db-journal"):
            if files.exists(f"{path}/{each}"):
                set_aside(files, f"{path}/{each}")
        files.sync_dir(path)
        devices = Devices(io, path, pool_id, others)
        try:
            return _write(io, path, pool_id, devices, groups, notes)
        finally:
            devices.close()
    finally:
        lock.close()


def _gather_groups(shelf: Shelf, device_id: str, pool_id: UUID, groups: dict[int, GroupRow], notes: Notes) -> None:
    """The groups on a device, of each the youngest whole generation, and the notes in them. Raises ``OSError``."""
    for found in sorted(shelf.found()):
        known = groups.get(found.number)
        if known is not None and known.generation >= found.generation:
            continue
        row = GroupRow(found.number, found.generation, LIVE, found.size_bytes, 0, device_id, nonce=found.nonce)
        file = shelf.open(row, fresh=True)
        page = file.pread(PAGE, 0)
        if has_header(page):  # where it has none that can be read, its frames say whose it is
            try:
                check_header(page, pool_id, found.number, found.generation, file.path)
            except Problem:
                continue
        row.last_frame, row.size_bytes = _last_frame(file, found.number, found.generation, notes)
        if row.last_frame != NO_FRAME:
            groups[found.number] = row


def _last_frame(file: File, number: int, generation: int, notes: Notes) -> tuple[int, int]:
    """(offset, end) of the last frame of a chain from the start; gathers the notes on the way. Damaged ones may be
    missing: what they index is lost, not what stands behind."""
    last, end, previous = NO_FRAME, 0, NO_FRAME
    for offset in frame_places(file):
        try:
            frame = read_frame(file, offset, number, generation)
        except Problem:
            continue
        if frame is None or frame.previous < previous:
            continue
        _gather(frame, notes)
        last = previous = offset
        end = frame.end
    return last, end


def frame_places(file: File) -> list[int]:
    """Where index frames may begin, in order."""
    places = []
    size = file.size()
    for start in range(0, size, SCAN_BYTES):
        chunk = file.pread(SCAN_BYTES, start)
        places += [
            start + at
            for at in range(0, len(chunk), PAGE)
            if chunk[at : at + len(FRAME_MAGIC)] == FRAME_MAGIC and start + at
        ]
    return places


def _gather(frame: Frame, notes: Notes) -> None:
    for note in frame.notes:
        known = notes.get(note.subject)
        if known is None or note.sequence >= known.sequence:
            notes[note.subject] = note


def _write(
    io: Io, path: str, pool_id: UUID, devices: Devices, groups: dict[int, GroupRow], notes: Notes
) -> dict[str, Any]:
    storage = str(UUID(bytes=io.random.token(16), version=4))
    replay = _read_log(io, path, pool_id, devices, groups, notes)
    found = reconstruct(notes.values(), replay.batches, pool_id)
    disks, snapshots = found.disks, found.snapshots
    life = max((segment.generation >> GENERATION_SHIFT for segment in replay.segments), default=0)
    last = max((each.note.sequence for each in (*disks, *snapshots)), default=0)
    needed = min((disk.note.sequence + 1 for disk in disks), default=1)
    meta = Meta(io.files, f"{path}/meta.db")
    try:
        with meta.transaction() as change:
            change.put("pool", str(pool_id))
            change.put("incarnation", str(UUID(bytes=io.random.token(16), version=4)))
            change.put("next_group", max(groups, default=0) + NUMBERS_AT_ONCE + 1)
            change.put("next_disk", max((each.note.number for each in disks), default=0) + NUMBERS_AT_ONCE)
            change.put("next_layer", len(found.layers) + 1)
            change.put("log_life", max(life, int(io.clock.now())))
            change.put("log_needed_from", max(found.first_sequence, needed) if found.first_sequence else last + 1)
            change.put_storage(storage, Policy().to_json())
            for disk in disks:
                change.put_disk(_disk_row(disk, storage, snapshots))
            for snapshot in snapshots:
                change.put_snapshot(_snapshot_row(snapshot, storage, snapshots, io.clock.now()))
            for layer in found.layers:
                change.put_layer(layer)
            for row in groups.values():
                change.put_group(row)
    finally:
        meta.close()
    return {
        "groups": len(groups),
        "disks": len(disks),
        "snapshots": len(snapshots),
        "nameless": found.nameless,
        "doubts": {str(each.note.subject): each.doubt for each in (*disks, *snapshots) if each.doubt},
    }


def _read_log(
    io: Io, path: str, pool_id: UUID, devices: Devices, groups: dict[int, GroupRow], notes: dict[UUID, Note]
) -> Replay:
    """The log as far as it goes on without a hole; what the roots have of it already is not looked at."""
    drained = {note.number: note.sequence for note in notes.values() if note.subject == note.disk_id}
    needed = Layer(0, 0, None)

    def layer_of(number: int, sequence: int) -> Layer | None:
        return needed if sequence > drained.get(number, 0) else None

    mapped = MappedGroups(io.files, devices, pool_id, groups, layer_of)
    return read_log(io.files, f"{path}/log", pool_id, mapped, cut=True)


def _disk_row(disk: Head, storage: str, snapshots: list[Head]) -> DiskRow:
    note = disk.note
    return DiskRow(
        id=str(note.subject),
        number=note.number,
        storage_id=storage,
        size_bytes=note.size_bytes,
        size_seq=note.sequence,
        root=note.root,
        levels=note.levels & ~LACKS_ORIGIN,
        layer=disk.layer,
        from_seq=disk.from_seq,
        epoch=EPOCH_STEP,
        lost=0,
        origin=str(note.disk_id) if note.levels & LACKS_ORIGIN else "",
        parent=_before(note, snapshots),
    )


def _snapshot_row(snapshot: Head, storage: str, snapshots: list[Head], now: float) -> SnapshotRow:
    note = snapshot.note
    return SnapshotRow(
        str(note.subject), str(note.disk_id), storage, snapshot.size_bytes, note.root, note.levels & ~LACKS_ORIGIN,
        snapshot.layer, snapshot.from_seq, now, _before(note, snapshots),
    )  # fmt: skip


def _before(note: Note, heads: list[Head]) -> str:
    """The disk's snapshot that was taken last before; whether it was reverted since is not known any more."""
    snapshots = [each.note._replace(sequence=each.from_seq) for each in heads]
    own = note.disk_id if note.subject == note.disk_id or not note.levels & LACKS_ORIGIN else note.subject
    older = [each for each in snapshots if each.disk_id == own and each.subject != note.subject]
    if note.subject != own:
        now = next(each.sequence for each in snapshots if each.subject == note.subject)
        older = [each for each in older if each.sequence < now]
    return str(max(older, key=lambda each: each.sequence).subject) if older else ""
