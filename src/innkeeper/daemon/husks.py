"""What the fabric keeps of a vm's newest backup, so that the next one reads only what changed since."""

from __future__ import annotations

from collections.abc import Collection

from innkeeper.daemon.rooms import Rooms
from innkeeper.model.resources import Backup


async def drop_husks(rooms: Rooms, backup: Backup, disk_ids: Collection[str] | None = None) -> None:
    """Give those of ``disk_ids`` (None: all) up; a later backup reads these disks whole. May be repeated."""
    gone = {disk_id for disk_id in backup.husks if disk_ids is None or disk_id in disk_ids}
    if not gone:
        return
    for disk_id in gone:
        await rooms.fabric.snapshot_rm(backup.husks[disk_id])
    left = {disk_id: snapshot_id for disk_id, snapshot_id in backup.husks.items() if disk_id not in gone}
    rooms.change(rooms.store.get(Backup, backup.id), None, husks=left)


async def drop_husks_of_disk(rooms: Rooms, disk_id: str) -> None:
    """No later backup will stand on a disk that is removed."""
    for backup in rooms.store.ls(Backup):
        await drop_husks(rooms, backup, [disk_id])


async def drop_husks_of_vm(rooms: Rooms, vm_id: str) -> None:
    """No later backup will stand on those of a vm that is removed."""
    for backup in rooms.store.find(Backup, vm_id=vm_id):
        await drop_husks(rooms, backup)
