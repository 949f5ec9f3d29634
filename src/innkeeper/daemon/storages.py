"""Storages: policies that disks live under."""

from __future__ import annotations

from innkeeper.daemon.rooms import Rooms
from innkeeper.model import requests as ask
from innkeeper.model import views
from innkeeper.model.problems import Conflict
from innkeeper.model.resources import Disk, Storage

DEFAULT_STORAGE = "default"


class Storages:
    """The ``storage`` noun."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def found_default(self) -> Storage:
        """The storage that disks live in unless told otherwise; made when the inn is founded."""
        for storage in self._rooms.store.ls(Storage):
            if storage.name == DEFAULT_STORAGE:
                await self._make(storage)
                return storage
        storage = Storage(name=DEFAULT_STORAGE)
        await self._make(storage)
        return self._rooms.store.create(storage)

    async def _make(self, storage: Storage) -> None:
        await self._rooms.fabric.storage_create(storage.id, compression=storage.compression, dedup=storage.dedup)

    def resolve(self, ref: str | None) -> Storage:
        """The storage meant by ``ref``; the default one when it is None."""
        return self._rooms.store.get(Storage, ref or DEFAULT_STORAGE)

    async def create(self, request: ask.StorageCreate, *, dry_run: bool = False) -> Storage | views.Plan:
        self._rooms.check_name_free(Storage, request.name)
        if dry_run:
            return views.Plan(
                summary=f"create storage {request.name}",
                steps=[f"compression {request.compression}, dedup {'on' if request.dedup else 'off'}"],
            )
        storage = Storage(**request.model_dump())
        await self._make(storage)
        return self._rooms.store.create(storage)

    async def ls(self) -> list[Storage]:
        return self._rooms.store.ls(Storage)

    async def show(self, ref: str) -> Storage:
        return self._rooms.store.get(Storage, ref)

    async def set(self, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> Storage:
        storage = self._rooms.store.get(Storage, ref)
        if storage.name == DEFAULT_STORAGE and request.name not in (None, DEFAULT_STORAGE):
            raise Conflict("storage.default", "the default storage keeps its name", remedy="create another storage")
        return self._rooms.apply_set(storage, request, revision)

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
