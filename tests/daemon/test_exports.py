"""Disks exported to real NBD clients on a real inn: until the exporting process ends, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from live_inn import LiveInn, eventually

pytestmark = [pytest.mark.guest, pytest.mark.root]
MIB = 1 << 20


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
    before = inn.attached()
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
    eventually(lambda: inn.attached() == before, "killed exports are given back")
    inn("disk", "rm", "shared")


def test_an_export_outlives_the_daemon_and_ends_with_its_process(inn: LiveInn, tmp_path: Path) -> None:
    before = inn.attached()
    inn("disk", "create", "served", "--size", "8M")
    with exported(inn, tmp_path / "one", "served", "--writable") as (running, uri):
        os.kill(inn.pid("daemon"), signal.SIGKILL)
        inn("up")
        client("qemu-io", "-f", "raw", "-c", "write 0 64k", uri)
        running.kill()
        running.wait()
        eventually(lambda: inn.attached() == before, "the daemon that found it watches it too")
    with exported(inn, tmp_path / "two", "served", "--writable") as (running, uri):
        os.kill(inn.pid("daemon"), signal.SIGKILL)
        running.kill()
        running.wait()
    inn("up")
    assert inn.attached() == before
    inn("disk", "rm", "served")
