"""Scrubbing a pool: all that is stored is read, and what is damaged is taken from a backup repository that has it.

The fabric repairs what its content cache still has; what it cannot is looked up here by its hash in every repository.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from innkeeper.daemon.repositories import Repositories
from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.client import FabricClient
from innkeeper.model.problems import Corrupt, Problem
from innkeeper.model.resources import Disk, Image, Repository
from innkeeper.model.sizes import format_size
from innkeeper.protect.index import names_array
from innkeeper.protect.repository import EntryReader, Repository as OpenRepository
from innkeeper.protect.sealing import Kind
from innkeeper.tasks.engine import Run, Step, TaskKind

log = logging.getLogger(__name__)
_TOLD = 20
"""So many damaged items are named; the number of all is said."""


class Scrubbing:
    """The task ``pool.scrub``."""

    def __init__(self, rooms: Rooms, repositories: Repositories) -> None:
        self._rooms = rooms
        self._repositories = repositories
        rooms.engine.register(
            TaskKind(
                "pool.scrub",
                [Step("read everything", self._read, weight=9), Step("repair", self._repair)],
                after_crash="resume",
            )
        )

    def _in(self, run: Run) -> FabricClient:
        return self._rooms.fabric.of(run.parameters.get("pool_id"))

    async def _read(self, run: Run) -> None:
        context = run.context
        after: int | None = context.setdefault("after", 0)
        while after is not None:
            done = await self._in(run).scrub(after)
            after = done["next"]
            context["bytes"] = context.get("bytes", 0) + done["bytes"]
            context["after"] = after or context["after"]
            whole = context["bytes"] + done["left_bytes"]
            text = f"{format_size(context['bytes'])} of {format_size(whole)} read"
            run.progress(context["bytes"] / max(1, whole), text)

    async def _repair(self, run: Run) -> None:
        """Raises ``Corrupt`` (``pool.damaged``) for what stays damaged."""
        fabric = self._in(run)
        damage = await fabric.damage_ls()
        repaired = 0
        for repository in self._rooms.store.ls(Repository):
            wanted = [each for each in damage if each["hash"]]
            if wanted:
                repaired += await self._from(fabric, repository, wanted)
                damage = await fabric.damage_ls()
        run.result.update(bytes=run.context.get("bytes", 0), repaired=repaired, damaged=len(damage))
        if damage:
            names = self._names()
            raise Corrupt(
                "pool.damaged",
                f"{len(damage)} stored items are damaged and no copy of them was found",
                cause="\n".join(_line(each, names) for each in damage[:_TOLD]),
                remedy="restore the disks named from a backup, remove the damaged ones, and look at the medium",
            )

    async def _from(self, fabric: FabricClient, repository: Repository, damage: list[dict[str, Any]]) -> int:
        """Repair what a repository has; how many."""
        try:
            opened = await self._repositories.open(repository)
            reader = await asyncio.to_thread(opened.reader)
        except Problem as closed:
            log.warning("repository %s cannot help with a repair: %s", repository.name, closed)
            return 0
        repaired = 0
        for each in damage:
            data = await asyncio.to_thread(_copy, opened, reader, bytes.fromhex(each["hash"]))
            if data is not None:
                repaired += await fabric.repair(each["group"], each["slot"], data)
        return repaired

    def _names(self) -> dict[str, str]:
        """What people call the disks and snapshots that the fabric knows by id."""
        names = {}
        for disk in self._rooms.store.ls(Disk):
            names[disk.id] = f"disk {disk.name}"
            names.update({key: f"snapshot {name} of disk {disk.name}" for name, key in disk.snapshots.items()})
        for image in self._rooms.store.ls(Image):
            if image.snapshot_id is not None:
                names[image.snapshot_id] = f"image {image.name}"
        return names


def _copy(opened: OpenRepository, reader: EntryReader, fabric_hash: bytes) -> bytes | None:
    name = opened.key.name(Kind.EXTENT, fabric_hash)
    if reader.index.find(names_array([name])).pack[0] < 0:
        return None
    try:
        return reader.read(name)
    except Problem as broken:
        log.warning("a repository's copy of an extent is of no use: %s", broken)
        return None


def _line(damage: dict[str, Any], names: dict[str, str]) -> str:
    needed = ", ".join(names.get(subject, subject) for subject in damage["subjects"])
    return f"{damage['item']} in {damage['path']} at byte {damage['offset']}: {damage['what']}; needed by {needed}"
