"""Clones of one template share what is cached of it: each extent is read from its group once, whoever reads it."""

from __future__ import annotations

import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

from fabric_process import FabricProcess, fabric_process
from nbd_lab import MIB, RawClient

from innkeeper.fabric.nbd import protocol as p

CLONES = 20
SIZE = 32 * MIB
BLOCK = 65536


def content(block: int) -> bytes:
    """Half of it noise, so that it is stored compressed; every eighth block is like another."""
    return random.Random(block % 448).randbytes(BLOCK // 2) + bytes([block % 448 % 251]) * (BLOCK // 2)


def connected(fabric: FabricProcess, **subject: str) -> RawClient:
    client = RawClient(fabric.paths.nbd_socket)
    client.greet()
    client.go(fabric.attach(**subject, role="writer", uid=os.geteuid()))
    return client


def template(fabric: FabricProcess) -> str:
    """A snapshot of a disk that has been written and drained."""
    disk_id, snapshot_id = str(uuid4()), str(uuid4())
    fabric.ask("disk_create", disk_id, SIZE, fabric.storage_id)
    writer = connected(fabric, disk_id=disk_id)
    for block in range(SIZE // BLOCK):
        assert writer.ask(p.Command.WRITE, block * BLOCK, data=content(block)).error == 0
    writer.close()
    fabric.ask("snapshot_create", {snapshot_id: disk_id})
    fabric.ask("drain")
    return snapshot_id


def boot(client: RawClient, seed: int) -> None:
    """Read all of a clone as a boot would: in pieces, here and there, some of it twice; and write a little."""
    chance = random.Random(seed)
    blocks = [*range(SIZE // BLOCK), *chance.sample(range(SIZE // BLOCK), 64)]
    if seed % 2:
        chance.shuffle(blocks)
    for block in blocks:
        at = chance.randrange(12) * 4096
        found = client.ask(p.Command.READ, block * BLOCK + at, 16384)
        assert found.data == content(block)[at : at + 16384]


def test_twenty_clones_read_each_extent_once(tmp_path: Path) -> None:
    with fabric_process(tmp_path / "inn") as fabric:
        fabric.ask("cache_resize", 2 * SIZE)
        snapshot_id = template(fabric)
        fabric.kill()  # what was written is in no cache of the next one
        clones = []
        for _ in range(CLONES):
            clone = str(uuid4())
            fabric.ask("disk_clone", clone, snapshot_id)
            clones.append(connected(fabric, disk_id=clone))
        for group in (fabric.paths.pool / "groups").iterdir():
            with group.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        before = fabric.ask("pool_show")["cache"]
        with ThreadPoolExecutor(CLONES) as executor:
            list(executor.map(boot, clones, range(CLONES)))
        after = fabric.ask("pool_show")["cache"]
        for client in clones:
            client.close()
    distinct, misses = 448, after["misses"] - before["misses"]
    counts = {"reads": CLONES * (SIZE // BLOCK + 64), "distinct extents": distinct, "extents read": misses}
    counts |= {"cache hits": after["hits"] - before["hits"]}
    assert before["misses"] == 0
    assert misses == distinct, counts
