"""``inn fabric``: a pool by itself, through the executable that people type, with real NBD clients."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from innkeeper.fabric.client import FabricClient
from innkeeper.model.resources import new_id

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 64 * KIB


class Fabric:
    """``inn fabric`` on the pool at ``path``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def command(self, words: tuple[str, ...]) -> list[str]:
        count = 2 if words[0] == "disk" else 1
        return [sys.executable, "-m", "innkeeper", "fabric", *words[:count], str(self.path), *words[count:]]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(words), capture_output=True, text=True, stdin=subprocess.DEVNULL)

    def __call__(self, *words: str) -> str:
        """What it prints; it must succeed."""
        ended = self.run(*words)
        assert ended.returncode == 0, f"{words} -> {ended.returncode}\n{ended.stdout}{ended.stderr}"
        return ended.stdout.strip()

    def refused(self, code: str, *words: str) -> None:
        ended = self.run(*words)
        assert ended.returncode == 1, ended.stdout + ended.stderr
        assert f"[{code}]" in ended.stderr
        assert "remedy:" in ended.stderr

    @contextmanager
    def exported(self, *words: str, end: signal.Signals = signal.SIGINT) -> Iterator[str]:
        """The URI of what ``disk export`` serves meanwhile; it must end cleanly unless it is killed."""
        socket = self.path.parent / "nbd.sock"
        serving = subprocess.Popen(
            self.command(("disk", "export", *words, "--socket", str(socket))), stdout=subprocess.PIPE, text=True
        )
        assert serving.stdout is not None
        try:
            uri = serving.stdout.readline().strip()
            assert uri.startswith("nbd+unix:///")
            yield uri
        finally:
            serving.send_signal(end)
            ended = serving.wait(30)
            serving.stdout.close()
        assert ended == (-end if end == signal.SIGKILL else 0)
        assert socket.exists() is (end == signal.SIGKILL)


def tool(*command: str) -> str:
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def qemu_io(uri: str, *commands: str, read_only: bool = False) -> None:
    """Run the commands against an export; a pattern that is not there fails."""
    options = [option for command in commands for option in ("-c", command)]
    said = tool("qemu-io", "-f", "raw", *(["-r"] if read_only else []), *options, uri)
    assert "verification failed" not in said, said


@pytest.fixture
def fabric(tmp_path: Path) -> Fabric:
    pool = Fabric(tmp_path / "pool")
    pool("init")
    return pool


def test_a_pool_and_its_disks_from_the_command_line(fabric: Fabric) -> None:
    assert json.loads(fabric("init"))["id"] == json.loads(fabric("show"))["id"], "making one that is there opens it"
    disk = fabric("disk", "create", "--size", "8M")
    UUID(disk)
    fabric.refused("disk.exists", "disk", "create", "--size", "9M", "--id", disk)
    with fabric.exported(disk, "--writable") as uri:
        assert tool("nbdinfo", "--size", uri).strip() == str(8 * MIB)
        qemu_io(uri, "write -P 0x11 0 1M", "write -P 0x22 4M 4k", "flush")
        fabric.refused("pool.locked", "show")
    first = fabric("disk", "snapshot", disk)
    with fabric.exported(disk, "--writable") as uri:
        qemu_io(uri, f"write -P 0x33 {BLOCK} {BLOCK}", "discard 4M 64k", "flush")
    second = fabric("disk", "snapshot", disk)

    held = {int(line.split()[0]) for line in fabric("disk", "diff", first).splitlines()}
    assert held == {*range(0, MIB, BLOCK), 4 * MIB}
    changed = [line.split() for line in fabric("disk", "diff", second, first).splitlines()]
    assert [(int(offset), int(length)) for offset, length, _kind in changed] == [(BLOCK, BLOCK), (4 * MIB, BLOCK)]
    assert changed[1][2] == "hole"

    clone = fabric("disk", "clone", first)
    with fabric.exported(clone) as uri:
        qemu_io(uri, "read -P 0x11 0 1M", "read -P 0x22 4M 4k", "read -P 0 5M 1M", read_only=True)
    with fabric.exported(second) as uri:
        qemu_io(uri, "read -P 0x11 0 64k", "read -P 0x33 64k 64k", "read -P 0 4M 4k", read_only=True)
    listed = fabric("disk", "ls").splitlines()
    assert {line.split()[0] for line in listed if not line.startswith(" ")} == {disk, clone}
    assert {line.split()[1] for line in listed if line.startswith(" ")} == {first, second}

    both = fabric("disk", "snapshot", disk, clone).splitlines()
    assert len(both) == 2
    fabric("disk", "rm", clone)
    assert clone not in fabric("disk", "ls").split()
    json.loads(fabric("sweep"))
    assert "all of it is sound" in fabric("check")
    assert json.loads(fabric("check", "-o", "json"))["sound"] is True
    with fabric.exported(first) as uri:
        qemu_io(uri, "read -P 0x11 0 1M", "read -P 0x22 4M 4k", read_only=True)


