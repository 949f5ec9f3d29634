"""Disks exported to real NBD clients, and what killed processes leave attached, on a real inn."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from live_inn import LiveInn, eventually

from innkeeper.fabric.client import FabricClient
from innkeeper.system.paths import Paths

pytestmark = [pytest.mark.guest, pytest.mark.root]
MIB = 1 << 20


def fabric(inn: LiveInn, operation: str) -> Any:
    """One control operation of the inn's fabric."""

    async def call() -> Any:
        client = FabricClient(Paths.open(inn.state).fabric_socket)
        await client.connect()
        try:
            return await getattr(client, operation)()
        finally:
            await client.close()

    return asyncio.run(call())


def attached(inn: LiveInn) -> set[str]:
    return {each["id"] for each in fabric(inn, "attachment_ls")}


@contextmanager
def exported(inn: LiveInn, place: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``inn disk export`` running, and the URI that it printed."""
    command = [sys.executable, "-m", "innkeeper", "disk", "export", *options, "--socket", str(place)]
    environment = {**os.environ, "INNKEEPER_STATE": str(inn.state)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running, running.stdout.readline().strip()
        finally:
            running.kill()


def client(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def test_an_export_serves_real_clients(inn: LiveInn, tmp_path: Path) -> None:
    before = attached(inn)
    inn("disk", "create", "shared", "--size", "8M")
    with exported(inn, tmp_path / "w", "shared", "--writable") as (running, uri):
        client("qemu-io", "-f", "raw", "-c", "write -P 0x41 0 1M", "-c", "flush", uri)
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0
    inn("disk", "snapshot", "shared", "first")
    with exported(inn, tmp_path / "w2", "shared", "--writable") as (running, uri):
        client("qemu-io", "-f", "raw", "-c", "write -P 0x42 0 1M", uri)
        assert inn.run("disk", "export", "shared", "--writable", "--socket", str(tmp_path / "w3")).returncode == 1
        running.send_signal(signal.SIGHUP)
        assert running.wait(20) == 0
    copy = tmp_path / "copy"
    with exported(inn, tmp_path / "s", "shared", "--snapshot", "first") as (_, uri):
        assert client("nbdinfo", "--is", "read-only", uri) == ""
        client("nbdcopy", uri, str(copy))
    assert copy.read_bytes() == b"\x41" * MIB + bytes(7 * MIB)
    with exported(inn, tmp_path / "r", "shared") as (_, uri):
        client("nbdcopy", uri, str(copy))
    assert copy.read_bytes() == b"\x42" * MIB + bytes(7 * MIB)
    eventually(lambda: attached(inn) == before, "killed exports are given back")
    inn("disk", "rm", "shared")


def test_an_export_outlives_the_daemon_and_ends_with_its_process(inn: LiveInn, tmp_path: Path) -> None:
    before = attached(inn)
    inn("disk", "create", "served", "--size", "8M")
    with exported(inn, tmp_path / "one", "served", "--writable") as (running, uri):
        os.kill(inn.pid("daemon"), signal.SIGKILL)
        inn("up")
        client("qemu-io", "-f", "raw", "-c", "write 0 64k", uri)
        running.kill()
        running.wait()
        eventually(lambda: attached(inn) == before, "the daemon that found it watches it too")
    with exported(inn, tmp_path / "two", "served", "--writable") as (running, uri):
        os.kill(inn.pid("daemon"), signal.SIGKILL)
        running.kill()
        running.wait()
    inn("up")
    assert attached(inn) == before
    inn("disk", "rm", "served")


def at_step(inn: LiveInn, task: dict[str, Any], step: str) -> Callable[[], bool]:
    def running() -> bool:
        steps = inn.json("task", "show", task["id"])["steps"]
        return any(each["name"] == step and each["state"] == "running" for each in steps)

    return running


def test_an_import_that_is_killed_leaves_nothing(inn: LiveInn, tmp_path: Path) -> None:
    before = attached(inn), {each["id"] for each in fabric(inn, "disk_ls")}
    big = tmp_path / "big.raw"
    with big.open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(MIB))
    started = inn.json("image", "import", "cut", str(big), "--format", "raw", "--no-wait")
    eventually(at_step(inn, started, "copy it to the fabric"), "the copy has begun")
    os.kill(inn.pid("daemon"), signal.SIGKILL)
    inn("up")
    eventually(lambda: inn.json("task", "show", started["id"])["state"] == "failed", "the task has been undone")
    assert inn.json("task", "show", started["id"])["problem"]["code"] == "task.interrupted"
    assert (attached(inn), {each["id"] for each in fabric(inn, "disk_ls")}) == before
    inn.refused("image.not_found", "image", "show", "cut")
    big.unlink()
