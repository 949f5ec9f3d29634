"""Moving disks to other pools: a task that copies while the disk is used, switches, and notes where it is."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.client import FabricClient
from innkeeper.model import requests as ask
from innkeeper.model.problems import Conflict, NotFound, Problem
from innkeeper.model.resources import Disk, Storage, Task
from innkeeper.model.sizes import format_size
from innkeeper.tasks.engine import Run, Step, TaskKind

log = logging.getLogger(__name__)
_WAIT_S = 0.5
_WAITED_FOR = frozenset({"move.busy", "snapshot.held", "snapshot.attached"})
"""Problems of a switch that go away: much was written meanwhile, or a backup or an export reads a snapshot."""
Told = Callable[[float, str], None]


async def _copy(fabric: FabricClient, disk_id: str, told: Told) -> None:
    """Copy until little is left; ``told`` hears how far it is."""
    facts = await fabric.disk_move_step(disk_id)
    while facts["state"] == "copying":
        done, whole = facts["copied_bytes"], max(facts["data_bytes"], facts["copied_bytes"], 1)
        told(done / whole, f"{format_size(done)} copied")
        facts = await fabric.disk_move_step(disk_id)


async def _switch(fabric: FabricClient, disk_id: str, told: Told) -> None:
    while True:
        try:
            await fabric.disk_move_switch(disk_id)
        except NotFound as over:
            if over.code != "move.not_found":
                raise
            return  # the answer to an earlier call was lost: whoever looks next sees where the disk is
        except Problem as later:
            if later.code not in _WAITED_FOR:
                raise
            told(0.0, f"waits: {later.cause or later.detail}")
            await asyncio.sleep(_WAIT_S)
            await _copy(fabric, disk_id, lambda _done, text: told(0.0, text))
        else:
            return


async def carry(fabric: FabricClient, disk_id: str, storage_id: str, told: Told = lambda _done, _text: None) -> None:
    """Take a disk to a storage, in whatever pool; at once within its own. May be repeated."""
    begun = await fabric.disk_move_begin(disk_id, storage_id)
    if begun["state"] == "copying":
        await _copy(fabric, disk_id, told)
        await _switch(fabric, disk_id, told)


class DiskMoves:
    """The task ``disk.move``."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        rooms.engine.register(
            TaskKind(
                "disk.move",
                [
                    Step("copy", self._copy, self._back, weight=9),
                    Step("switch", self._switch),
                    Step("note where it is", self._note),
                ],
                after_crash="resume",
            )
        )

    def start(self, disk: Disk, request: ask.DiskMove) -> Task:
        """Raises ``Conflict`` (``disk.is_image``, ``disk.not_ready``)."""
        storage = self._rooms.store.get(Storage, request.storage)
        if disk.role == "image":
            raise Conflict("disk.is_image", f"disk {disk.name!r} belongs to an image", remedy="move another disk")
        if not disk.ready:
            raise Conflict("disk.not_ready", f"disk {disk.name!r} is being made", remedy="wait for its task")
        about = {"disk_id": disk.id, "storage_id": storage.id}
        return self._rooms.engine.start(
            "disk.move", about, target_kind="disk", target_id=disk.id, target_name=disk.name
        )

    async def settle(self) -> None:
        """Call off what arrives somewhere without a task that brings it."""
        for move in await self._rooms.fabric.move_ls():
            if move["role"] == "arriving" and not self._rooms.in_unfinished_task(move["disk_id"]):
                log.warning("disk %s was on its way to another pool, and nobody moves it", move["disk_id"])
                await self._rooms.fabric.disk_move_cancel(move["disk_id"])

    async def _copy(self, run: Run) -> None:
        fabric, disk_id = self._rooms.fabric, run.parameters["disk_id"]
        begun = await fabric.disk_move_begin(disk_id, run.parameters["storage_id"])
        if begun["state"] == "copying":
            await _copy(fabric, disk_id, run.progress)

    async def _switch(self, run: Run) -> None:
        fabric, disk_id = self._rooms.fabric, run.parameters["disk_id"]
        begun = await fabric.disk_move_begin(disk_id, run.parameters["storage_id"])
        if begun["state"] == "copying":
            await _switch(fabric, disk_id, run.progress)

    async def _note(self, run: Run) -> None:
        facts = await self._rooms.fabric.disk_show(run.parameters["disk_id"])
        disk = self._rooms.store.get(Disk, run.parameters["disk_id"])
        if disk.storage_id != facts["storage_id"]:
            self._rooms.change(disk, None, storage_id=facts["storage_id"])

    async def _back(self, run: Run) -> None:
        """Failed or cancelled: the disk stays where it is; if the switch was made, that is the new place."""
        try:
            await self._rooms.fabric.disk_move_cancel(run.parameters["disk_id"])
            await self._note(run)
        except NotFound:
            log.info("disk %s was removed while it moved", run.parameters["disk_id"])