def test_what_cannot_be_is_said(fabric: Fabric, tmp_path: Path) -> None:
    Fabric(tmp_path / "nowhere").refused("pool.absent", "show")
    assert not (tmp_path / "nowhere").exists()
    fabric.refused("disk.size", "disk", "create", "--size", "65T")
    disk = fabric("disk", "create", "--size", "1M")
    snapshot = fabric("disk", "snapshot", disk)
    socket = str(tmp_path / "nbd.sock")
    fabric.refused("snapshot.read_only", "disk", "export", snapshot, "--writable", "--socket", socket)
    fabric.refused("socket.path", "disk", "export", disk, "--socket", str(tmp_path / "no" / "\0".join(["x" * 200])))
    assert json.loads(fabric("attachments")) == []


def test_an_export_that_was_killed_is_ended_by_hand(fabric: Fabric) -> None:
    disk = fabric("disk", "create", "--size", "1M")
    with fabric.exported(disk, "--writable", end=signal.SIGKILL) as uri:
        qemu_io(uri, "write -P 0x44 0 64k", "flush")
    (left,) = json.loads(fabric("attachments"))
    assert left["disk_id"] == disk
    fabric.refused("disk.attached", "disk", "rm", disk)
    fabric("detach", left["id"])
    assert json.loads(fabric("attachments")) == []
    with fabric.exported(disk) as uri:  # the dead one's socket is replaced
        qemu_io(uri, "read -P 0x44 0 64k", read_only=True)
    fabric("disk", "rm", disk)


def test_damage_is_found_and_a_lost_meta_rebuilt(fabric: Fabric, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(BLOCK))  # cannot be compressed, so it is found again in its group
    disk = fabric("disk", "create", "--size", "4M")
    with fabric.exported(disk, "--writable") as uri:
        qemu_io(uri, "write -P 0x55 0 4M", f"write -s {secret} 1M 64k", "flush")
    fabric("sweep")  # what was written is in groups now
    (fabric.path / "meta.db").unlink()
    for beside in ("meta.db-wal", "meta.db-shm"):
        (fabric.path / beside).unlink(missing_ok=True)
    fabric.refused("pool.absent", "show")
    told = fabric.run("check")
    assert told.returncode == 1
    assert "what --repair does:" in told.stdout and "is rebuilt" in told.stdout
    assert f"disk {disk}" in told.stdout
    assert not (fabric.path / "meta.db").exists(), "nothing is done before it is asked for"
    assert json.loads(fabric("check", "--repair", "-o", "json"))["problems"] == []
    assert "all of it is sound" in fabric("check")
    with fabric.exported(disk) as uri:
        qemu_io(uri, "read -P 0x55 0 1M", "read -P 0x55 2M 2M", read_only=True)

    (group,) = (path for path in (fabric.path / "groups").rglob("*") if secret.read_bytes()[:64] in path.read_bytes())
    with group.open("r+b") as file:
        file.seek(group.read_bytes().index(secret.read_bytes()[:64]) + 100)
        file.write(bytes(16))
    ended = fabric.run("check")
    assert ended.returncode == 1
    assert f"disk {disk}  4.0 MiB  damaged: 64.0 KiB cannot be read" in ended.stdout
    assert f"at 1048576, 65536 bytes: {group}" in ended.stdout
    report = json.loads(fabric.run("check", "-o", "json").stdout)
    assert report["problems"]
    (part,) = report["before"][0]["ranges"]
    assert (part["offset_bytes"], part["length_bytes"], part["recover"]) == (MIB, BLOCK, "repository")


def test_a_pool_is_served_without_a_daemon(fabric: Fabric, tmp_path: Path) -> None:
    disk = fabric("disk", "create", "--size", "1M")
    nbd, control = tmp_path / "nbd.sock", tmp_path / "control.sock"
    serving = subprocess.Popen(fabric.command(("serve", "--socket", str(nbd), "--control", str(control))))

    async def attach() -> str:
        client = FabricClient(control)
        await client.connect()
        try:
            attached = await client.attach(new_id(), disk_id=disk, role="writer", uid=os.geteuid())
            return str(attached["export"])
        finally:
            await client.close()

    try:
        export = asyncio.run(attach())
        qemu_io(f"nbd+unix:///{export}?socket={nbd}", "write -P 0x66 0 1M", "flush")
        fabric.refused("pool.locked", "show")
    finally:
        serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
    assert not nbd.exists() and not control.exists()
    fabric("detach", export)
    with fabric.exported(disk) as uri:
        qemu_io(uri, "read -P 0x66 0 1M", read_only=True)
