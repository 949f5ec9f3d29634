"""Pools: where the fabric keeps disks' data."""

from __future__ import annotations

from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.cache import check_limit
from innkeeper.model import requests as ask
from innkeeper.model import views
from innkeeper.model.problems import Conflict
from innkeeper.model.resources import Pool

DEFAULT_POOL = "default"


class Pools:
    """The ``pool`` noun."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

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
        seen = {name: facts[name] for name in views.PoolDetail.model_fields if name in facts and name not in own}
        trouble = facts["drain_problem"]
        return views.PoolDetail(
            **own,
            **seen,
            figures=views.Figures(**await self._rooms.fabric.figures()),
            problem=facts["read_only"] or (trouble and trouble["detail"]),
        )

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
