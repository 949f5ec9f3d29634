"""Full backup of an 8 GiB disk of real files, against restic and borg reading the same raw disk; and the cost of the
next one.

The disk is synthesised: regular files of this machine, each beginning on a 4 KiB boundary as in a file system. All
three read from a warm cache and write to new repositories on the same file system; each uses its own default
compression. No hard links or reflinks between the pool and a repository.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

from bench.report import Context, Row, lower
from bench.serve import fabric
from innkeeper.fabric.client import FabricClient
from innkeeper.fabric.nbd.client import NbdClient
from innkeeper.protect.backup import BackupInputs, BackupResult, backup_vm
from innkeeper.protect.repository import Repository
from innkeeper.system import process
from innkeeper.system.paths import Paths

GOAL = 2.0
LATER_GOAL = 50.0
PAGE = 4096
MIB = 1 << 20
_PIECE = 1 * MIB
_SOURCES = ("/usr", "/opt", "/boot", "/etc")
_LEAST_USED = 1536 * MIB
_CHANGES = 64


def real_files() -> Iterator[Path]:
    """Regular files of this machine, in a fixed order."""
    for source in _SOURCES:
        for directory, folders, names in os.walk(source):
            folders.sort()
            for name in sorted(names):
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def make_disk(path: Path, size_bytes: int) -> int:
    """Write the raw disk; returns how much of it is used. Repeats nothing: what the machine lacks stays a hole."""
    used = 0
    with path.open("wb") as disk:
        disk.truncate(size_bytes)
        for source in real_files():
            try:
                with source.open("rb") as file:
                    disk.seek(used)
                    while (piece := file.read(min(_PIECE, size_bytes - used))) and used < size_bytes:
                        disk.write(piece)
                        used += len(piece)
            except OSError:
                continue  # a file that vanished or may not be read
            used = min(size_bytes, -(-used // PAGE) * PAGE)
            if used >= size_bytes:
                break
        disk.flush()
        os.fsync(disk.fileno())
    if used < min(_LEAST_USED, size_bytes):
        raise SystemExit(
            f"this machine has only {used // MIB} MiB of files; the comparison wants {_LEAST_USED // MIB} MiB"
        )
    return used


def warm(path: Path) -> None:
    """Have the file in the page cache, and nothing of others waiting to be written."""
    os.sync()
    if path.is_file():
        _read(path)
        return
    for each in sorted(path.rglob("*")):
        if each.is_file():
            _read(each)


def _read(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(4 * MIB):
            pass


def timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def restic(directory: Path, raw: Path) -> tuple[str, float]:
    """(name and version, seconds of ``restic backup`` into a new repository)."""
    env = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(directory / "restic-cache"), "HOME": str(directory)}
    repository = directory / "restic"
    process.run(["restic", "init", "-r", str(repository)], env=env)
    warm(raw)
    argv = ["restic", "backup", "-q", "-r", str(repository), str(raw)]
    seconds = timed(lambda: process.run(argv, env=env, timeout_s=3600))
    shutil.rmtree(repository)
    return f"restic {process.run(['restic', 'version']).stdout.decode().split()[1]}", seconds


def borg(directory: Path, raw: Path) -> tuple[str, float]:
    """(name and version, seconds of ``borg create`` into a new, unencrypted repository)."""
    env = {
        "BORG_BASE_DIR": str(directory / "borg-base"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        "HOME": str(directory),
    }
    repository = directory / "borg"
    process.run(["borg", "init", "-e", "none", str(repository)], env=env)
    warm(raw)
    argv = ["borg", "create", f"{repository}::disk", str(raw)]
    seconds = timed(lambda: process.run(argv, env=env, timeout_s=3600))
    shutil.rmtree(repository)
    return f"borg {process.run(['borg', '--version']).stdout.decode().split()[1]}", seconds


async def _copy_in(client: FabricClient, nbd: Path, raw: Path, disk_id: str, used_bytes: int) -> None:
    storage_id, attachment = str(uuid4()), str(uuid4())
    await client.storage_create(storage_id)
    await client.disk_create(disk_id, raw.stat().st_size, storage_id)
    attached = await client.attach(attachment, disk_id=disk_id, role="writer", uid=os.geteuid())

    def copy() -> None:
        with raw.open("rb") as file, NbdClient(nbd, attached["export"]) as target:
            for offset in range(0, used_bytes, _PIECE):
                target.submit_write(offset, [file.read(min(_PIECE, used_bytes - offset))])
            target.flush()

    await asyncio.to_thread(copy)
    await client.detach(attachment)
    await client.drain()


async def _change(client: FabricClient, nbd: Path, disk_id: str, used_bytes: int) -> None:
    """Write 4 KiB at ``_CHANGES`` scattered places."""
    random = Random(1)
    attachment = str(uuid4())
    attached = await client.attach(attachment, disk_id=disk_id, role="writer", uid=os.geteuid())

    def write() -> None:
        with NbdClient(nbd, attached["export"]) as target:
            for _ in range(_CHANGES):
                target.submit_write(random.randrange(used_bytes // PAGE) * PAGE, [random.randbytes(PAGE)])
            target.flush()

    await asyncio.to_thread(write)
    await client.detach(attachment)


async def _innkeeper(paths: Paths, directory: Path, raw: Path, used_bytes: int) -> tuple[BackupResult, BackupResult]:
    """A full backup and, after a small change, the next one."""
    client = FabricClient(paths.fabric_socket, patience_s=60)
    await client.connect()
    disk_id = str(uuid4())
    await _copy_in(client, paths.nbd_socket, raw, disk_id, used_bytes)
    repository = Repository.create(directory / "innkeeper")

    async def back_up(base: str | None) -> BackupResult:
        snapshot_id, backup_id = str(uuid4()), str(uuid4())
        await client.snapshot_create({snapshot_id: disk_id})
        inputs = BackupInputs(
            backup_id, str(uuid4()), "bench", {}, datetime.now(UTC), {disk_id: snapshot_id}, base_backup_id=base
        )
        return await backup_vm(repository, inputs, client, paths.nbd_socket)

    try:
        await asyncio.to_thread(warm, paths.pool)
        full = await back_up(None)
        await _change(client, paths.nbd_socket, disk_id, used_bytes)
        return full, await back_up(full.backup_id)
    finally:
        await client.close()


def rows(context: Context) -> list[Row]:
    """The rows of the table."""
    size_bytes = (1 << 30) if context.quick else (8 << 30)
    raw = context.work / "disk.raw"
    used_bytes = make_disk(raw, size_bytes)
    peers = [restic(context.work, raw), borg(context.work, raw)]
    with fabric(context.work) as paths:
        full, after = asyncio.run(_innkeeper(paths, context.work, raw, used_bytes))
    what = f"full backup, {size_bytes >> 30} GiB disk, {used_bytes / (1 << 30):.1f} GiB of real files"
    result = [lower(what, full.duration_s, "s", peer, seconds, GOAL) for peer, seconds in peers]
    again = f"next backup, {_CHANGES} scattered 4 KiB writes: stored"
    result.append(lower(again, after.stored_bytes / MIB, "MiB", "full backup", full.stored_bytes / MIB, LATER_GOAL))
    return result
