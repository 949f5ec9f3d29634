"""What a pool does for a disk that moves to another pool, or comes from one; ``moving`` says in which order.

Everything is durable when a call returns, and may be repeated. For worker threads. Raises throughout: ``NotFound``,
``Conflict``, and what ``Meta.transaction`` and ``OpLog.append`` raise.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

from innkeeper.fabric.catalog import ARRIVING, LEAVING, Attachment, Disk, Move, Snapshot
from innkeeper.fabric.layout import PAGE, PAGES_PER_BLOCK, Root, crc32c
from innkeeper.fabric.logformat import DATA, ZERO, Record
from innkeeper.fabric.oplog import Staged
from innkeeper.fabric.snapshots import PoolSnapshots
from innkeeper.model.problems import Conflict, Unavailable

BATCH_BLOCKS = 16
"""Blocks in one append, so that guests' own writes get in between."""
Piece = tuple[int, bytes | None]
"""A block's number and its bytes; None: it reads as zeros."""


class PoolMoves(PoolSnapshots):
    """Both sides of a move."""

    # -- the pool that the disk comes to ---------------------------------------------------------------------------

    def arrive_begin(self, disk: Disk, storage_id: str, from_pool: str) -> None:
        """Make an empty disk with the id and the settings of ``disk``, which nobody sees before ``arrive_finish``."""
        with self.catalog.admin:
            if self.catalog.arrives(disk.id):
                return
            if disk.id in self.catalog.disks:
                raise Conflict("disk.exists", f"disk {disk.id} is in the pool in {self.path} already")
            storage = self.catalog.storage(storage_id)
            move = Move(disk.id, ARRIVING, from_pool)
            self._add_disk(disk.id, storage.id, disk.size_bytes, None, Root(0, 1), disk.origin, move)
            try:
                self.disk_set(disk.id, **asdict(disk.settings))
            except BaseException:
                self.arrive_cancel(disk.id)
                raise

    def arrive_note(self, disk_id: str, *, base: str | None = None, goal: str | None = None) -> None:
        """Note what the disk holds, and what is copied to it next."""
        with self.catalog.admin:
            before = self.catalog.moves[disk_id]
            move = replace(
                before, base=before.base if base is None else base, goal=before.goal if goal is None else goal
            )
            with self.catalog.meta.transaction() as change:
                change.put_move(disk_id, move.role, move.pool, move.base, move.goal)
            self.catalog.moves[disk_id] = move

    def arrive_write(self, disk_id: str, pieces: list[Piece], *, may_drain: bool = True) -> None:
        """Put blocks into the log, in the kernel when this returns; ``sync_blocking`` makes them safe.

        Waits for the drain where the log has no room. Raises ``NoSpace``, and ``Unavailable`` (``move.busy``) where
        there is no room and it may not drain, or a drain made none.
        """
        disk = self.catalog.disk(disk_id)
        for at in range(0, len(pieces), BATCH_BLOCKS):
            batch = pieces[at : at + BATCH_BLOCKS]
            size = sum(len(data or b"") + PAGE for _, data in batch)
            self._make_room(disk, size, may_drain=may_drain)
            with self.lock:
                self.admit(disk, size)
                self.append_pending(*[(disk.open, _staged(disk, *piece)) for piece in batch])

    def _make_room(self, disk: Disk, size: int, *, may_drain: bool) -> None:
        for drained in (None, {disk.id}, set(self.catalog.disks)):
            if drained is not None and may_drain:
                self.drain(drained)
            if self.log_room_of(disk) > size and self.has_room(disk, size):
                return
        if may_drain and self.log_room_of(disk) > size:
            return  # whoever admits it says what is missing
        raise Unavailable("move.busy", f"the log of the pool in {self.path} has no room", remedy="try again")

    def arrive_snapshot(self, disk_id: str, snapshot: Snapshot, parent: str) -> None:
        """Take the snapshot that the disk now holds the content of, as ``snapshot`` was taken where it comes from."""
        with self.catalog.admin:
            if snapshot.id in self.catalog.snapshots:
                return
            disk = self.catalog.disk(disk_id)
            self._check_writable()
            with self.lock:
                seal = self.snapshot_seal({snapshot.id: disk})
            before, disk.parent = disk.parent, parent
            try:
                self.snapshot_keep({snapshot.id: disk}, seal._replace(at=snapshot.created_at))
            except BaseException:
                disk.parent = before
                raise

    def arrive_finish(self, disk: Disk, parent: str, attachments: Iterable[Attachment]) -> None:
        """The disk here is the one from now on, with those attachments: one transaction, which decides the move."""
        catalog = self.catalog
        with catalog.admin:
            here = catalog.disk(disk.id)
            before = here.epoch, here.parent, here.settings
            here.epoch, here.parent, here.settings = disk.epoch, parent, disk.settings
            taken = [replace(each) for each in attachments]
            try:
                with catalog.meta.transaction() as change:
                    catalog.write_all(change)
                    for each in taken:
                        change.run(
                            "INSERT INTO attachments VALUES (?,?,?,?,?,?)",
                            (each.id, each.disk_id, each.snapshot_id, each.role, each.uid, each.epoch),
                        )
                    change.run("DELETE FROM moves WHERE disk_id=?", (disk.id,))
            except BaseException:
                here.epoch, here.parent, here.settings = before
                raise
            del catalog.moves[disk.id]
            catalog.attachments.update({each.id: each for each in taken})
        self._policies_changed()

    def arrive_cancel(self, disk_id: str) -> None:
        """Remove what has arrived of a disk; one that is not arriving stays."""
        with self.catalog.admin:
            if self.catalog.arrives(disk_id):
                self._forget_disk(disk_id)

    # -- the pool that the disk comes from -------------------------------------------------------------------------

    def leave_note(self, disk_id: str, to_pool: str) -> None:
        """From now on ``to_pool`` decides whether the disk here is still the one."""
        with self.catalog.admin:
            move = Move(disk_id, LEAVING, to_pool)
            with self.catalog.meta.transaction() as change:
                change.put_move(disk_id, move.role, move.pool, move.base, move.goal)
            self.catalog.moves[disk_id] = move

    def leave_forget(self, disk_id: str) -> None:
        """The move did not come about: the disk here is the one."""
        with self.catalog.admin:
            if disk_id in self.catalog.moves:
                with self.catalog.meta.transaction() as change:
                    change.run("DELETE FROM moves WHERE disk_id=?", (disk_id,))
                del self.catalog.moves[disk_id]

    def leave_finish(self, disk_id: str) -> None:
        """The move has come about: what is here of the disk, its snapshots and attachments goes."""
        with self.catalog.admin:
            self._forget_disk(disk_id)

    def _forget_disk(self, disk_id: str) -> None:
        catalog = self.catalog
        disk = catalog.disks.get(disk_id)
        snapshots = [each.id for each in catalog.snapshots.values() if each.disk_id == disk_id]
        attachments = [each for each in catalog.attachments.values() if each.disk_id == disk_id]
        with catalog.meta.transaction() as change:
            for table, column in (("disks", "id"), ("snapshots", "disk_id"), ("attachments", "disk_id")):
                change.run(f"DELETE FROM {table} WHERE {column}=?", (disk_id,))
            change.run("DELETE FROM moves WHERE disk_id=?", (disk_id,))
        for attachment in attachments:
            del catalog.attachments[attachment.id]
            attachment.epoch = -1
        for snapshot_id in snapshots:
            del catalog.snapshots[snapshot_id]
        if disk is not None:
            del catalog.disks[disk_id]
            del catalog.by_number[disk.number]
        catalog.moves.pop(disk_id, None)
        self._collect()

    def move_ls(self) -> list[dict[str, Any]]:
        """Disks that are arriving or leaving."""
        with self.catalog.admin:
            return [asdict(move) for move in self.catalog.moves.values()]


def _staged(disk: Disk, block: int, data: bytes | None) -> Staged:
    """The record of a block, padded to whole pages at the disk's end."""
    page = block * PAGES_PER_BLOCK
    if data is None or not data.strip(b"\0"):
        return Staged(Record(disk.number, disk.epoch, ZERO, page, PAGES_PER_BLOCK))
    data = data.ljust(-(-len(data) // PAGE) * PAGE, b"\0")
    crcs = [crc32c(data[at : at + PAGE]) for at in range(0, len(data), PAGE)]
    return Staged(Record(disk.number, disk.epoch, DATA, page, len(crcs), crcs), (data,))
