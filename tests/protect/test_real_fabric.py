"""Backup and restore against the fabric's own process, over its control and NBD sockets."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest

from innkeeper.fabric.client import FabricClient
from innkeeper.fabric.nbd.client import NbdClient
from innkeeper.model.problems import Problem
from innkeeper.protect.backup import BackupInputs, backup_vm
from innkeeper.protect.repository import Repository
from innkeeper.protect.restore import restore_disks
from innkeeper.protect.verify import verify

MIB = 1 << 20
FABRIC = (sys.executable, "-m", "innkeeper", "fabric")


@pytest.fixture
def sockets(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Control and NBD socket of a fabric process of this test."""
    control, nbd = tmp_path / "c.sock", tmp_path / "n.sock"
    pool = str(tmp_path / "pool")
    subprocess.run([*FABRIC, "init", pool], check=True, stdout=subprocess.DEVNULL)
    process = subprocess.Popen([*FABRIC, "serve", pool, "--socket", str(nbd), "--control", str(control)])
    yield control, nbd
    process.terminate()
    assert process.wait(timeout=60) == 0


async def write(client: FabricClient, nbd: Path, disk_id: str, pieces: dict[int, bytes]) -> None:
    attachment = str(uuid4())
    export = (await client.attach(attachment, disk_id=disk_id, role="writer", uid=os.geteuid()))["export"]

    def send() -> None:
        with NbdClient(nbd, export) as target:
            for offset, data in pieces.items():
                target.submit_write(offset, [data])
            target.flush()

    await asyncio.to_thread(send)
    await client.detach(attachment)


async def content(client: FabricClient, nbd: Path, **subject: str) -> bytes:
    attachment = str(uuid4())
    export = (await client.attach(attachment, role="reader", uid=os.geteuid(), **subject))["export"]

    def receive() -> bytes:
        with NbdClient(nbd, export) as source:
            pieces: dict[int, bytes] = {}
            for offset in range(0, source.size_bytes, MIB):
                length = min(MIB, source.size_bytes - offset)
                source.submit_read(offset, length, lambda data, offset=offset: pieces.__setitem__(offset, data))
            source.settle()
            return b"".join(pieces[offset] for offset in sorted(pieces))

    data = await asyncio.to_thread(receive)
    await client.detach(attachment)
    return data


@pytest.mark.parametrize("compression", ["off", "lz4", "zstd"])
def test_full_incremental_restore(sockets: tuple[Path, Path], tmp_path: Path, compression: str) -> None:
    control, nbd = sockets
    random = Random(3)
    repository = Repository.create(tmp_path / "repository")

    async def run() -> None:
        client = FabricClient(control, patience_s=30)
        await client.connect()
        storage, disk, vm = str(uuid4()), str(uuid4()), str(uuid4())
        await client.storage_create(storage, compression=compression)
        await client.disk_create(disk, 100 * MIB + 512, storage)
        made: list[tuple[str, str]] = []
        for changes in (
            {at * MIB: random.randbytes(MIB // 2) + bytes(MIB // 2) for at in (0, 1, 2, 60, 99)},
            {3 * MIB + 8192: random.randbytes(4096), 100 * MIB: b"the end".ljust(512, b".")},
        ):
            await write(client, nbd, disk, changes)
            snapshot, backup = str(uuid4()), str(uuid4())
            await client.snapshot_create({snapshot: disk})
            if not made:
                await client.drain()
            inputs = BackupInputs(
                backup,
                vm,
                "web",
                {},
                datetime.now(UTC),
                {disk: snapshot},
                base_backup_id=made[-1][0] if made else None,
            )
            done = await backup_vm(repository, inputs, client, nbd)
            made.append((backup, snapshot))
        assert done.base_backup_id == made[0][0]
        assert done.changed_bytes == 2 * 65536
        assert done.stored_bytes < 64 * 1024
        for backup, snapshot in made:
            new = str(uuid4())
            await restore_disks(repository, backup, client, nbd, {disk: new}, storage)
            assert await content(client, nbd, disk_id=new) == await content(client, nbd, snapshot_id=snapshot)
        assert (await verify(repository)).ok
        assert await client.attachment_ls() == []
        await client.close()

    asyncio.run(run())


def test_exports_that_are_none(sockets: tuple[Path, Path]) -> None:
    control, nbd = sockets

    async def run() -> None:
        client = FabricClient(control, patience_s=30)
        await client.connect()
        await client.close()

    asyncio.run(run())
    with pytest.raises(Problem) as caught:
        NbdClient(nbd, str(uuid4()))
    assert caught.value.code == "nbd.refused"
    with pytest.raises(Problem) as caught:
        NbdClient(nbd.with_name("absent.sock"), "x")
    assert caught.value.code == "nbd.connection"
