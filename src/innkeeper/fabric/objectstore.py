"""A device's object store: its mark, by which it is known again, and the keys to it.

The keys are in ``POOL/credentials/<device id>.json``, which only the fabric's user may read; they are in no log and no
answer.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict
from typing import Protocol
from uuid import UUID

from innkeeper.fabric.objects import parse_object_name
from innkeeper.model.problems import Conflict, Corrupt, NotFound, Problem, Unavailable
from innkeeper.system.blobs import Address, Blobs, Credentials
from innkeeper.system.files import FileSystem, Io, write_all
from innkeeper.system.stores import open_store

PATIENCE_S = 60.0
"""How long reading and writing groups waits for a store that does not answer."""
MARK_VERSION = 1


class StoreFacts(Protocol):
    """What of a device says where its store is."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def endpoint(self) -> str: ...
    @property
    def region(self) -> str: ...


def open_blobs(io: Io, device: StoreFacts, keys: Credentials, patience_s: float = PATIENCE_S) -> Blobs:
    """The store of a device. Raises ``Invalid`` (``blob.url``)."""
    return open_store(io, Address(device.path, device.endpoint, device.region, keys, patience_s))


def mark(blobs: Blobs, pool_id: UUID, device_id: str) -> None:
    """Put the device's mark into a store that has no groups of another device of the pool; repeated, nothing.

    Raises ``Conflict`` (``device.not_empty``), and what the store says.
    """
    try:
        check_mark(blobs, pool_id, device_id)
        return
    except Unavailable as missing:
        if missing.code != "device.missing":
            raise
    except Corrupt as foreign:
        if any(parse_object_name(facts.name.rpartition("/")[2]) for facts in blobs.ls(f"{pool_id}/")):
            detail = "there are groups of this pool already, which another device has"
            remedy = "give another prefix, or remove them there if nothing needs them"
            raise Conflict("device.not_empty", detail, cause=foreign.detail, remedy=remedy) from foreign
        blobs.delete(_mark_name(pool_id))
    facts = {"format": MARK_VERSION, "pool": str(pool_id), "device": device_id}
    blobs.put(_mark_name(pool_id), [json.dumps(facts).encode()])


def unmark(blobs: Blobs, pool_id: UUID) -> None:
    """Take the mark away, if the store lets us."""
    with suppress(Problem):
        blobs.delete(_mark_name(pool_id))


def remove_all(blobs: Blobs, pool_id: UUID) -> int:
    """Remove all that is a pool's; how many objects."""
    names = [found.name for found in blobs.ls(f"{pool_id}/")]
    for name in names:
        blobs.delete(name)
    return len(names)


def check_mark(blobs: Blobs, pool_id: UUID, device_id: str) -> None:
    """See that the store is the device's.

    Raises ``Unavailable`` (``device.missing``), ``Corrupt`` (``device.foreign``), and what the store says.
    """
    try:
        facts = json.loads(blobs.get(_mark_name(pool_id)))
        found = facts["device"], facts["format"]
    except NotFound as missing:
        if missing.code != "blob.absent":
            raise
        detail = "the store has nothing of this pool"
        remedy = "see that URL and endpoint are right, and that nobody has emptied the bucket"
        raise Unavailable("device.missing", detail, cause=missing.detail, remedy=remedy) from missing
    except (ValueError, KeyError, TypeError) as unreadable:
        found = "what cannot be read", MARK_VERSION
        del unreadable
    if found != (device_id, MARK_VERSION):
        remedy = "see that URL and endpoint are right; two pools may not share what is below one pool's id"
        raise Corrupt("device.foreign", f"the store is marked for device {found[0]}", remedy=remedy)


def _mark_name(pool_id: UUID) -> str:
    return f"{pool_id}/device.json"


def keys_of(files: FileSystem, pool_path: str, device_id: str) -> Credentials:
    """The keys for a device's store; none where none were given."""
    name = f"{pool_path}/credentials/{device_id}.json"
    if not files.exists(name):
        return Credentials()
    file = files.open(name)
    try:
        return Credentials(**json.loads(file.pread(file.size(), 0)))
    except (ValueError, TypeError):
        raise Corrupt("pool.format", f"{name} cannot be read", remedy="add the device again, with its keys") from None


def write_keys(files: FileSystem, pool_path: str, device_id: str, keys: Credentials | None) -> None:
    """Keep the keys for a device's store in a file that only its owner may read, or forget them. Raises ``OSError``."""
    directory = f"{pool_path}/credentials"
    name = f"{directory}/{device_id}.json"
    if keys is None:
        if files.exists(name):
            files.unlink(name)
        return
    files.mkdir(directory)
    file = files.open(f"{name}.new", create=True)
    file.truncate(0)
    write_all(file, [json.dumps(asdict(keys)).encode()], 0)
    file.fdatasync()
    file.close()
    files.rename(f"{name}.new", name)
    files.sync_dir(directory)
