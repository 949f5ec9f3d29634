"""The disks that hold guests' UEFI variables: clones of a template, one for each flavour of the firmware."""

from __future__ import annotations

from innkeeper.compute import firmware
from innkeeper.daemon.copying import fill_disk
from innkeeper.daemon.disks import Disks
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.storages import Storages
from innkeeper.model.problems import NotFound
from innkeeper.model.resources import Disk, Vm, new_id

_SNAPSHOT = "template"


class Nvram:
    """Makes the disks with the role ``nvram``."""

    def __init__(self, rooms: Rooms, disks: Disks, storages: Storages) -> None:
        self._rooms = rooms
        self._disks = disks
        self._storages = storages

    async def make(self, vm: Vm, snapshot_id: str | None) -> None:
        """Make the vm's variables: a clone of ``snapshot_id``, or of the firmware's template. May be repeated.

        Raises ``Unavailable`` (``uefi.missing``).
        """
        if vm.spec.nvram_disk_id is None or self._rooms.store.find(Disk, id=vm.spec.nvram_disk_id, ready=True):
            return
        if snapshot_id is None:
            snapshot_id = await self._template(secure_boot=vm.spec.secure_boot)
        size_bytes = int((await self._rooms.fabric.snapshot_show(snapshot_id))["size_bytes"])
        disk = self._disks.blank(
            f"{vm.name}-nvram", size_bytes, None, id=vm.spec.nvram_disk_id, role="nvram", vm_id=vm.id
        )
        await self._disks.make(disk, snapshot_id)

    async def _template(self, *, secure_boot: bool) -> str:
        """The snapshot of the firmware's own variables; made at the first vm that needs it."""
        name = f"nvram-template{'-secure-boot' if secure_boot else ''}"
        file = firmware.find_uefi(secure_boot=secure_boot).variables_template
        try:
            template = self._rooms.store.get(Disk, name)
            if _SNAPSHOT in template.snapshots and template.size_bytes == file.stat().st_size:
                return template.snapshots[_SNAPSHOT]
            await self._disks.unmake(template.id)
        except NotFound:
            pass
        template = Disk(
            name=name,
            size_bytes=file.stat().st_size,
            storage_id=self._storages.resolve(None).id,
            role="nvram",
        )
        await self._disks.make(template)
        await fill_disk(self._rooms, template.id, file, "raw")
        snapshot_id = new_id()
        await self._rooms.fabric.snapshot_create({snapshot_id: template.id})
        template = self._rooms.store.get(Disk, template.id)
        self._rooms.change(template, None, snapshots={_SNAPSHOT: snapshot_id})
        return snapshot_id
