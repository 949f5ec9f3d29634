"""Whose process it is, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from innkeeper.cli import processes
from innkeeper.system.paths import Paths


@pytest.fixture
def inn(tmp_path: Path) -> Paths:
    return Paths(tmp_path / "state", "k3f9", "0" * 8 + "-0000-0000-0000-" + "0" * 12)


@pytest.mark.parametrize(
    ("command", "ours"),
    [
        ("python -m innkeeper --state-dir {state} serve", True),
        ("qemu-system-x86_64 -blockdev driver=nbd,path=/run/innkeeper/k3f9/nbd.sock", True),
        ("qemu-system-x86_64 -vnc unix:/run/innkeeper/k3f9/vms/0123abcd/vnc.sock", True),
        ('qemu-system-x86_64 -blockdev {{"driver": "nbd", "path": "/run/innkeeper/k3f9/nbd.sock"}}', True),
        ("python -m innkeeper --state-dir {state}", True),
        ("python -m innkeeper --state-dir /mnt{state} serve", False),
        ("dnsmasq --conf-file={state}/switches/x/dnsmasq.conf", True),
        ("python -m innkeeper --state-dir {state}2 serve", False),
        ("qemu-system-x86_64 -blockdev driver=nbd,path=/run/innkeeper/k3f90/nbd.sock", False),
        ("qemu-system-x86_64 -hda /home/disk", False),
    ],
)
def test_a_process_is_known_by_its_inns_directories(inn: Paths, command: str, ours: bool) -> None:
    assert processes.belongs(inn, command.format(state=inn.state)) is ours


def sleeper(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    running = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE)
    assert running.stdout is not None
    running.stdout.readline()
    return running


def test_a_pid_file_of_a_stranger_is_not_believed(inn: Paths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("innkeeper.system.paths.RUN_ROOT", tmp_path)
    inn.run.mkdir(parents=True)
    assert processes.noted(inn, "daemon") is None
    (inn.run / "daemon.pid").write_text(f"{os.getpid()}\n")
    assert processes.noted(inn, "daemon") is None
    script = "import time; print(flush=True); time.sleep(60)"
    with sleeper(script, "innkeeper.daemon", str(inn.state)) as running:
        (inn.run / "daemon.pid").write_text(f"{running.pid}\n")
        assert processes.noted(inn, "daemon") == running.pid
        assert [found.pid for found in processes.of_inn(inn)] == [running.pid]
        processes.end(running.pid)
        assert running.wait() == -signal.SIGTERM
        assert processes.noted(inn, "daemon") is None


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)"
    with sleeper(script) as running:
        processes.end(running.pid, timeout_s=0.2)
        assert running.wait() == -signal.SIGKILL
    processes.end(running.pid)
