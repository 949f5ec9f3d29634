"""Storages: policies that disks live under."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from innkeeper.daemon.pools import DEFAULT_POOL
from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.policy import Policy
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Problem
from innkeeper.model.resources import Disk, Pool, Qos, Storage
from innkeeper.model.sizes import format_size

DEFAULT_STORAGE = "default"


_POLICY = tuple(field.name for field in fields(Policy))
_NONE: dict[str, Any] = {"cold_level": 0, "quota_bytes": 0, "reservation_bytes": 0, "tier": "", "qos_id": ""}
"""What the fabric says for none."""


def _policy(storage: Storage) -> Policy:
    wanted: dict[str, Any] = {name: getattr(storage, name) for name in _POLICY}
    return Policy(**{name: _NONE[name] if value is None else value for name, value in wanted.items()})


def _fields(policy: Policy) -> dict[str, Any]:
    """What a storage's document says of a policy."""
    return {name: None if name in _NONE and value == _NONE[name] else value for name, value in asdict(policy).items()}


def _steps(policy: Policy) -> list[str]:
    """What a policy amounts to, for people."""
    level = f" level {policy.level}" if policy.level else ""
    steps = [f"compression {policy.compression}{level}, dedup {'on' if policy.dedup else 'off'}"]
    if policy.cold_level:
        steps.append(f"data not read for {policy.cold_after_s:.0f} s packed with zstd level {policy.cold_level}")
    if policy.quota_bytes:
        steps.append(f"at most {format_size(policy.quota_bytes)} of data")
    if policy.reservation_bytes:
        steps.append(f"{format_size(policy.reservation_bytes)} kept free for its disks")
    if policy.tier:
        steps.append(f"data stays on {policy.tier} devices")
    return steps


class Storages:
    """The ``storage`` noun."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def settle(self) -> None:
        """Give the fabric every policy as it is desired; the default storage is made when the inn is founded."""
        storages = self._rooms.store.ls(Storage)
        default_pool = self._rooms.store.get(Pool, DEFAULT_POOL)
        if not any(storage.name == DEFAULT_STORAGE for storage in storages):
            storages.append(self._rooms.store.create(Storage(name=DEFAULT_STORAGE)))
        for storage in storages:
            if storage.pool_id is None:
                self._rooms.change(storage, None, pool_id=default_pool.id)
        closed = {each["id"] for each in await self._rooms.fabric.pool_ls() if each["problem"]}
        for pool in self._rooms.store.ls(Pool):
            if pool.id not in closed:
                await self.tell(pool)

    async def tell(self, pool: Pool) -> None:
        """Give an open pool the policies of its storages."""
        for storage in self._rooms.store.find(Storage, pool_id=pool.id):
            try:
                await self._make(storage)
            except Conflict:  # it is there with another policy: a change was not carried out to its end
                await self._rooms.fabric.storage_set(storage.id, **asdict(_policy(storage)))

    async def _make(self, storage: Storage) -> None:
        await self._rooms.fabric.of(str(storage.pool_id)).storage_create(storage.id, **asdict(_policy(storage)))

    def resolve(self, ref: str | None) -> Storage:
        """The storage meant by ``ref``; the default one when it is None."""
        return self._rooms.store.get(Storage, ref or DEFAULT_STORAGE)

    async def create(self, request: ask.StorageCreate, *, dry_run: bool = False) -> Storage | views.Plan:
        """Raises ``Conflict`` (``storage.name_taken``), ``Invalid`` (``storage.level``, ``storage.quota``), ``NoSpace``
        (``pool.promised``)."""
        self._rooms.check_name_free(Storage, request.name)
        own = {"name", "labels", "pool"}
        policy = Policy().changed(**self._wanted(request.model_dump(exclude=own, exclude_unset=True)))
        pool = self._rooms.store.get(Pool, request.pool or DEFAULT_POOL)
        if dry_run:
            return views.Plan(summary=f"create storage {request.name}", steps=[f"in pool {pool.name}", *_steps(policy)])
        storage = Storage(name=request.name, labels=request.labels, pool_id=pool.id, **_fields(policy))
        await self._make(storage)
        return self._rooms.store.create(storage)

    async def ls(self) -> list[Storage]:
        return self._rooms.store.ls(Storage)

    async def show(self, ref: str) -> views.StorageDetail:
        storage = self._rooms.store.get(Storage, ref)
        storages = await self._rooms.fabric.of(str(storage.pool_id)).storage_ls()
        (facts,) = [each for each in storages if each["id"] == storage.id]
        own = {name: getattr(storage, name) for name in Storage.model_fields}
        figures = views.Figures(**await self._rooms.fabric.figures(storage_id=storage.id))
        return views.StorageDetail(**own, disks=facts["disks"], logical_bytes=facts["logical_bytes"], figures=figures)

    async def set(self, ref: str, request: ask.StorageSet, *, revision: int | None = None) -> Storage:
        """Raises ``Conflict`` (``storage.default``, ``state.stale``), ``Invalid`` (``storage.level``,
        ``storage.quota``), ``NoSpace`` (``pool.promised``)."""
        storage = self._rooms.store.get(Storage, ref)
        if storage.name == DEFAULT_STORAGE and request.name not in (None, DEFAULT_STORAGE):
            raise Conflict("storage.default", "the default storage keeps its name", remedy="create another storage")
        wanted = request.model_dump(exclude_unset=True)
        kept = {name: wanted.pop(name) for name in ("name", "labels") if name in wanted}
        kept = {name: value for name, value in kept.items() if value is not None}
        policy = _policy(storage).changed(**self._wanted(wanted))
        if policy != _policy(storage):
            await self._rooms.fabric.storage_set(storage.id, **asdict(policy))
        try:
            return self._rooms.change(storage, revision, **kept, **_fields(policy))
        except Problem:
            await self._rooms.fabric.storage_set(storage.id, **asdict(_policy(storage)))
            raise

    def _wanted(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What was asked for as the fabric says it; None where nothing changes."""
        if "qos" in asked:
            ref = asked.pop("qos")
            asked["qos_id"] = self._rooms.store.get(Qos, ref).id if ref is not None else None
        return {name: _NONE.get(name) if value is None else value for name, value in asked.items()}

    async def rm(self, ref: str) -> Storage:
        """Raises ``Conflict`` (``storage.default``, ``storage.in_use``)."""
        storage = self._rooms.store.get(Storage, ref)
        if storage.name == DEFAULT_STORAGE:
            raise Conflict("storage.default", "the default storage cannot be removed", remedy="remove another one")
        users = [disk.name for disk in self._rooms.store.find(Disk, storage_id=storage.id)]
        if users:
            raise Conflict(
                "storage.in_use",
                f"storage {storage.name!r} holds {len(users)} disks",
                cause=", ".join(users[:5]),
                remedy="remove them first",
            )
        await self._rooms.fabric.storage_rm(storage.id)
        self._rooms.store.delete("storage", storage.id)
        return storage
