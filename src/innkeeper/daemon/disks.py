"""Disks: documents here, bytes on the fabric under the same id."""

from __future__ import annotations

import logging
import os
from typing import Protocol

from innkeeper.daemon.allocate import free_name
from innkeeper.daemon.disk_facts import activity_of, place_of, settings_of
from innkeeper.daemon.disk_moves import DiskMoves, carry
from innkeeper.daemon.disk_snapshots import snapshots_of
from innkeeper.daemon.exports import Exports
from innkeeper.daemon.husks import drop_husks_of_disk
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.storages import Storages
from innkeeper.daemon.temporary import snapshot_of
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Invalid, NotFound, Problem
from innkeeper.model.resources import Checkpoint, Disk, DiskLink, Image, Pool, Qos, Storage, Task, Vm, VmState, new_id
from innkeeper.model.sizes import format_size

BLOCK_BYTES = 64 * 1024
log = logging.getLogger(__name__)


class DiskUsers(Protocol):
    """What disks need of guests: to plug one in or out, whether the guest runs or not."""

    async def plug_disk(self, vm: Vm, link: DiskLink) -> None: ...
    async def unplug_disk(self, vm: Vm, disk_id: str) -> None: ...
    async def disk_grown(self, vm: Vm, disk_id: str, size_bytes: int) -> None: ...


