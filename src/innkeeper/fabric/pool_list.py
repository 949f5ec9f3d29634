"""``pools.json``: which pools a fabric has besides its default one, beside whose directory the list lies."""

from __future__ import annotations

import json
from uuid import UUID

from innkeeper.model.problems import Corrupt
from innkeeper.system.files import FileSystem, write_all

VERSION = 1


def read_list(files: FileSystem, name: str) -> dict[str, str]:
    """Id -> path of each; empty where there is no list. Raises ``Corrupt`` (``pools.format``)."""
    if not files.exists(name):
        return {}
    file = files.open(name)
    try:
        facts = json.loads(file.pread(file.size(), 0))
        if facts["format"] != VERSION:
            raise Corrupt(
                "pools.format",
                f"{name} has format {facts['format']}, this program knows {VERSION}",
                remedy="start the version of Innkeeper that wrote it, or a newer one",
            )
        return {str(UUID(each["id"])): str(each["path"]) for each in facts["pools"]}
    except (ValueError, KeyError, TypeError) as unreadable:
        raise Corrupt(
            "pools.format",
            f"{name} cannot be read",
            cause=str(unreadable),
            remedy="put it back from a backup, or remove it and take the pools in again: inn pool create",
        ) from unreadable


def write_list(files: FileSystem, name: str, pools: dict[str, str]) -> None:
    """Put the list there, whole and on the medium. Raises ``OSError``."""
    facts = {"format": VERSION, "pools": [{"id": key, "path": path} for key, path in pools.items()]}
    fresh = files.open(f"{name}.new", create=True)
    fresh.truncate(0)
    write_all(fresh, [json.dumps(facts).encode()], 0)
    fresh.fdatasync()
    fresh.close()
    files.rename(f"{name}.new", name)
    files.sync_dir(name.rpartition("/")[0])
