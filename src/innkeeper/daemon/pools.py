"""Pools: where the fabric keeps disks' data."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.cache import check_limit
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Invalid, NotFound, Problem
from innkeeper.model.resources import Pool, Task, new_id
from innkeeper.model.sizes import format_size
from innkeeper.tasks.engine import Run, Step, TaskKind

DEFAULT_POOL = "default"


HOME = "home"
"""What people call the device that is the pool's own directory; the fabric calls it by no name."""
_POLL_S = 0.5
_PATIENCE_S = 20.0


def _device(facts: dict[str, Any]) -> views.PoolDevice:
    return views.PoolDevice(**{**facts, "id": facts["id"] or HOME})


def _curator(facts: dict[str, Any]) -> views.CuratorFacts:
    return views.CuratorFacts(**facts)


def _problem(facts: dict[str, Any]) -> str | None:
    if facts["read_only"]:
        return f"it is read-only: {facts['read_only']}"
    if facts["upkeep_problem"]:
        return str(facts["upkeep_problem"]["detail"])
    if facts["damaged"]:
        return f"{facts['damaged']} stored items are damaged; 'inn pool scrub' repairs or names them"
    return None


class Pools:
    """The ``pool`` noun."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        rooms.engine.register(
            TaskKind("pool.device_drain", [Step("move what it holds", self._drain, self._keep)], after_crash="resume")
        )
        rooms.engine.register(
            TaskKind(
                "pool.curate",
                [Step("sweep and move", self._sweep), Step("pack anew", self._recode, weight=4)],
                after_crash="resume",
            )
        )

    async def settle(self) -> None:
        """Give the fabric what is desired of the pool that the inn is founded with."""
        pools = self._rooms.store.ls(Pool)
        if not pools:
            facts = await self._rooms.fabric.pool_show()
            pools = [self._rooms.store.create(Pool(id=facts["id"], name=DEFAULT_POOL, path=facts["path"]))]
        for pool in pools:
            await self._rooms.fabric.cache_resize(pool.cache_bytes)

    async def ls(self) -> list[Pool]:
        return self._rooms.store.ls(Pool)

    async def show(self, ref: str) -> views.PoolDetail:
        pool = self._rooms.store.get(Pool, ref)
        facts = await self._rooms.fabric.pool_show()
        own = {name: getattr(pool, name) for name in Pool.model_fields}
        told = {name for name in views.PoolDetail.model_fields if name in facts and name not in own}
        seen = {name: facts[name] for name in told - {"curator"}}
        return views.PoolDetail(
            **own,
            **seen,
            figures=views.Figures(**await self._rooms.fabric.figures()),
            devices=[_device(found) for found in await self._rooms.fabric.device_ls()],
            curator=_curator(facts["curator"]),
            problem=_problem(facts),
        )

    async def problem(self) -> str | None:
        """What is wrong with the pool; None when all is well."""
        try:
            return _problem(await self._rooms.fabric.pool_show())
        except Problem as silent:
            return str(silent)

    async def set(self, ref: str, request: ask.PoolSet, *, revision: int | None = None) -> Pool:
        """Raises ``Conflict`` (``pool.default``), ``Invalid`` (``pool.cache``)."""
        pool = self._rooms.store.get(Pool, ref)
        if pool.name == DEFAULT_POOL and request.name not in (None, DEFAULT_POOL):
            raise Conflict("pool.default", "the default pool keeps its name", remedy="change something else of it")
        wanted = request.model_dump(exclude_unset=True)
        resized = "cache_bytes" in wanted
        if resized:
            check_limit(request.cache_bytes)
        kept = {name: value for name, value in wanted.items() if value is not None or name == "cache_bytes"}
        pool = self._rooms.change(pool, revision, **kept)
        if resized:
            await self._rooms.fabric.cache_resize(pool.cache_bytes)
        return pool

    async def scrub(self, ref: str) -> Task:
        pool = self._rooms.store.get(Pool, ref)
        return self._rooms.engine.start("pool.scrub", {}, target_kind="pool", target_id=pool.id, target_name=pool.name)

    # --- the curator ---

    async def curate(self, ref: str) -> Task:
        """Sweep, move and pack anew what is due, now."""
        pool = self._rooms.store.get(Pool, ref)
        return self._rooms.engine.start("pool.curate", {}, target_kind="pool", target_id=pool.id, target_name=pool.name)

    async def pause(self, ref: str) -> views.CuratorFacts:
        """Let background work rest until ``resume``; the log is drained all the same."""
        self._rooms.store.get(Pool, ref)
        return _curator(await self._rooms.fabric.curator_pause(True))

    async def resume(self, ref: str) -> views.CuratorFacts:
        self._rooms.store.get(Pool, ref)
        return _curator(await self._rooms.fabric.curator_pause(False))

    async def hot(self, ref: str) -> list[views.HotGroup]:
        """The groups that were read most in the last 10 minutes."""
        self._rooms.store.get(Pool, ref)
        return [
            views.HotGroup(
                number=facts["number"],
                device=facts["device"] or HOME,
                tier=facts["tier"],
                size_bytes=facts["size_bytes"],
                touches=facts["touches"],
                disk_ids=facts["disks"],
            )
            for facts in await self._rooms.fabric.hot()
        ]

    async def _sweep(self, run: Run) -> None:
        run.result.update(await self._rooms.fabric.sweep())
        run.result.update(await self._rooms.fabric.tier())

    async def _recode(self, run: Run) -> None:
        facts = await self._rooms.fabric.curate_plan()
        whole, before = max(1, facts["left_bytes"]), facts["groups_recoded"]
        while facts["left_groups"]:
            left = facts["left_bytes"]
            run.progress(1 - left / whole, f"{format_size(left)} in {facts['left_groups']} groups left")
            facts = await self._rooms.fabric.curate_next()
        run.result["groups_recoded"] = facts["groups_recoded"] - before

    # --- devices ---

    async def device_add(self, ref: str, request: ask.PoolDeviceAdd) -> views.PoolDevice:
        """Raises ``Invalid`` (``device.inside``), ``Conflict`` (``device.not_empty``, ``device.exists``)."""
        self._rooms.store.get(Pool, ref)
        path, state = Path(request.path).resolve(), self._rooms.paths.state.resolve()
        if path == state or state in path.parents or path in state.parents:
            raise Invalid(
                "device.inside",
                f"{path} and the inn's own directory {state} may not contain each other",
                remedy="give a directory elsewhere, best the root of a file system of its own",
            )
        return _device(await self._rooms.fabric.device_add(new_id(), str(path), request.tier))

    async def device_drain(self, ref: str, device: str) -> Task:
        """Raises ``NotFound`` (``device.not_found``), ``Conflict`` (``device.home``)."""
        pool = self._rooms.store.get(Pool, ref)
        if device == HOME:
            raise Conflict("device.home", "the pool's own directory stays", remedy="name another device")
        facts = await self._facts(device)
        if facts is None:
            raise NotFound("device.not_found", f"the pool has no device {device}", remedy="see 'inn pool show'")
        parameters = {"device_id": device, "path": facts["path"], "tier": facts["tier"]}
        return self._rooms.engine.start(
            "pool.device_drain", parameters, target_kind="pool", target_id=pool.id, target_name=pool.name
        )

    async def _facts(self, device_id: str) -> dict[str, Any] | None:
        devices = await self._rooms.fabric.device_ls()
        return next((each for each in devices if each["id"] == device_id), None)

    async def _drain(self, run: Run) -> None:
        device_id = run.parameters["device_id"]
        if (facts := await self._facts(device_id)) is None:
            return
        await self._rooms.fabric.device_rm(device_id)
        whole = run.context.setdefault("bytes", max(1, facts["group_bytes"]))
        before, unchanged_s = None, 0.0
        while (facts := await self._facts(device_id)) is not None:
            left = facts["group_bytes"]
            unchanged_s, before = unchanged_s + _POLL_S if left == before else 0.0, left
            waits = "; waits for room elsewhere, or for a backup to end" if unchanged_s > _PATIENCE_S else ""
            run.progress(max(0.0, 1 - left / whole), f"{format_size(left)} left on {facts['path']}{waits}")
            await asyncio.sleep(_POLL_S)

    async def _keep(self, run: Run) -> None:
        """Cancelled: the device stays, with what it still holds."""
        wanted = run.parameters
        if await self._facts(wanted["device_id"]) is not None:
            await self._rooms.fabric.device_add(wanted["device_id"], wanted["path"], wanted["tier"])