class Disks:
    """The ``disk`` noun, and what other services do with disks."""

    def __init__(self, rooms: Rooms, storages: Storages, exports: Exports) -> None:
        self._rooms = rooms
        self._exports = exports
        self._storages = storages
        self._users: DiskUsers | None = None
        self.moves = DiskMoves(rooms)

    def serve(self, users: DiskUsers) -> None:
        """Make the guests known that disks are plugged into."""
        self._users = users

    # --- for other services ---

    async def make(self, disk: Disk, snapshot_id: str | None = None) -> Disk:
        """Record ``disk`` and make its bytes: empty, or standing on a fabric snapshot and grown to its size.

        May be repeated. Raises ``Conflict`` (``disk.name_taken``), ``NoSpace``.
        """
        store, fabric = self._rooms.store, self._rooms.fabric
        await fabric.of(store.get(Storage, disk.storage_id).pool_id).ping()  # nothing is noted that cannot be made
        try:
            disk = store.get(Disk, disk.id)
        except NotFound:
            disk = store.create(disk.model_copy(update={"ready": False}))
        if disk.ready:
            return disk
        if snapshot_id is None:
            await fabric.disk_create(disk.id, disk.size_bytes, disk.storage_id, **settings_of(disk))
        else:
            await self._clone_into(disk, snapshot_id)
            if (await fabric.disk_show(disk.id))["size_bytes"] != disk.size_bytes:
                await fabric.disk_resize(disk.id, disk.size_bytes)
            await fabric.disk_set(disk.id, **settings_of(disk))
        return store.update(store.get(Disk, disk.id).model_copy(update={"ready": True}))

    async def _clone_into(self, disk: Disk, snapshot_id: str) -> None:
        """Clone a snapshot into the disk's storage; into another pool than the snapshot's it is copied."""
        fabric = self._rooms.fabric
        try:
            await fabric.disk_show(disk.id)
        except NotFound:
            await fabric.disk_clone(disk.id, snapshot_id)
        await carry(fabric, disk.id, disk.storage_id)

    def _refuse_other_pool(self, pool_id: str, storage: Storage) -> None:
        if storage.pool_id != pool_id:
            pools = {pool.id: pool.name for pool in self._rooms.store.ls(Pool)}
            raise Conflict(
                "disk.other_pool",
                f"storage {storage.name!r} is in pool {pools.get(str(storage.pool_id))!r}",
                cause=f"the data is in pool {pools.get(pool_id)!r}",
                remedy="'inn disk move' takes a disk from one pool to another, also in use",
            )

    async def unmake(self, disk_id: str) -> None:
        """Delete a disk's bytes, its snapshots and its document; what is not there is no error."""
        store, fabric = self._rooms.store, self._rooms.fabric
        try:
            disk = store.get(Disk, disk_id)
        except NotFound:
            disk = None
        for snapshot_id in disk.snapshots.values() if disk else ():
            await fabric.snapshot_rm(snapshot_id)
        await drop_husks_of_disk(self._rooms, disk_id)
        await fabric.disk_move_cancel(disk_id)
        await fabric.disk_rm(disk_id)
        store.delete("disk", disk_id)

    async def tidy(self) -> list[str]:
        """Remove disks that a crash left half-made; returns their names."""
        left = [
            disk for disk in self._rooms.store.find(Disk, ready=False) if not self._rooms.in_unfinished_task(disk.id)
        ]
        gone = []
        for disk in left:
            try:
                await self.unmake(disk.id)
            except Problem as refused:
                log.warning("disk %s was left half-made and cannot be removed: %s", disk.name, refused)
            else:
                gone.append(disk.name)
        return gone

    def blank(self, name: str, size_bytes: int, storage: str | None, **fields: object) -> Disk:
        """A document for a new disk; its name is varied when it is taken."""
        names = [disk.name for disk in self._rooms.store.ls(Disk)]
        return Disk.model_validate(
            {
                "name": free_name(name, names),
                "size_bytes": size_bytes,
                "storage_id": self._storages.resolve(storage).id,
                **fields,
            }
        )

    def of_image(self, image: Image, size_bytes: int | None) -> tuple[str, int]:
        """The fabric snapshot of an image and the size of a disk made from it.

        Raises ``Invalid`` (``image.is_iso``, ``disk.smaller_than_image``), ``Conflict`` (``image.not_ready``).
        """
        if image.image_kind == "iso":
            raise Invalid("image.is_iso", f"image {image.name!r} is an ISO", remedy="insert it with --iso")
        if not image.ready or image.snapshot_id is None:
            raise Conflict("image.not_ready", f"image {image.name!r} is still being made", remedy="wait for its task")
        if size_bytes is not None and size_bytes < image.size_bytes:
            raise Invalid(
                "disk.smaller_than_image",
                f"{format_size(size_bytes)} is less than image {image.name!r} needs",
                cause=f"the image has {format_size(image.size_bytes)}",
                remedy="ask for at least that size, or none",
            )
        return image.snapshot_id, size_bytes or image.size_bytes

    # --- the noun ---

    async def create(self, request: ask.DiskCreate, *, dry_run: bool = False) -> Disk | views.Plan:
        self._rooms.check_name_free(Disk, request.name)
        snapshot_id, size_bytes = None, request.size_bytes or 0
        if request.image is not None:
            snapshot_id, size_bytes = self.of_image(self._rooms.store.get(Image, request.image), request.size_bytes)
        qos_id = self._rooms.store.get(Qos, request.qos).id if request.qos is not None else None
        own = {"tier": request.tier, "thick": request.thick, "qos_id": qos_id}
        disk = self.blank(request.name, size_bytes, request.storage, labels=request.labels, **own)
        if dry_run:
            origin = f"a clone of image {request.image}" if request.image else "empty"
            return views.Plan(
                summary=f"create disk {disk.name} of {format_size(size_bytes)}",
                steps=[f"{origin}, in storage {self._storages.resolve(request.storage).name}"],
            )
        return await self._make_or_undo(disk, snapshot_id)

    async def _make_or_undo(self, disk: Disk, snapshot_id: str | None) -> Disk:
        try:
            return await self.make(disk, snapshot_id)
        except Problem:
            await self.unmake(disk.id)
            raise

    async def ls(self) -> list[Disk]:
        return self._rooms.store.ls(Disk)

    async def show(self, ref: str) -> views.DiskDetail:
        disk, fabric = self._rooms.store.get(Disk, ref), self._rooms.fabric
        own = {name: getattr(disk, name) for name in Disk.model_fields}
        try:
            figures = views.Figures(**await fabric.figures(disk_id=disk.id))
            places = [place_of(facts) for facts in await fabric.places(disk.id)]
            facts = await fabric.disk_show(disk.id)
            told = {name: facts[name] for name in ("promised_bytes", "log_room_bytes")}
        except NotFound:  # it is being made
            return views.DiskDetail(**own)
        meter = (await fabric.metrics())["meters"].get(disk.id)
        activity = activity_of(meter) if meter is not None else None
        return views.DiskDetail(**own, figures=figures, places=places, activity=activity, **told)

    async def set(self, ref: str, request: ask.DiskSet, *, revision: int | None = None) -> Disk:
        """Raises ``Conflict`` (``state.stale``), ``NotFound``, ``NoSpace`` (``pool.promised``)."""
        disk = self._rooms.store.get(Disk, ref)
        wanted = request.model_dump(exclude_unset=True)
        changes = {name: wanted[name] for name in ("name", "labels", "thick") if wanted.get(name) is not None}
        if wanted.get("storage") is not None:
            storage = self._storages.resolve(wanted["storage"])
            self._refuse_other_pool(str(self._storages.resolve(disk.storage_id).pool_id), storage)
            changes["storage_id"] = storage.id
        if "tier" in wanted:
            changes["tier"] = wanted["tier"]
        if "qos" in wanted:
            changes["qos_id"] = self._rooms.store.get(Qos, wanted["qos"]).id if wanted["qos"] is not None else None
        after = disk.model_copy(update=changes)
        if (after.storage_id, settings_of(after)) == (disk.storage_id, settings_of(disk)):
            return self._rooms.change(disk, revision, **changes)
        await self._rooms.fabric.disk_set(disk.id, storage_id=after.storage_id, **settings_of(after))
        try:
            return self._rooms.change(disk, revision, **changes)
        except Problem:
            await self._rooms.fabric.disk_set(disk.id, storage_id=disk.storage_id, **settings_of(disk))
            raise

    async def rm(self, ref: str) -> Disk:
        """Raises ``Conflict`` (``disk.attached``, ``disk.is_image``, ``disk.has_checkpoints``)."""
        disk = self._rooms.store.get(Disk, ref)
        self.check_loose(disk)
        if disk.role == "image":
            raise Conflict("disk.is_image", f"disk {disk.name!r} belongs to an image", remedy="use 'inn image rm'")
        points = [point.name for point in self._rooms.store.ls(Checkpoint) if disk.id in point.snapshots]
        if points:
            raise Conflict(
                "disk.has_checkpoints",
                f"disk {disk.name!r} is part of {len(points)} checkpoints",
                cause=", ".join(points[:5]),
                remedy="remove them first",
            )
        await self.unmake(disk.id)
        return disk

    def check_loose(self, disk: Disk) -> None:
        """Raises ``Conflict`` (``disk.attached``) when a vm has the disk."""
        if disk.vm_id is not None:
            vm = self._rooms.store.get(Vm, disk.vm_id)
            raise Conflict(
                "disk.attached",
                f"disk {disk.name!r} is attached to vm {vm.name!r}",
                remedy=f"detach it first: inn disk detach {disk.name}",
            )

    async def resize(self, ref: str, request: ask.DiskResize) -> Disk:
        """Raises ``Refused``/``Conflict`` (``disk.would_shrink``, ``disk.in_use``)."""
        disk = self._rooms.store.get(Disk, ref)
        if request.size_bytes < disk.size_bytes and not request.shrink:
            raise Conflict(
                "disk.would_shrink",
                f"disk {disk.name!r} has {format_size(disk.size_bytes)}; shrinking throws its end away",
                remedy="say --shrink if that is meant",
            )
        vm = self._rooms.store.get(Vm, disk.vm_id) if disk.vm_id is not None else None
        used = vm is not None and disk.id in vm.status.attachments
        if used and request.size_bytes < disk.size_bytes:
            raise Conflict("disk.in_use", f"disk {disk.name!r} is in use", remedy="shut its vm down first")
        await self._rooms.fabric.disk_resize(disk.id, request.size_bytes)
        if used and vm is not None and self._users is not None:
            await self._rooms.fabric.reconnect(vm.status.attachments[disk.id])
            await self._users.disk_grown(vm, disk.id, request.size_bytes)
        return self._rooms.change(self._rooms.store.get(Disk, disk.id), None, size_bytes=request.size_bytes)

    async def move(self, ref: str, request: ask.DiskMove) -> Task:
        """Take it to another storage, in whatever pool, in use or not. Raises ``Conflict`` (``disk.is_image``)."""
        return self.moves.start(self._rooms.store.get(Disk, ref), request)

    async def snapshot(self, ref: str, request: ask.DiskSnapshot) -> Disk:
        disk = self._rooms.store.get(Disk, ref)
        if request.name in disk.snapshots:
            raise Conflict(
                "disk.snapshot_exists",
                f"disk {disk.name!r} has a snapshot {request.name!r} already",
                remedy="choose another name",
            )
        snapshot_id = new_id()
        await self._rooms.fabric.snapshot_create({snapshot_id: disk.id})
        disk = self._rooms.store.get(Disk, disk.id)
        return self._rooms.change(disk, None, snapshots={**disk.snapshots, request.name: snapshot_id})

    async def snapshots(self, ref: str) -> list[views.DiskSnapshot]:
        """All of them, the oldest first, those of checkpoints and backups too."""
        return await snapshots_of(self._rooms, self._rooms.store.get(Disk, ref))

    async def revert(self, ref: str, request: ask.DiskRevert) -> Disk:
        """Raises ``NotFound`` (``snapshot.not_found``), ``Conflict`` (``disk.in_use``, ``disk.attached``)."""
        disk = self._rooms.store.get(Disk, ref)
        snapshot_id = self.snapshot_id(disk, request.snapshot)
        vm = self._rooms.store.get(Vm, disk.vm_id) if disk.vm_id is not None else None
        if vm is not None and vm.status.state not in (VmState.STOPPED, VmState.CRASHED):
            raise Conflict(
                "disk.in_use",
                f"disk {disk.name!r} is used by vm {vm.name!r}, which is {vm.status.state.value}",
                remedy=f"shut it down, or detach the disk: inn disk detach {disk.name}",
            )
        facts = await self._rooms.fabric.disk_revert(disk.id, snapshot_id)
        return self._rooms.change(self._rooms.store.get(Disk, disk.id), None, size_bytes=facts["size_bytes"])

    async def snapshot_rm(self, ref: str, snapshot: str) -> Disk:
        disk = self._rooms.store.get(Disk, ref)
        snapshot_id = self.snapshot_id(disk, snapshot)
        rest = {name: known for name, known in disk.snapshots.items() if known != snapshot_id}
        disk = self._rooms.change(disk, None, snapshots=rest)
        await self._rooms.fabric.snapshot_rm(snapshot_id)
        return disk

    @staticmethod
    def snapshot_id(disk: Disk, ref: str) -> str:
        """The fabric snapshot that ``ref`` (a name or an id) means on this disk.

        Raises ``NotFound`` (``snapshot.not_found``).
        """
        if ref in disk.snapshots:
            return disk.snapshots[ref]
        if ref in disk.snapshots.values():
            return ref
        known = ", ".join(disk.snapshots) or "it has none"
        raise NotFound(
            "snapshot.not_found",
            f"disk {disk.name!r} has no snapshot {ref!r}",
            cause=f"known: {known}",
            remedy=f"inn disk snapshot {disk.name} NAME takes one",
        )

    async def clone(self, ref: str, request: ask.DiskClone, *, dry_run: bool = False) -> Disk | views.Plan:
        source = self._rooms.store.get(Disk, ref)
        self._rooms.check_name_free(Disk, request.name)
        snapshot_id = self.snapshot_id(source, request.snapshot) if request.snapshot else None
        if dry_run:
            point = f"snapshot {request.snapshot}" if request.snapshot else "this instant"
            return views.Plan(summary=f"clone disk {source.name} as {request.name}", steps=[f"as of {point}"])
        if snapshot_id is not None:
            return await self._clone_of(snapshot_id, source, request)
        async with snapshot_of(self._rooms, source.id) as snapshot_id:
            return await self._clone_of(snapshot_id, source, request)

    async def _clone_of(self, snapshot_id: str, source: Disk, request: ask.DiskClone) -> Disk:
        size_bytes = int((await self._rooms.fabric.snapshot_show(snapshot_id))["size_bytes"])
        disk = Disk(name=request.name, labels=request.labels, size_bytes=size_bytes, storage_id=source.storage_id)
        return await self._make_or_undo(disk, snapshot_id)

    async def diff(self, ref: str, *, base: str | None = None, snapshot: str | None = None) -> views.DiskDiff:
        disk = self._rooms.store.get(Disk, ref)
        base_id = self.snapshot_id(disk, base) if base else None
        if snapshot is not None:
            ranges = await self._changed_ranges(self.snapshot_id(disk, snapshot), base_id, disk.size_bytes)
        else:
            async with snapshot_of(self._rooms, disk.id) as newer:
                ranges = await self._changed_ranges(newer, base_id, disk.size_bytes)
        return views.DiskDiff(
            disk_id=disk.id,
            base=base,
            snapshot=snapshot,
            changed_bytes=sum(part.length_bytes for part in ranges),
            ranges=ranges,
        )

    async def _changed_ranges(self, newer: str, base: str | None, size_bytes: int) -> list[views.DiskRange]:
        ranges: list[views.DiskRange] = []
        start: int | None = 0
        while start is not None:
            page = await self._rooms.fabric.changed_blocks(newer, base, start_block=start)
            for block, kind, *_rest in page["blocks"]:
                offset, hole = block * BLOCK_BYTES, kind == "hole"
                length = min(BLOCK_BYTES, size_bytes - offset)
                last = ranges[-1] if ranges else None
                if last and last.offset_bytes + last.length_bytes == offset and last.hole == hole:
                    last.length_bytes += length
                elif length > 0:
                    ranges.append(views.DiskRange(offset_bytes=offset, length_bytes=length, hole=hole))
            start = page["next"]
        return ranges

    # --- plugging and serving ---

    async def attach(self, ref: str, request: ask.DiskAttach) -> Disk:
        """Raises ``Conflict`` (``disk.attached``)."""
        if self._users is None:
            raise RuntimeError("disks serve no guests yet")
        disk, vm = self._rooms.store.get(Disk, ref), self._rooms.store.get(Vm, request.vm)
        self.check_loose(disk)
        link = DiskLink(disk_id=disk.id, boot_index=request.boot_index, read_only=request.read_only)
        await self._users.plug_disk(vm, link)
        return self._rooms.store.get(Disk, disk.id)

    async def detach(self, ref: str) -> Disk:
        """Raises ``Conflict`` (``disk.not_attached``)."""
        if self._users is None:
            raise RuntimeError("disks serve no guests yet")
        disk = self._rooms.store.get(Disk, ref)
        if disk.vm_id is None:
            raise Conflict(
                "disk.not_attached",
                f"disk {disk.name!r} is not attached to a vm",
                remedy="'inn disk ls' tells which disk each vm has",
            )
        await self._users.unplug_disk(self._rooms.store.get(Vm, disk.vm_id), disk.id)
        return self._rooms.store.get(Disk, disk.id)

    async def export_open(self, ref: str, request: ask.DiskExport) -> views.OpenExport:
        disk = self._rooms.store.get(Disk, ref)
        attachment_id = new_id()
        role = "writer" if request.writable else "reader"
        snapshot_id = self.snapshot_id(disk, request.snapshot) if request.snapshot else None
        self._exports.begin(attachment_id, request.pid or os.getpid())
        try:
            opened = await self._rooms.fabric.attach(
                attachment_id,
                disk_id=None if snapshot_id else disk.id,
                snapshot_id=snapshot_id,
                role=role,
                uid=request.uid or 0,
            )
        except Problem:
            await self._exports.end(attachment_id)
            raise
        size_bytes = disk.size_bytes
        if snapshot_id:
            size_bytes = int((await self._rooms.fabric.snapshot_show(snapshot_id))["size_bytes"])
        return views.OpenExport(
            attachment_id=attachment_id,
            export=opened["export"],
            socket=str(self._rooms.paths.nbd_socket),
            size_bytes=size_bytes,
            read_only=not request.writable,
        )

    async def export_close(self, ref: str, attachment_id: str) -> Disk:
        disk = self._rooms.store.get(Disk, ref)
        await self._exports.end(attachment_id)
        return disk
