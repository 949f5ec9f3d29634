"""Disks served to processes of this host, and what a killed daemon left attached.

The fabric keeps attachments across restarts of everybody, so each must have somebody who gives it back. An export
belongs to the process that asked for it: it is noted in ``RUN/exports`` and ends with that process, also while no
daemon runs. All else that is attached belongs to a guest, or to work that a killed daemon did not finish.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection
from pathlib import Path

from innkeeper.compute.adoption import HeldProcess, ProcessIdentity, start_ticks
from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.client import FabricClient
from innkeeper.model.problems import NotFound, Problem
from innkeeper.model.resources import Backup, Checkpoint, Disk, Image, Pool, Vm

log = logging.getLogger(__name__)


class Exports:
    """Who uses which export."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._held: dict[str, HeldProcess] = {}
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def _notes(self) -> Path:
        return self._rooms.paths.run / "exports"

    def begin(self, attachment_id: str, pid: int) -> None:
        """Note that the process uses the attachment; when it ends, the attachment does.

        Raises ``NotFound`` (``vm.process_gone``).
        """
        identity = ProcessIdentity(pid, start_ticks(pid) or 0)
        held = HeldProcess(identity)
        self._notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        note = {"pid": identity.pid, "start_ticks": identity.start_ticks}
        (self._notes / attachment_id).write_text(json.dumps(note))
        self._watch(attachment_id, held)

    async def end(self, attachment_id: str) -> None:
        """Give the attachment back; may be repeated."""
        held = self._held.pop(attachment_id, None)
        if held is not None:
            held.release()
        await self._rooms.fabric.detach(attachment_id)
        (self._notes / attachment_id).unlink(missing_ok=True)

    def _watch(self, attachment_id: str, held: HeldProcess) -> None:
        self._held[attachment_id] = held
        held.on_end(lambda: self._chore(attachment_id))

    def _chore(self, attachment_id: str) -> None:
        async def ended() -> None:
            log.warning("the process that used export %s has ended without closing it", attachment_id)
            try:
                await self.end(attachment_id)
            except Problem as refused:
                log.warning("export %s: %s", attachment_id, refused)

        task = asyncio.create_task(ended())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def settle(self) -> None:
        """After a start: watch the exports whose processes live, give back every other attachment that no guest has,
        and every hold: no backup runs yet."""
        known = {attachment for vm in self._rooms.store.ls(Vm) for attachment in vm.status.attachments.values()}
        for note in self._notes.iterdir() if self._notes.is_dir() else ():
            try:
                facts = json.loads(note.read_text())
                self._watch(note.name, HeldProcess(ProcessIdentity(int(facts["pid"]), int(facts["start_ticks"]))))
                known.add(note.name)
            except (NotFound, ValueError, KeyError):
                note.unlink(missing_ok=True)
        fabric = self._rooms.fabric
        await self._give_back(fabric, known)
        for snapshot in await fabric.snapshot_ls():
            for hold in snapshot["holds"]:
                log.warning("hold %s on snapshot %s was left by a backup that has ended", hold, snapshot["id"])
                await fabric.release(hold)

    async def tell(self, pool: Pool) -> None:
        """A pool was closed for a while: give back what was attached in it and is not used any more."""
        used = {attachment for vm in self._rooms.store.ls(Vm) for attachment in vm.status.attachments.values()}
        await self._give_back(self._rooms.fabric.of(pool.id), used | set(self._held))

    async def _give_back(self, fabric: FabricClient, used: Collection[str]) -> None:
        for attached in await fabric.attachment_ls():
            if attached["id"] not in used:
                log.warning("attachment %s was left by a process that has ended; giving it back", attached["id"])
                await fabric.detach(attached["id"])

    async def strangers(self) -> list[str]:
        """Disks and snapshots of the fabric that no document names, each as a sentence; they are kept."""
        store, fabric = self._rooms.store, self._rooms.fabric
        disks = {disk.id for disk in store.ls(Disk)}
        snapshots = {snapshot for disk in store.ls(Disk) for snapshot in disk.snapshots.values()}
        snapshots |= {snapshot for point in store.ls(Checkpoint) for snapshot in point.snapshots.values()}
        snapshots |= {snapshot for backup in store.ls(Backup) for snapshot in backup.husks.values()}
        snapshots |= {image.snapshot_id for image in store.ls(Image) if image.snapshot_id}
        found = [f"disk {each['id']}" for each in await fabric.disk_ls() if each["id"] not in disks]
        found += [
            f"snapshot {each['id']} of disk {each['disk_id']}"
            for each in await fabric.snapshot_ls()
            if each["id"] not in snapshots
        ]
        return found

    def let_go(self) -> None:
        """The daemon ends; the processes go on."""
        for held in self._held.values():
            held.release()
        self._held.clear()
