"""Rebuilding a lost or damaged meta from the groups, which describe themselves, and from the log.

Every index frame carries the roots of all disks and snapshots as they were at its commit; the youngest note of each
counts. Writes that were not drained come back from the log at the next opening. What only meta knew is gone: storages'
policies (all disks get one new storage), attachments, holds, snapshots younger than the last commit, and which disks
were removed since. The pool gets a new incarnation: nobody is to compare what it says now with what it said before.
"""

from __future__ import annotations

from uuid import UUID

from innkeeper.fabric.core import NUMBERS_AT_ONCE
from innkeeper.fabric.devices import HOME, Device, read_identity
from innkeeper.fabric.groups import FRAME_MAGIC, NO_FRAME, Frame, Note, check_header, parse_group_name, read_frame
from innkeeper.fabric.layout import PAGE
from innkeeper.fabric.meta import DiskRow, GroupRow, Meta, SnapshotRow
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.store import LIVE
from innkeeper.model.problems import Corrupt, Problem
from innkeeper.system.files import File, FileSystem, Io

SCAN_BYTES = 1 << 20
EPOCH_STEP = 1 << 20
"""Added to epochs nobody remembers: the log's records carry lower ones."""


def rebuild_if_lost(io: Io, path: str) -> dict[str, int] | None:
    """``rebuild_meta`` where ``meta.db`` is missing or damaged beside groups; ``None`` where it is of use."""
    identity = read_identity(io.files, path)
    if identity is None:
        return None
    devices = (Device(HOME, path), *identity[1])
    if not any(io.files.exists(device.groups) and io.files.listdir(device.groups) for device in devices):
        return None
    if io.files.exists(f"{path}/meta.db"):
        lock = io.files.lock(f"{path}/lock")
        try:
            meta = Meta(io.files, f"{path}/meta.db")
            whole = meta.get("pool") is not None
            meta.close()
        except Corrupt:
            whole = False
        finally:
            lock.close()
        if whole:
            return None
    return rebuild_meta(io, path)


def rebuild_meta(io: Io, path: str) -> dict[str, int]:
    """Write a new ``meta.db`` for the pool in ``path``; one that is there is moved to ``meta.lost``.

    Returns how many groups, disks and snapshots were found. Raises ``Conflict`` (``pool.locked``), ``Corrupt`` for a
    foreign group, ``OSError``.
    """
    files = io.files
    lock = files.lock(f"{path}/lock")
    try:
        identity = read_identity(files, path)
        if identity is None:
            raise Corrupt("pool.format", f"there is no {path}/pool.json", remedy="restore it from a backup")
        pool_id, others = identity
        groups: dict[int, GroupRow] = {}
        notes: dict[UUID, Note] = {}
        for device in (Device(HOME, path), *others):
            _gather_groups(files, device, pool_id, groups, notes)
        for old, new in (("meta.db", "meta.lost"), ("meta.db-wal", "meta.lost-wal")):
            if files.exists(f"{path}/{old}"):
                files.rename(f"{path}/{old}", f"{path}/{new}")
        files.sync_dir(path)
        return _write(io, path, pool_id, groups, notes)
    finally:
        lock.close()


def _gather_groups(
    files: FileSystem, device: Device, pool_id: UUID, groups: dict[int, GroupRow], notes: dict[UUID, Note]
) -> None:
    """The groups on a device, of each the youngest whole generation, and the notes in them."""
    for name in files.listdir(device.groups):
        place = parse_group_name(name)
        if place is None or (place[0] in groups and groups[place[0]].generation >= place[1]):
            continue
        number, generation = place
        file = files.open(f"{device.groups}/{name}")
        try:
            check_header(file.pread(PAGE, 0), pool_id, number, generation, file.path)
        except Problem:
            continue
        last, end = _last_frame(file, number, generation, notes)
        if last != NO_FRAME:
            groups[number] = GroupRow(number, generation, LIVE, end, last, device.id)


def _last_frame(file: File, number: int, generation: int, notes: dict[UUID, Note]) -> tuple[int, int]:
    """(offset, end) of the last frame of an unbroken chain from the start; gathers the notes on the way."""
    last, end, previous = NO_FRAME, 0, NO_FRAME
    for offset in _frame_places(file):
        try:
            frame = read_frame(file, offset, number, generation)
        except Problem:
            continue
        if frame is None or frame.previous != previous:
            continue
        _gather(frame, notes)
        last = previous = offset
        end = frame.end
    return last, end


def _frame_places(file: File) -> list[int]:
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


def _gather(frame: Frame, notes: dict[UUID, Note]) -> None:
    for note in frame.notes:
        known = notes.get(note.subject)
        if known is None or note.sequence >= known.sequence:
            notes[note.subject] = note


def _write(io: Io, path: str, pool_id: UUID, groups: dict[int, GroupRow], notes: dict[UUID, Note]) -> dict[str, int]:
    storage = str(UUID(bytes=io.random.token(16), version=4))
    disks = [note for note in notes.values() if note.subject == note.disk_id]
    snapshots = [note for note in notes.values() if note.subject != note.disk_id]
    meta = Meta(io.files, f"{path}/meta.db")
    try:
        with meta.transaction() as change:
            change.put("pool", str(pool_id))
            change.put("incarnation", str(UUID(bytes=io.random.token(16), version=4)))
            change.put("next_group", max(groups, default=0) + NUMBERS_AT_ONCE + 1)
            change.put("next_disk", max((note.number for note in disks), default=0) + NUMBERS_AT_ONCE)
            change.put("log_life", int(io.clock.now()))
            change.put("log_needed_from", min((note.sequence + 1 for note in disks), default=1))
            change.put_storage(storage, Policy().to_json())
            for note in disks:
                change.put_disk(
                    DiskRow(
                        str(note.subject), note.number, storage, note.size_bytes, note.sequence, note.root, note.levels,
                        0, note.sequence, EPOCH_STEP, 0, "",
                    )
                )  # fmt: skip
            for note in snapshots:
                change.put_snapshot(
                    SnapshotRow(
                        str(note.subject), str(note.disk_id), storage, note.size_bytes, note.root, note.levels, 0,
                        note.sequence, io.clock.now(),
                    )
                )  # fmt: skip
            for row in groups.values():
                change.put_group(row)
    finally:
        meta.close()
    return {"groups": len(groups), "disks": len(disks), "snapshots": len(snapshots)}
