"""A pool with a disk, and a repository, for tests of protection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
from pool_lab import PoolLab

from innkeeper.protect.backup import BackupInputs, BackupResult, backup_vm
from innkeeper.protect.repository import Repository
from innkeeper.protect.restore import restore_disks

BLOCK = 65536
VM_ID = str(uuid4())


class Lab:
    """One vm with some disks, one repository."""

    def __init__(self, fabric: PoolLab, repository: Repository) -> None:
        self.fabric = fabric
        self.repository = repository
        self.random = Random(5)
        self.taken = datetime(2030, 1, 1, tzinfo=UTC)

    def some(self, length: int) -> bytes:
        """Bytes that compress to about a half."""
        return b"".join(self.random.randbytes(512) + bytes(512) for _ in range(-(-length // 1024)))[:length]

    def backup(
        self,
        disks: dict[str, str],
        base: str | None = None,
        repository: Repository | None = None,
        tpm: bytes | None = None,
        backup_id: str | None = None,
    ) -> BackupResult:
        self.taken += timedelta(hours=1)
        inputs = BackupInputs(
            backup_id=backup_id or str(uuid4()),
            vm_id=VM_ID,
            vm_name="web",
            vm={"name": "web", "spec": {"cpus": 2}},
            taken_at=self.taken,
            disks=disks,
            tpm=tpm,
            base_backup_id=base,
        )
        target = repository or self.repository
        return asyncio.run(backup_vm(target, inputs, self.fabric, self.fabric.nbd_socket, pack_bytes=256 * 1024))

    def restored(self, backup_id: str, disk_id: str, repository: Repository | None = None) -> bytes:
        """The content of that disk of the restore point, through a real restore."""
        new = str(uuid4())
        target = repository or self.repository
        asyncio.run(
            restore_disks(
                target, backup_id, self.fabric, self.fabric.nbd_socket, {disk_id: new}, self.fabric.storage_id
            )
        )
        data = self.fabric.content(disk_id=new)
        self.fabric.pool.disk_rm(new)
        return data


@pytest.fixture
def fabric(tmp_path: Path) -> Iterator[PoolLab]:
    lab = PoolLab(tmp_path)
    yield lab
    lab.close()


@pytest.fixture
def lab(fabric: PoolLab, tmp_path: Path) -> Lab:
    return Lab(fabric, Repository.create(tmp_path / "repository"))
