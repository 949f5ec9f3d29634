"""Pools besides the default one: how they come, go, are missing and come back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from innkeeper.daemon.rooms import Rooms
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Corrupt, Invalid, Problem, from_dict
from innkeeper.model.resources import Disk, Pool, Storage, new_id

log = logging.getLogger(__name__)
LOOK_INTERVAL_S = 10.0
Opened = Callable[[Pool], Awaitable[None]]


OUTSIDE = "give a directory elsewhere, best the root of a file system of its own"
"""What to do about a path that ``entangled`` tells of."""


def entangled(rooms: Rooms, path: Path) -> str | None:
    """What is wrong with a path that contains the inn's own directory, or lies in it."""
    state = rooms.paths.state.resolve()
    if path == state or state in path.parents or path in state.parents:
        return f"{path} and the inn's own directory {state} may not contain each other"
    return None


class PoolLife:
    """Founds, opens and gives up pools; opens by itself those that were missing at the start and are back."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self._opened: list[Opened] = []
        self._watchman: asyncio.Task[None] | None = None

    def on_opened(self, told: Opened) -> None:
        """Have ``told`` called with each pool that was opened, so that it has what is desired of it."""
        self._opened.append(told)

    async def closed(self) -> dict[str, dict[str, Any]]:
        """The problems of the pools that are closed, by id."""
        return {each["id"]: each["problem"] for each in await self._rooms.fabric.pool_ls() if each["problem"]}

    async def settle(self) -> None:
        """Have every pool that the inn has known to the fabric; what cannot be opened is told, and looked after."""
        known = {each["id"] for each in await self._rooms.fabric.pool_ls()}
        for pool in self._rooms.store.ls(Pool):
            if pool.id not in known:
                log.error("the fabric does not know pool %s in %s", pool.name, pool.path)
        self._watchman = asyncio.create_task(self._watch())

    async def let_go(self) -> None:
        """The daemon ends; the pools stay."""
        if self._watchman is not None:
            self._watchman.cancel()
            await asyncio.gather(self._watchman, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                for pool_id, problem in (await self.closed()).items():
                    if not isinstance(from_dict(problem), Corrupt):
                        await self._look(pool_id)
            except Problem as silent:
                log.debug("pools cannot be looked after: %s", silent)

    async def _look(self, pool_id: str) -> None:
        for pool in self._rooms.store.find(Pool, id=pool_id):
            try:
                await self.open(pool)
            except Problem as still:
                log.debug("pool %s stays closed: %s", pool.name, still)
            else:
                log.info("pool %s is back", pool.name)

    async def open(self, pool: Pool) -> None:
        """Raises what keeps the pool closed."""
        await self._rooms.fabric.pool_open(pool.id)
        for told in self._opened:
            await told(pool)

    async def create(self, request: ask.PoolCreate, *, dry_run: bool) -> Pool | views.Plan:
        """Raises ``Conflict`` (``pool.name_taken``, ``pool.not_empty``, ``pool.foreign``, ``pool.nested``,
        ``pool.locked``), ``Invalid`` (``pool.inside``), ``NoSpace`` (``pool.small``), ``Failed`` (``pool.unusable``).
        """
        self._rooms.check_name_free(Pool, request.name)
        path = Path(request.path).resolve()
        if (wrong := entangled(self._rooms, path)) is not None:
            raise Invalid("pool.inside", wrong, remedy=OUTSIDE)
        if dry_run:
            return views.Plan(summary=f"create pool {request.name}", steps=[f"found a pool in {path}"])
        pool = Pool(id=new_id(), name=request.name, path=str(path), labels=request.labels)
        await self._rooms.fabric.pool_create(pool.id, pool.path)
        pool = self._rooms.store.create(pool)
        for told in self._opened:
            await told(pool)
        return pool

    async def rm(self, pool: Pool) -> Pool:
        """Raises ``Conflict`` (``pool.default``, ``pool.in_use``)."""
        if any(each["default"] for each in await self._rooms.fabric.pool_ls() if each["id"] == pool.id):
            raise Conflict("pool.default", "the default pool stays", remedy="remove another pool")
        storages = [storage.name for storage in self._rooms.store.find(Storage, pool_id=pool.id)]
        if storages:
            raise Conflict(
                "pool.in_use",
                f"pool {pool.name!r} has {len(storages)} storages",
                cause=", ".join(storages[:5]),
                remedy="move or remove their disks, then remove them",
            )
        await self._rooms.fabric.pool_rm(pool.id)
        self._rooms.store.delete("pool", pool.id)
        return pool

    async def forget(self, pool: Pool) -> Pool:
        """Give up a pool that is gone for good, with its storages and the disks that were in it.

        Raises ``Conflict`` (``pool.not_lost``, ``disk.attached``).
        """
        store = self._rooms.store
        if pool.id not in await self.closed():
            raise Conflict("pool.not_lost", f"pool {pool.name!r} is available", remedy="move or remove its disks")
        storages = store.find(Storage, pool_id=pool.id)
        disks = [disk for storage in storages for disk in store.find(Disk, storage_id=storage.id)]
        attached = [disk.name for disk in disks if disk.vm_id is not None]
        if attached:
            raise Conflict(
                "disk.attached",
                f"{len(attached)} disks of pool {pool.name!r} are attached to vms",
                cause=", ".join(attached[:5]),
                remedy="detach them first: inn disk detach",
            )
        for disk in disks:
            log.warning("disk %s was in pool %s, which is lost", disk.name, pool.name)
            store.delete("disk", disk.id)
        for storage in storages:
            store.delete("storage", storage.id)
        await self._rooms.fabric.pool_rm(pool.id)
        store.delete("pool", pool.id)
        return pool
