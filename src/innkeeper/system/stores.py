"""The drivers of blobs by the scheme of their URL."""

from __future__ import annotations

from collections.abc import Callable

from innkeeper.model.problems import Invalid
from innkeeper.system.blobs import Address, Blobs
from innkeeper.system.clock import Clock
from innkeeper.system.fileblobs import FileBlobs
from innkeeper.system.files import FileSystem, Io
from innkeeper.system.objectblobs import open_memory, open_s3

Driver = Callable[[Address, FileSystem, Clock], Blobs]

DRIVERS: dict[str, Driver] = {
    "file": FileBlobs.open,
    "memory": open_memory,
    "s3": open_s3,
}
"""Scheme -> how to open what is at an address."""


def open_store(io: Io, address: Address) -> Blobs:
    """The blobs at an address. Raises ``Invalid`` (``blob.url``)."""
    drivers = {**DRIVERS, **io.stores}
    if address.scheme not in drivers:
        raise Invalid(
            "blob.url", f"{address.url!r} is no store", remedy=f"use {', '.join(f'{one}://' for one in drivers)}"
        )
    return drivers[address.scheme](address, io.files, io.clock)
