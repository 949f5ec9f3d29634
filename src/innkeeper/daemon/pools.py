"""Pools: where the fabric keeps disks' data."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from innkeeper.daemon.pool_life import OUTSIDE, PoolLife, entangled
from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.cache import check_limit
from innkeeper.fabric.client import FabricClient
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Invalid, NotFound, Problem, Unavailable
from innkeeper.model.resources import Pool, Task, new_id
from innkeeper.model.sizes import format_size
from innkeeper.system import blockdevice
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
        self.life = PoolLife(rooms)
        self.life.on_opened(self._tell)
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
        closed = await self.life.closed()
        for pool in pools:
            if pool.id not in closed:
                await self._tell(pool)
        await self.life.settle()

    async def _tell(self, pool: Pool) -> None:
        await self._in(pool).cache_resize(pool.cache_bytes)

    def _in(self, pool: Pool) -> FabricClient:
        return self._rooms.fabric.of(pool.id)

    async def create(self, request: ask.PoolCreate, *, dry_run: bool = False) -> Pool | views.Plan:
        """As ``PoolLife.create``."""
        return await self.life.create(request, dry_run=dry_run)

    async def rm(self, ref: str, *, lost: bool = False) -> Pool:
        """Raises ``Conflict`` (``pool.default``, ``pool.in_use``, ``pool.not_lost``, ``disk.attached``)."""
        pool = self._rooms.store.get(Pool, ref)
        return await (self.life.forget(pool) if lost else self.life.rm(pool))

    async def open(self, ref: str) -> Pool:
        """Open one that is closed, now that what kept it closed is gone; raises what keeps it closed."""
        pool = self._rooms.store.get(Pool, ref)
        await self.life.open(pool)
        return pool

    async def ls(self) -> list[Pool]:
        closed = await self.life.closed()
        return [
            pool.model_copy(update={"problem": closed[pool.id]["detail"] if pool.id in closed else None})
            for pool in self._rooms.store.ls(Pool)
        ]

    async def show(self, ref: str) -> views.PoolDetail:
        pool = self._rooms.store.get(Pool, ref)
        own = {name: getattr(pool, name) for name in Pool.model_fields if name != "problem"}
        fabric = self._in(pool)
        try:
            facts = await fabric.pool_show()
        except Unavailable as closed:
            if closed.code != "pool.unavailable":
                raise
            return views.PoolDetail(**own, available=False, problem=closed.cause, remedy=closed.remedy)
        told = {name for name in views.PoolDetail.model_fields if name in facts and name not in own}
        seen = {name: facts[name] for name in told - {"curator"}}
        return views.PoolDetail(
            **own,
            **seen,
            figures=views.Figures(**await fabric.figures()),
            devices=[_device(found) for found in await fabric.device_ls()],
            curator=_curator(facts["curator"]),
            problem=_problem(facts),
        )

    async def problem(self) -> str | None:
        """What is wrong with the pools; None when all is well."""
        try:
            closed = await self.life.closed()
            found = []
            for pool in self._rooms.store.ls(Pool):
                if pool.id in closed:
                    told: str | None = f"it is not available: {closed[pool.id]['detail']}"
                else:
                    told = _problem(await self._in(pool).pool_show())
                if told is not None:
                    found.append(f"pool {pool.name}: {told}")
            return "; ".join(found) or None
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
            await self._in(pool).cache_resize(pool.cache_bytes)
        return pool

    async def scrub(self, ref: str) -> Task:
        pool = self._rooms.store.get(Pool, ref)
        about = {"pool_id": pool.id}
        return self._rooms.engine.start(
            "pool.scrub", about, target_kind="pool", target_id=pool.id, target_name=pool.name
        )

    # --- the curator ---

    async def curate(self, ref: str) -> Task:
        """Sweep, move and pack anew what is due, now."""
        pool = self._rooms.store.get(Pool, ref)
        about = {"pool_id": pool.id}
        return self._rooms.engine.start(
            "pool.curate", about, target_kind="pool", target_id=pool.id, target_name=pool.name
        )

    async def pause(self, ref: str) -> views.CuratorFacts:
        """Let background work rest until ``resume``; the log is drained all the same."""
        return _curator(await self._in(self._rooms.store.get(Pool, ref)).curator_pause(True))

    async def resume(self, ref: str) -> views.CuratorFacts:
        return _curator(await self._in(self._rooms.store.get(Pool, ref)).curator_pause(False))

    async def hot(self, ref: str) -> list[views.HotGroup]:
        """The groups that were read most in the last 10 minutes."""
        pool = self._rooms.store.get(Pool, ref)
        return [
            views.HotGroup(
                number=facts["number"],
                device=facts["device"] or HOME,
                tier=facts["tier"],
                size_bytes=facts["size_bytes"],
                touches=facts["touches"],
                disk_ids=facts["disks"],
            )
            for facts in await self._in(pool).hot()
        ]

    async def _sweep(self, run: Run) -> None:
        fabric = self._rooms.fabric.of(run.parameters.get("pool_id"))
        run.result.update(await fabric.sweep())
        run.result.update(await fabric.tier())

    async def _recode(self, run: Run) -> None:
        fabric = self._rooms.fabric.of(run.parameters.get("pool_id"))
        facts = await fabric.curate_plan()
        whole, before = max(1, facts["left_bytes"]), facts["groups_recoded"]
        while facts["left_groups"]:
            left = facts["left_bytes"]
            run.progress(1 - left / whole, f"{format_size(left)} in {facts['left_groups']} groups left")
            facts = await fabric.curate_next()
        run.result["groups_recoded"] = facts["groups_recoded"] - before

    # --- devices ---

    async def device_add(self, ref: str, request: ask.PoolDeviceAdd) -> views.PoolDevice:
        """Raises ``Invalid`` (``device.inside``, ``device.keys``), ``Conflict`` (``device.not_empty``,
        ``device.exists``), and what an object store says."""
        pool = self._rooms.store.get(Pool, ref)
        if "://" in request.path:
            return await self._store_add(pool, request)
        if request.path.startswith("/dev/") or blockdevice.is_block_device(Path(request.path)):
            return await self._block_add(pool, request)
        if request.format:
            blockdevice.check(Path(request.path), consent=True)
        path = Path(request.path).resolve()
        if (wrong := entangled(self._rooms, path)) is not None:
            raise Invalid("device.inside", wrong, remedy=OUTSIDE)
        return _device(await self._in(pool).device_add(new_id(), str(path), request.tier))

    async def _store_add(self, pool: Pool, request: ask.PoolDeviceAdd) -> views.PoolDevice:
        """A store that is there already keeps its id: its key is changed."""
        if (request.access_key_id is None) != (request.secret_access_key is None):
            raise Invalid("device.keys", "a key has an id and a secret", remedy="give both, or neither")
        keys = None
        if request.access_key_id is not None:
            keys = {"access_key_id": request.access_key_id, "secret_access_key": request.secret_access_key}
        url = request.path.rstrip("/")
        known = [each["id"] for each in await self._in(pool).device_ls() if each["path"] == url]
        store = {"endpoint": request.endpoint or "", "region": request.region or "", "credentials": keys}
        return _device(await self._in(pool).device_add(known[0] if known else new_id(), url, request.tier, **store))

    async def _block_add(self, pool: Pool, request: ask.PoolDeviceAdd) -> views.PoolDevice:
        """Makes a file system, which has the new device's id as its UUID; the fabric mounts it, now and ever after."""
        source, device_id = Path(request.path), new_id()
        await asyncio.to_thread(blockdevice.check, source, consent=request.format)
        await asyncio.to_thread(blockdevice.make_file_system, source, device_id)
        place = str(self._rooms.paths.device(device_id))
        return _device(await self._in(pool).device_add(device_id, place, request.tier, source=str(source)))

    async def device_drain(self, ref: str, device: str) -> Task:
        """Raises ``NotFound`` (``device.not_found``), ``Conflict`` (``device.home``)."""
        pool = self._rooms.store.get(Pool, ref)
        if device == HOME:
            raise Conflict("device.home", "the pool's own directory stays", remedy="name another device")
        facts = await self._facts(pool.id, device)
        if facts is None:
            raise NotFound("device.not_found", f"the pool has no device {device}", remedy="see 'inn pool show'")
        parameters = {"pool_id": pool.id, "device_id": device}
        parameters |= {name: facts[name] for name in ("path", "tier", "endpoint", "region", "source")}
        return self._rooms.engine.start(
            "pool.device_drain", parameters, target_kind="pool", target_id=pool.id, target_name=pool.name
        )

    async def _facts(self, pool_id: str | None, device_id: str) -> dict[str, Any] | None:
        devices = await self._rooms.fabric.of(pool_id).device_ls()
        return next((each for each in devices if each["id"] == device_id), None)

    async def _drain(self, run: Run) -> None:
        device_id, pool_id = run.parameters["device_id"], run.parameters.get("pool_id")
        if (facts := await self._facts(pool_id, device_id)) is None:
            return
        await self._rooms.fabric.of(pool_id).device_rm(device_id)
        whole = run.context.setdefault("bytes", max(1, facts["group_bytes"]))
        before, unchanged_s = None, 0.0
        while (facts := await self._facts(pool_id, device_id)) is not None:
            left = facts["group_bytes"]
            unchanged_s, before = unchanged_s + _POLL_S if left == before else 0.0, left
            waits = "; waits for room elsewhere, or for a backup to end" if unchanged_s > _PATIENCE_S else ""
            run.progress(max(0.0, 1 - left / whole), f"{format_size(left)} left on {facts['path']}{waits}")
            await asyncio.sleep(_POLL_S)

    async def _keep(self, run: Run) -> None:
        """Cancelled: the device stays, with what it still holds."""
        wanted = dict(run.parameters)
        pool_id = wanted.pop("pool_id", None)
        if await self._facts(pool_id, wanted["device_id"]) is not None:
            await self._rooms.fabric.of(pool_id).device_add(**wanted)
