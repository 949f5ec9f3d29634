"""Pools with an object store, and a store that counts what is asked of it."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from uuid import uuid4

from frozen_pool import DISK, LIMITS, STORAGE, write

from innkeeper.fabric.devices import HOME
from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.tiering import Move
from innkeeper.model.problems import Unavailable
from innkeeper.system.blobs import Address, Blobs
from innkeeper.system.clock import SimulatedClock
from innkeeper.system.files import Io, RealFiles
from innkeeper.system.stores import open_store

STORE = str(uuid4())


class RoomyFiles(RealFiles):
    """The operating system's files, on a disk that is nearly empty, however full the machine's is."""

    def space(self, path: str) -> tuple[int, int]:
        return 1 << 40, 1 << 39


class Far:
    """A store that counts what is asked of it, and can be made to go away."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.asked: list[str] = []
        self.away = False
        self.inner = open_store(Io(), address)

    def __getattr__(self, name: str) -> object:
        def call(*arguments: object) -> object:
            self.asked.append(name)
            if self.away:
                raise Unavailable("blob.unreachable", "the store does not answer", remedy="wait")
            return getattr(self.inner, name)(*arguments)

        return call


def opened(home: Path, io: Io | None = None) -> Pool:
    return Pool.open(io or Io(), str(home), limits=LIMITS, background=False)


def add(pool: Pool, address: Address, device: str = STORE) -> None:
    keys = asdict(address.credentials) if address.credentials.access_key_id else None
    store = {"endpoint": address.endpoint, "region": address.region, "credentials": keys}
    pool.device_add(device, address.url, "slow", **store)


def filled(home: Path, address: Address, io: Io | None = None) -> Pool:
    """A pool with a disk in several groups, and a store."""
    pool = opened(home, io)
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, 64 << 20, STORAGE)
    add(pool, address)
    write(pool, DISK, {number * BLOCK: os.urandom(BLOCK) for number in range(50)})
    pool.drain()
    pool.writers.leave(HOME)
    return pool


def move(pool: Pool, device: str, numbers: list[int] | None = None) -> None:
    for number in numbers or sorted(pool.store.rows):
        pool._moves = [Move(number, device)]
        pool._move_next()


def where(pool: Pool) -> dict[str, int]:
    return {facts["id"]: facts["groups"] for facts in pool.device_ls()}


def objects(pool: Pool, address: Address) -> list[str]:
    return sorted(found.name for found in open_store(Io(), address).ls(f"{pool.pool_id}/"))


def far_io(stores: dict[str, Far], clock: SimulatedClock | None = None) -> Io:
    def open_far(address: Address, files: object, clock: object) -> Blobs:
        if address.url not in stores:
            stores[address.url] = Far(replace(address, url=address.url.replace("far", "file", 1)))
        return stores[address.url]  # type: ignore[return-value]

    return replace(Io(), files=RoomyFiles(), stores={"far": open_far}, **({"clock": clock} if clock else {}))
