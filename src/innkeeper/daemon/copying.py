"""Filling a new disk from a file of this host, by the jailed converter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from innkeeper.compute.images import importer
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.resources import new_id

CONVERTER_UID = 65534
"""Debian's nobody: the converter reads its one file and writes its one export, nothing else."""


async def fill_disk(
    rooms: Rooms,
    disk_id: str,
    path: Path,
    image_format: str,
    progress: Callable[[float], None] = lambda fraction: None,
) -> None:
    """Write the content of ``path`` (raw or qcow2, also .xz or .zst) to a new, empty disk.

    Raises what the converter and the fabric raise; the disk then holds a part.
    """
    attachment_id = new_id()
    opened = await rooms.fabric.attach(attachment_id, disk_id=disk_id, role="writer", uid=CONVERTER_UID)
    try:
        scratch = rooms.paths.cache / "import"
        scratch.mkdir(mode=0o711, parents=True, exist_ok=True)
        await importer.convert_to_nbd(
            path,
            image_format,
            socket=rooms.paths.nbd_socket,
            export=opened["export"],
            uid=CONVERTER_UID,
            progress=progress,
            scratch=scratch,
        )
    finally:
        await rooms.fabric.detach(attachment_id)
