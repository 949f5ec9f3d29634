"""Storages: policies that disks live under."""

from __future__ import annotations

from dataclasses import asdict

from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.policy import Policy
from innkeeper.model import requests as ask
from innkeeper.model import views
from innkeeper.model.problems import Conflict
from innkeeper.model.resources import Disk, Storage

DEFAULT_STORAGE = "default"


def _policy(storage: Storage) -> Policy:
    return Policy(storage.compression, storage.level, storage.dedup)


class Storages:
    """The ``storage`` noun."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def settle(self) -> None:
        """Give the fabric every policy as it is desired; the default storage is made when the inn is founded."""
        storages = self._rooms.store.ls(Storage)
        if not any(storage.name == DEFAULT_STORAGE for storage in storages):
            storages.append(self._rooms.store.create(Storage(name=DEFAULT_STORAGE)))
        for storage in storages:
            try:
                await self._make(storage)
            except Conflict:  # it is there with another policy: a change was not carried out to its end
                await self._rooms.fabric.storage_set(storage.id, **asdict(_policy(storage)))

    async def _make(self, storage: Storage) -> None:
        await self._rooms.fabric.storage_create(storage.id, **asdict(_policy(storage)))

    def resolve(self, ref: str | None) -> Storage:
        """The storage meant by ``ref``; the default one when it is None."""
        return self._rooms.store.get(Storage, ref or DEFAULT_STORAGE)

    async def create(self, request: ask.StorageCreate, *, dry_run: bool = False) -> Storage | views.Plan:
        """Raises ``Conflict`` (``storage.name_taken``), ``Invalid`` (``storage.level``)."""
        self._rooms.check_name_free(Storage, request.name)
        policy = Policy().changed(compression=request.compression, level=request.level, dedup=request.dedup)
        if dry_run:
            level = f" level {policy.level}" if policy.level else ""
            return views.Plan(
                summary=f"create storage {request.name}",
                steps=[f"compression {policy.compression}{level}, dedup {'on' if policy.dedup else 'off'}"],
            )
        storage = Storage(name=request.name, labels=request.labels, **asdict(policy))
        await self._make(storage)
        return self._rooms.store.create(storage)

    async def ls(self) -> list[Storage]:
        return self._rooms.store.ls(Storage)

    async def show(self, ref: str) -> views.StorageDetail:
        storage = self._rooms.store.get(Storage, ref)
        (facts,) = [each for each in await self._rooms.fabric.storage_ls() if each["id"] == storage.id]
        own = {name: getattr(storage, name) for name in Storage.model_fields}
        figures = views.Figures(**await self._rooms.fabric.figures(storage_id=storage.id))
        return views.StorageDetail(**own, disks=facts["disks"], logical_bytes=facts["logical_bytes"], figures=figures)

    async def set(self, ref: str, request: ask.StorageSet, *, revision: int | None = None) -> Storage:
        """Raises ``Conflict`` (``storage.default``, ``state.stale``), ``Invalid`` (``storage.level``)."""
        storage = self._rooms.store.get(Storage, ref)
        if storage.name == DEFAULT_STORAGE and request.name not in (None, DEFAULT_STORAGE):
            raise Conflict("storage.default", "the default storage keeps its name", remedy="create another storage")
        wanted = request.model_dump(exclude_unset=True)
        policy = _policy(storage).changed(**{name: wanted.pop(name, None) for name in asdict(_policy(storage))})
        kept = {name: value for name, value in wanted.items() if value is not None}
        changed = self._rooms.change(storage, revision, **kept, **asdict(policy))
        if policy != _policy(storage):
            await self._rooms.fabric.storage_set(storage.id, **asdict(policy))
        return changed

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
