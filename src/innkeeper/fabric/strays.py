"""Strays: files of groups that no row of meta names, and what they tell of meta."""

from __future__ import annotations

from uuid import UUID

from innkeeper.fabric.devices import Devices
from innkeeper.fabric.groups import may_be_group
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.shelves import DirectoryShelf
from innkeeper.fabric.store import LIVE
from innkeeper.system.files import FileSystem


def find_strays(
    files: FileSystem, devices: Devices, pool_id: UUID, rows: dict[int, GroupRow], numbers_end: int
) -> tuple[list[GroupRow], str]:
    """The strays in the pool's directories, and why meta must be older than they are, "" where nothing says so.

    What is no group of the pool nobody knows: it is left alone.
    """
    strays, rolled_back = [], ""
    for device in devices.local():
        shelf = devices.shelf(device.id)
        assert isinstance(shelf, DirectoryShelf)
        shelf.clear_unfinished()
        for found in shelf.found():
            row = GroupRow(found.number, found.generation, LIVE, 0, 0, device.id)
            path = shelf.name(row)
            known = rows.get(found.number)
            if known is not None and (known.generation, known.device) == (found.generation, device.id):
                continue
            if not may_be_group(files, path, pool_id, found.number, found.generation):
                continue
            if found.number >= numbers_end:
                rolled_back = f"group {found.number} is younger than meta.db, which was rolled back"
            elif known is not None and known.generation < found.generation and not _has_file(files, devices, known):
                rolled_back = f"{path} is younger than meta.db, which was rolled back"
            strays.append(row)
    return strays, rolled_back


def _has_file(files: FileSystem, devices: Devices, row: GroupRow) -> bool:
    device = devices.all[row.device]
    return device.remote or files.exists(devices.shelf(device.id).name(row))
