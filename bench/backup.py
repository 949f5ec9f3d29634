"""Full backup of an 8 GiB disk of real files, against restic and borg reading the same raw disk; and the cost of the
next one.

Run alone: ``python -m bench.backup [--directory DIR] [--size-gib 8]``. The disk is synthesised: regular files of this
machine, each beginning on a 4 KiB boundary as in a file system. All three read from a warm cache and write to new
repositories on the same file system; each uses its own default compression. No hard links or reflinks between the
pool and a repository.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

from innkeeper.fabric.client import FabricClient
from innkeeper.fabric.nbd.client import NbdClient
from innkeeper.protect.backup import BackupInputs, BackupResult, backup_vm
from innkeeper.protect.repository import Repository
from innkeeper.system import process

Row = dict[str, Any]
GOAL = 2.0
PAGE = 4096
MIB = 1 << 20
_PIECE = 1 * MIB
_SOURCES = ("/usr", "/opt", "/var/lib", "/boot", "/etc")
_LEAST_USED = 1536 * MIB
_CHANGES = 64
_SERVE = (
    "import sys; from pathlib import Path; from innkeeper.fabric import service, keeper; "
    "pool, nbd, control = map(Path, sys.argv[1:]); service.run(pool, keeper.listen(nbd), control)"
)


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
        with path.open("rb") as file:
            while file.read(4 * MIB):
                pass
        return
    for each in sorted(path.rglob("*")):
        if each.is_file():
            warm_file = each.open("rb")
            with warm_file:
                while warm_file.read(4 * MIB):
                    pass


@contextmanager
def fabric_process(directory: Path) -> Iterator[tuple[Path, Path]]:
    """A fabric of its own; yields its control and NBD socket."""
    control, nbd = directory / "control.sock", directory / "nbd.sock"
    child = subprocess.Popen([sys.executable, "-c", _SERVE, str(directory / "pool"), str(nbd), str(control)])
    try:
        yield control, nbd
    finally:
        child.terminate()
        child.wait(timeout=120)


def timed(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def restic(directory: Path, raw: Path) -> tuple[str, float]:
    """(version, seconds of ``restic backup`` into a new repository)."""
    env = {"RESTIC_PASSWORD": "bench", "RESTIC_CACHE_DIR": str(directory / "restic-cache"), "HOME": str(directory)}
    repository = directory / "restic"
    process.run(["restic", "init", "-r", str(repository)], env=env)
    warm(raw)
    argv = ["restic", "backup", "-q", "-r", str(repository), str(raw)]
    seconds = timed(lambda: process.run(argv, env=env, timeout_s=3600))
    shutil.rmtree(repository)
    return process.run(["restic", "version"]).stdout.decode().split()[1], seconds


def borg(directory: Path, raw: Path) -> tuple[str, float]:
    """(version, seconds of ``borg create`` into a new, unencrypted repository)."""
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
    return process.run(["borg", "--version"]).stdout.decode().split()[1], seconds


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


async def _innkeeper(directory: Path, raw: Path, used_bytes: int) -> tuple[BackupResult, BackupResult]:
    """A full backup and, after a small change, the next one."""
    pool = directory / "pool"
    with fabric_process(directory) as (control, nbd):
        client = FabricClient(control, patience_s=60)
        await client.connect()
        disk_id = str(uuid4())
        await _copy_in(client, nbd, raw, disk_id, used_bytes)
        repository = Repository.create(directory / "innkeeper")

        async def back_up(base: str | None) -> BackupResult:
            snapshot_id, backup_id = str(uuid4()), str(uuid4())
            await client.snapshot_create({snapshot_id: disk_id})
            inputs = BackupInputs(
                backup_id, str(uuid4()), "bench", {}, datetime.now(UTC), {disk_id: snapshot_id}, base_backup_id=base
            )
            return await backup_vm(repository, inputs, client, nbd)

        await asyncio.to_thread(warm, pool)
        full = await back_up(None)
        await _change(client, nbd, disk_id, used_bytes)
        after = await back_up(full.backup_id)
        await client.close()
    return full, after


def measure(directory: Path, size_bytes: int = 8 << 30) -> list[Row]:
    """The rows of the table; ``directory`` is emptied."""
    raw = directory / "disk.raw"
    used_bytes = make_disk(raw, size_bytes)
    peers = {"restic": restic(directory, raw), "borg": borg(directory, raw)}
    full, after = asyncio.run(_innkeeper(directory, raw, used_bytes))
    rows: list[Row] = []
    for peer, (version, seconds) in peers.items():
        ratio = seconds / full.duration_s
        rows.append(
            {
                "name": f"full backup, {size_bytes >> 30} GiB disk, {used_bytes / (1 << 30):.1f} GiB of real files",
                "value": round(full.duration_s, 2),
                "unit": "s",
                "peer": f"{peer} {version}",
                "peer_value": round(seconds, 2),
                "ratio": round(ratio, 2),
                "goal": f">= {GOAL:g} x",
                "met": ratio >= GOAL,
            }
        )
    rows.append(
        {
            "name": f"next backup after {_CHANGES} scattered writes of 4 KiB: bytes stored",
            "value": after.stored_bytes,
            "unit": "bytes",
            "peer": "the full backup",
            "peer_value": full.stored_bytes,
            "ratio": round(full.stored_bytes / after.stored_bytes, 1),
            "goal": None,
            "met": None,
        }
    )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.backup")
    parser.add_argument("--directory", type=Path, default=Path("/var/tmp"))
    parser.add_argument("--size-gib", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="inn-bench-", dir=options.directory) as directory:
        for row in measure(Path(directory), options.size_gib << 30):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
