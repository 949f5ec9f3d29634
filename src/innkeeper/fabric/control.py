"""Control operations on disks, snapshots, attachments and holds.

All are for worker threads, are durable when they return, and have the same effect when repeated with the same ids.
Raises throughout: ``NotFound``, ``Conflict``, ``Invalid``, and what ``Meta.transaction`` and ``OpLog.append`` raise.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

from innkeeper.fabric.catalog import READER, WRITER, Attachment, Disk, Move, Snapshot
from innkeeper.fabric.layers import Layer
from innkeeper.fabric.layout import MAX_DISK_BYTES, PAGE, SECTOR, Root, crc32c
from innkeeper.fabric.logformat import DATA, RESIZE, SNAP, Record
from innkeeper.fabric.oplog import Staged
from innkeeper.fabric.policies import PoolPolicies, check_id
from innkeeper.fabric.policy import DiskSettings
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import Conflict, Corrupt, Failed, Invalid


class Seal(NamedTuple):
    """The instant of a snapshot: its sequence in the log, its time, and the layer with each disk's newest writes."""

    sequence: int
    at: float
    tops: dict[str, Layer | None]


class PoolControl(PoolPolicies):
    """The pool's control operations; ids are UUIDs as strings, chosen by the caller."""

    sweep_wanted = False
    """Something was removed since the last sweep."""
    removals = 0
    """Counts removals and ends of holds: those who were refused may hope again."""

    # -- disks -----------------------------------------------------------------------------------------------------

    def disk_create(self, disk_id: str, size_bytes: int, storage_id: str, **settings: Any) -> dict[str, Any]:
        """Make an empty disk; the size is any multiple of 512 up to 64 TiB. ``settings``: as ``DiskSettings``.

        Raises ``NoSpace`` (``pool.promised``) where a thick disk has no room.
        """
        check_id("disk", disk_id)
        _check_size(size_bytes)
        with self.catalog.admin:
            known = self.catalog.disks.get(disk_id)
            if known is not None:
                if (known.size_bytes, known.storage_id, known.origin) != (size_bytes, storage_id, ""):
                    detail = f"disk {disk_id} exists with another size, storage or origin"
                    raise Conflict("disk.exists", detail, remedy="give the new disk another id")
                return self._disk_facts(known)
            storage = self.catalog.storage(storage_id)
            wanted = self.checked_settings(DiskSettings(), settings)
            facts = self._add_disk(disk_id, storage.id, size_bytes, None, Root(0, 1), "")
            if wanted != DiskSettings():
                try:
                    facts = self.disk_set(disk_id, **settings)
                except BaseException:
                    self.disk_rm(disk_id)
                    raise
            return facts

    def disk_clone(self, disk_id: str, snapshot_id: str) -> dict[str, Any]:
        """Make a disk with a snapshot's content; costs the same for any size."""
        check_id("disk", disk_id)
        with self.catalog.admin:
            known = self.catalog.disks.get(disk_id)
            if known is not None:
                if known.origin != snapshot_id:
                    detail = f"disk {disk_id} exists and is no clone of {snapshot_id}"
                    raise Conflict("disk.exists", detail, remedy="give the clone another id")
                return self._disk_facts(known)
            snapshot = self.catalog.snapshot(snapshot_id)
            return self._add_disk(
                disk_id, snapshot.storage_id, snapshot.size_bytes, snapshot.layer, snapshot.root, snapshot_id
            )

    def _add_disk(
        self,
        disk_id: str,
        storage_id: str,
        size_bytes: int,
        layer: Layer | None,
        root: Root,
        origin: str,
        move: Move | None = None,
    ) -> dict[str, Any]:
        self._check_writable()
        number = self.catalog.next_disk
        with self.lock:
            sequence = self.log.sequence
        opened = Layer(number, sequence, layer, root)
        disk = Disk(disk_id, number, storage_id, size_bytes, opened, sequence, origin=origin)
        with self.catalog.meta.transaction() as change:
            change.put("next_disk", number + 1)
            self.catalog.write_all(change)
            change.put_disk(self.catalog.disk_row(disk))
            if move is not None:
                change.put_move(disk_id, move.role, move.pool, move.base, move.goal)
                self.catalog.moves[disk_id] = move
        self.catalog.next_disk = number + 1
        self.catalog.add_disk(disk)
        return self._disk_facts(disk)

    def disk_show(self, disk_id: str) -> dict[str, Any]:
        with self.catalog.admin:
            return self._disk_facts(self.catalog.disk(disk_id))

    def disk_ls(self) -> list[dict[str, Any]]:
        with self.catalog.admin:
            return [self._disk_facts(disk) for disk in self.catalog.disks.values()]

    def disk_resize(self, disk_id: str, size_bytes: int) -> dict[str, Any]:
        """Grow the disk with zeros, or cut its end off; cutting is refused while it is attached."""
        _check_size(size_bytes)
        with self.catalog.admin:
            disk = self.catalog.disk(disk_id)
            if size_bytes == disk.size_bytes:
                return self._disk_facts(disk)
            self._check_writable()
            if size_bytes < disk.size_bytes:
                self.catalog.refuse_in_use("disk", disk_id=disk_id)
            elif disk.settings.thick:
                self.check_promises(size_bytes - disk.size_bytes)
            edge = size_bytes % PAGE if size_bytes < disk.size_bytes else 0
            with self.lock:
                self.append_pending()
                more: list[tuple[Layer, Staged]] = []
                if edge:
                    page = self._page(disk, size_bytes // PAGE)[:edge].ljust(PAGE, b"\0")
                    record = Record(disk.number, disk.epoch, DATA, size_bytes // PAGE, 1, [crc32c(page)])
                    more.append((disk.open, Staged(record, (page,))))
                more.append((disk.open, Staged(Record(disk.number, disk.epoch, RESIZE, 0, size_bytes))))
                sequence = self.append_pending(*more)
                disk.size_bytes, disk.size_seq = size_bytes, sequence
            self.sync_blocking(sequence)
            with self.catalog.meta.transaction() as change:
                self.catalog.write_all(change)
            return self._disk_facts(disk)

    def _page(self, disk: Disk, page: int) -> bytes:
        try:
            return self.reader.page(disk.open.view, page)
        except OSError as refused:
            raise Failed(
                "disk.read", "stored bytes cannot be read", cause=str(refused), remedy="look at the disk's health"
            ) from refused

    def disk_revert(self, disk_id: str, snapshot_id: str) -> dict[str, Any]:
        """Give the disk a snapshot's content and size; refused while attached."""
        with self.catalog.admin:
            disk = self.catalog.disk(disk_id)
            snapshot = self.catalog.snapshot(snapshot_id)
            self.catalog.refuse_in_use("disk", disk_id=disk_id)
            self._check_writable()
            with self.lock:
                sequence = self.append_pending()
            before = disk.open, disk.size_bytes, disk.size_seq, disk.parent
            disk.open = Layer(disk.number, sequence, snapshot.layer, snapshot.root)
            disk.size_bytes, disk.size_seq = snapshot.size_bytes, sequence
            disk.parent = snapshot_id if snapshot.disk_id == disk_id else ""
            try:
                with self.catalog.meta.transaction() as change:
                    self.catalog.write_all(change)
            except BaseException:
                disk.open, disk.size_bytes, disk.size_seq, disk.parent = before
                raise
            self.catalog.layers[disk.open] = None
            self._collect()
            return self._disk_facts(disk)

    def disk_rm(self, disk_id: str) -> None:
        """Remove a disk that is not attached; its snapshots stay. One that is not there is no error."""
        with self.catalog.admin:
            disk = self.catalog.disks.get(disk_id)
            if disk is None:
                return
            self.catalog.refuse_in_use("disk", disk_id=disk_id)
            self._check_writable()
            with self.catalog.meta.transaction() as change:
                change.run("DELETE FROM disks WHERE id=?", (disk_id,))
            del self.catalog.disks[disk_id]
            del self.catalog.by_number[disk.number]
            self._collect()

    def _collect(self) -> None:
        with self.lock:
            self.catalog.collect()
        self.sweep_wanted = True
        self.removals += 1

    # -- snapshots -------------------------------------------------------------------------------------------------

    def snapshot_create(self, snapshots: dict[str, str]) -> list[dict[str, Any]]:
        """Snapshot disks in one instant: ``{snapshot_id: disk_id}``. Costs the same for any size."""
        catalog = self.catalog
        with catalog.admin:
            disks = self.snapshot_check(snapshots)
            if disks:
                with self.lock:
                    seal = self.snapshot_seal(disks)
                self.snapshot_keep(disks, seal)
            return [self._snapshot_facts(catalog.snapshots[snapshot_id]) for snapshot_id in snapshots]

    def snapshot_check(self, snapshots: dict[str, str]) -> dict[str, Disk]:
        """The disks that are to be snapshot, by the snapshots' ids; none where all is done. Under ``admin``.

        Raises ``Conflict`` (``snapshot.exists``).
        """
        catalog = self.catalog
        disks = {}
        for snapshot_id, disk_id in snapshots.items():
            check_id("snapshot", snapshot_id)
            known = catalog.snapshots.get(snapshot_id)
            if known is not None and known.disk_id != disk_id:
                raise Conflict("snapshot.exists", f"snapshot {snapshot_id} exists, of disk {known.disk_id}")
            if known is None:
                disks[snapshot_id] = catalog.disk(disk_id)
        if disks and len(disks) < len(snapshots):
            raise Conflict(
                "snapshot.exists",
                "some of the snapshots exist",
                remedy="snapshots of one instant are made in one call",
            )
        if disks:
            self._check_writable()
        return disks

    def snapshot_seal(self, disks: dict[str, Disk]) -> Seal:
        """The instant: append the records and seal the disks' layers. Under ``admin`` and ``lock``."""
        records = [Record(disk.number, disk.epoch, SNAP, 0, 1, snapshot=UUID(each)) for each, disk in disks.items()]
        self.append_pending()
        sequence = self.log.append([Staged(record) for record in records])
        tops: dict[str, Layer | None] = {}
        for disk in disks.values():
            if disk.id not in tops:
                tops[disk.id] = self.catalog.seal(disk, sequence)
        return Seal(sequence, self.io.clock.now(), tops)

    def snapshot_keep(self, disks: dict[str, Disk], seal: Seal) -> None:
        """Make what was sealed durable; under ``admin``."""
        catalog = self.catalog
        self.sync_blocking(seal.sequence)
        parents = [(disk, disk.parent) for disk in disks.values()]
        for snapshot_id, disk in disks.items():
            layer = seal.tops[disk.id]
            if layer is not None:
                catalog.name_layer(layer)
            catalog.snapshots[snapshot_id] = Snapshot(
                snapshot_id,
                disk.id,
                disk.storage_id,
                disk.size_bytes,
                layer,
                disk.open.view.root,
                seal.sequence,
                seal.at,
                disk.parent,
            )
            disk.parent = snapshot_id
        try:
            with catalog.meta.transaction() as change:
                change.put("next_layer", catalog.next_layer)
                catalog.write_all(change)
        except BaseException:
            for snapshot_id in disks:
                del catalog.snapshots[snapshot_id]
            for disk, parent in parents:
                disk.parent = parent
            raise

    def snapshot_ls(self, disk_id: str | None = None) -> list[dict[str, Any]]:
        with self.catalog.admin:
            return [
                self._snapshot_facts(snapshot)
                for snapshot in self.catalog.snapshots.values()
                if disk_id is None or snapshot.disk_id == disk_id
            ]

    def snapshot_show(self, snapshot_id: str) -> dict[str, Any]:
        with self.catalog.admin:
            return self._snapshot_facts(self.catalog.snapshot(snapshot_id))

    def snapshot_rm(self, snapshot_id: str) -> None:
        """Remove a snapshot that is neither attached nor held; one that is not there is no error.

        What was taken after it comes after the one before it.
        """
        catalog = self.catalog
        with catalog.admin:
            snapshot = catalog.snapshots.get(snapshot_id)
            if snapshot is None:
                return
            catalog.refuse_in_use("snapshot", snapshot_id=snapshot_id)
            self._check_writable()
            with catalog.meta.transaction() as change:
                change.run("DELETE FROM snapshots WHERE id=?", (snapshot_id,))
                for table in ("snapshots", "disks"):
                    change.run(f"UPDATE {table} SET parent=? WHERE parent=?", (snapshot.parent, snapshot_id))
            del catalog.snapshots[snapshot_id]
            children: list[Disk | Snapshot] = [*catalog.snapshots.values(), *catalog.disks.values()]
            for child in children:
                if child.parent == snapshot_id:
                    child.parent = snapshot.parent
            self._collect()

    # -- attachments and holds -------------------------------------------------------------------------------------

    def attach(
        self,
        attachment_id: str,
        disk_id: str | None = None,
        snapshot_id: str | None = None,
        role: str = WRITER,
        uid: int | None = None,
    ) -> dict[str, Any]:
        """Allow the use of a disk or snapshot: ``{"export": id, "epoch": n}``. A writer raises the disk's epoch.

        Raises ``Conflict`` (``disk.attached``) for a second writer.
        """
        check_id("attachment", attachment_id)
        if (disk_id is None) == (snapshot_id is None):
            raise Invalid("attachment.subject", "an attachment is of either a disk or a snapshot")
        if role not in (WRITER, READER) or (snapshot_id is not None and role == WRITER):
            raise Invalid("attachment.role", f"{role!r} cannot be the role here", remedy="use writer (disks) or reader")
        catalog = self.catalog
        with catalog.admin:
            known = catalog.attachments.get(attachment_id)
            if known is not None:
                if (known.disk_id, known.snapshot_id, known.role, known.uid) != (disk_id, snapshot_id, role, uid):
                    raise Conflict("attachment.exists", f"attachment {attachment_id} exists and is of something else")
                return {"export": known.id, "epoch": known.epoch}
            self._check_writable()
            epoch = 0
            disk = None
            if snapshot_id is not None:
                catalog.snapshot(snapshot_id)
            else:
                disk = catalog.disk(str(disk_id))
                epoch = disk.epoch
                if role == WRITER:
                    self._refuse_second_writer(disk)
                    epoch += 1
            attachment = Attachment(attachment_id, disk_id, snapshot_id, role, uid, epoch)
            with catalog.meta.transaction() as change:
                change.run(
                    "INSERT INTO attachments VALUES (?,?,?,?,?,?)",
                    (attachment_id, disk_id, snapshot_id, role, uid, epoch),
                )
                if disk is not None:
                    change.run("UPDATE disks SET epoch=? WHERE id=?", (epoch, disk_id))
            if disk is not None:
                disk.epoch = epoch
            catalog.attachments[attachment_id] = attachment
            return {"export": attachment_id, "epoch": epoch}

    def _refuse_second_writer(self, disk: Disk) -> None:
        for other in self.catalog.attachments.values():
            if other.disk_id == disk.id and other.role == WRITER:
                raise Conflict(
                    "disk.attached",
                    f"disk {disk.id} has a writer already, attachment {other.id}",
                    remedy="detach that one first: a disk has one writer",
                )

    def detach(self, attachment_id: str) -> None:
        """End an attachment; volumes of it that are still open are refused from now on."""
        with self.catalog.admin:
            attachment = self.catalog.attachments.get(attachment_id)
            if attachment is None:
                return
            with self.catalog.meta.transaction() as change:
                change.run("DELETE FROM attachments WHERE id=?", (attachment_id,))
            del self.catalog.attachments[attachment_id]
            attachment.epoch = -1

    def attachment_ls(self) -> list[dict[str, Any]]:
        with self.catalog.admin:
            return [_attachment_facts(each) for each in self.catalog.attachments.values()]

    def volume(self, attachment_id: str) -> Volume:
        """The attachment opened for I/O; O(1), for the event loop. Raises ``NotFound``, ``Corrupt``
        (``disk.damaged``)."""
        attachment = self.catalog.attachment(attachment_id)
        if self.read_only:  # what it would give out might be older than what was flushed
            raise Corrupt(
                "pool.damaged",
                f"the pool in {self.path} is damaged: nothing is read from it before it is repaired",
                cause=self.read_only,
                remedy="run 'inn fabric check': it tells what can be repaired and what is lost",
            )
        if attachment.disk_id is not None:
            return Volume(self, attachment, self.catalog.disk(attachment.disk_id), None)
        return Volume(self, attachment, None, self.catalog.snapshot(str(attachment.snapshot_id)))

    def hold(self, hold_id: str, snapshot_id: str) -> None:
        """Until released, nothing the snapshot reaches is reclaimed or moved, and it cannot be removed."""
        check_id("hold", hold_id)
        with self.maintenance, self.catalog.admin:
            self.catalog.snapshot(snapshot_id)
            if self.catalog.holds.get(hold_id, snapshot_id) != snapshot_id:
                raise Conflict("hold.exists", f"hold {hold_id} exists, of another snapshot")
            if hold_id not in self.catalog.holds:
                with self.catalog.meta.transaction() as change:
                    change.run("INSERT INTO holds VALUES (?,?)", (hold_id, snapshot_id))
                self.catalog.holds[hold_id] = snapshot_id

    def release(self, hold_id: str) -> None:
        """End a hold; one that is not there is no error."""
        with self.catalog.admin:
            if hold_id in self.catalog.holds:
                with self.catalog.meta.transaction() as change:
                    change.run("DELETE FROM holds WHERE id=?", (hold_id,))
                del self.catalog.holds[hold_id]
                self.removals += 1

    # -- facts -----------------------------------------------------------------------------------------------------

    def _snapshot_facts(self, snapshot: Snapshot) -> dict[str, Any]:
        return {
            "id": snapshot.id,
            "disk_id": snapshot.disk_id,
            "storage_id": snapshot.storage_id,
            "size_bytes": snapshot.size_bytes,
            "sequence": snapshot.sequence,
            "created_at": snapshot.created_at,
            "parent_id": snapshot.parent or None,
            "pool_id": str(self.pool_id),
            "drained": snapshot.layer is None,
            "holds": [hold for hold, held in self.catalog.holds.items() if held == snapshot.id],
        }


def _attachment_facts(attachment: Attachment) -> dict[str, Any]:
    return {
        "id": attachment.id,
        "export": attachment.id,
        "disk_id": attachment.disk_id,
        "snapshot_id": attachment.snapshot_id,
        "role": attachment.role,
        "uid": attachment.uid,
        "epoch": attachment.epoch,
    }


def _check_size(size_bytes: int) -> None:
    if size_bytes <= 0 or size_bytes % SECTOR or size_bytes > MAX_DISK_BYTES:
        raise Invalid(
            "disk.size",
            f"a disk cannot have {size_bytes} bytes",
            cause="sizes are multiples of 512 from 512 bytes to 64 TiB",
            remedy="choose another size",
        )
