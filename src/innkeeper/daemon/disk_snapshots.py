"""The snapshots of a disk, whoever made them, with the names that people know them by."""

from __future__ import annotations

from datetime import UTC, datetime

from innkeeper.daemon.rooms import Rooms
from innkeeper.model import views
from innkeeper.model.resources import Backup, Checkpoint, Disk, Image


def _names(rooms: Rooms, disk: Disk) -> dict[str, tuple[str, views.SnapshotKind]]:
    """What the disk's snapshots are called, by their ids."""
    found: dict[str, tuple[str, views.SnapshotKind]] = {}
    for backup in rooms.store.ls(Backup):
        if disk.id in backup.husks:
            found[backup.husks[disk.id]] = (backup.name, "backup")
    for image in rooms.store.ls(Image):
        if image.disk_id == disk.id and image.snapshot_id is not None:
            found[image.snapshot_id] = (image.name, "image")
    for point in rooms.store.ls(Checkpoint):
        if disk.id in point.snapshots:
            found[point.snapshots[disk.id]] = (point.name, "checkpoint")
    found.update({snapshot_id: (name, "snapshot") for name, snapshot_id in disk.snapshots.items()})
    return found


async def snapshots_of(rooms: Rooms, disk: Disk) -> list[views.DiskSnapshot]:
    """Every snapshot that the fabric keeps of the disk, the oldest first."""
    names = _names(rooms, disk)
    disks = await rooms.fabric.disk_ls()
    current = next((each["parent_id"] for each in disks if each["id"] == disk.id), None)
    sizes = {each["id"]: each for each in await rooms.fabric.snapshot_sizes(disk.id)}
    found = []
    for facts in await rooms.fabric.snapshot_ls(disk.id):
        snapshot_id = facts["id"]
        if snapshot_id not in sizes:  # taken since
            continue
        name, kind = names.get(snapshot_id, (snapshot_id, "other"))
        found.append(
            views.DiskSnapshot(
                id=snapshot_id,
                name=name,
                snapshot_kind=kind,
                parent_id=facts["parent_id"],
                created_at=datetime.fromtimestamp(facts["created_at"], UTC),
                size_bytes=facts["size_bytes"],
                changed_bytes=sizes[snapshot_id]["changed_bytes"],
                own_bytes=sizes[snapshot_id]["own_bytes"],
                current=snapshot_id == current,
                clone_ids=[each["id"] for each in disks if each["origin"] == snapshot_id],
            )
        )
    return sorted(found, key=lambda one: one.created_at)
