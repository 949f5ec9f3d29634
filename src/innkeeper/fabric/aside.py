"""Setting files aside: a repair leaves what it replaces under another name, in case somebody can do better."""

from __future__ import annotations

from innkeeper.system.files import FileSystem, write_all

CHUNK_BYTES = 1 << 20


def aside_name(files: FileSystem, path: str) -> str:
    """``path.broken-<n>``, the first that is free."""
    number = 1
    while files.exists(f"{path}.broken-{number}"):
        number += 1
    return f"{path}.broken-{number}"


def set_aside(files: FileSystem, path: str) -> str:
    """Rename a file; its new name."""
    name = aside_name(files, path)
    files.rename(path, name)
    files.sync_dir(path.rpartition("/")[0])
    return name


def copy_aside(files: FileSystem, path: str) -> str:
    """Copy a file that goes on being used; the copy's name."""
    name = aside_name(files, path)
    source, copy = files.open(path), files.open(name, create=True)
    try:
        for offset in range(0, source.size(), CHUNK_BYTES):
            write_all(copy, [source.pread(CHUNK_BYTES, offset)], offset)
        copy.fdatasync()
    finally:
        source.close()
        copy.close()
    files.sync_dir(path.rpartition("/")[0])
    return name
