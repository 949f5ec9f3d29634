"""Checkpoints, backups and killed processes on a real inn with real guests."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn, eventually

from innkeeper.system.paths import Paths

pytestmark = [pytest.mark.guest, pytest.mark.root]


def test_a_caller_that_hangs_up_ends_nothing(inn: LiveInn) -> None:
    before = {name: inn.pid(name) for name in ("daemon", "keeper", "fabric")}
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(Paths.open(inn.state).api_socket))
            caller.sendall(b"GET /v1/vms HTTP/1.1\r\nHost: inn\r\n\r\nGET /v1/events HTTP/1.1\r\nHost: inn\r\n\r\n")
    for pid in before.values():
        os.kill(pid, signal.SIGPIPE)  # what the kernel sends to one who writes to a connection that is gone
    inn("disk", "create", "heard", "--size", "1M")
    inn("disk", "rm", "heard")
    assert {name: inn.pid(name) for name in before} == before


def test_both_kinds_of_checkpoint_bring_back_what_was(inn: LiveInn) -> None:
    inn("vm", "create", "turn", *SMALL, "--wait", "ready")
    inn.sh("turn", "echo one > /root/note; sync")
    inn("checkpoint", "create", "turn", "disks", "--frozen")
    assert inn.json("checkpoint", "show", "turn", "disks")["frozen"]
    inn.sh("turn", "echo two > /root/note; sync; echo volatile > /tmp/memory")
    boot = inn.sh("turn", "cat /proc/sys/kernel/random/boot_id")
    inn("checkpoint", "create", "turn", "memory", "--kind", "standard")
    generation = inn.json("vm", "show", "turn")["status"]["generation_id"]
    inn.sh("turn", "echo three > /root/note; sync; rm /tmp/memory")

    inn("checkpoint", "apply", "turn", "memory")
    assert inn.sh("turn", "cat /root/note /tmp/memory") == "two\nvolatile"
    assert inn.sh("turn", "cat /proc/sys/kernel/random/boot_id") == boot, "it goes on, it does not boot"
    assert inn.json("vm", "show", "turn")["status"]["generation_id"] != generation

    inn("checkpoint", "apply", "turn", "disks")
    eventually(lambda: inn.run("vm", "exec", "turn", "--", "true").returncode == 0, "the guest has booted")
    assert inn.sh("turn", "cat /root/note") == "one"
    inn("checkpoint", "rm", "turn", "disks")
    inn("checkpoint", "apply", "turn", "memory")
    assert inn.sh("turn", "cat /root/note") == "two"
    inn.refused("checkpoint.not_found", "checkpoint", "apply", "turn", "disks")
    inn("vm", "rm", "turn", "--force", "--with-disks")
    assert not [point for point in inn.json("checkpoint", "ls") if point["name"].startswith("turn/")]


def test_a_backup_restores_what_was_lost_and_damage_is_told(inn: LiveInn, tmp_path: Path) -> None:
    inn("repository", "create", "main", "--path", str(tmp_path / "repository"))
    inn("vm", "create", "loss", *SMALL, "--switch", "lan", "--wait", "ready")
    inn.sh("loss", "dd if=/dev/urandom of=/root/data bs=64k count=64 2>/dev/null; sync")
    digest = inn.sh("loss", "sha256sum /root/data")
    inn("backup", "create", "loss", "--repository", "main")
    inn.sh("loss", "echo more > /root/more; sync")
    inn("backup", "create", "loss", "--repository", "main")
    first, second = [backup for backup in inn.json("backup", "ls") if backup["vm_name"] == "loss"]
    assert second["consistency"] == "application"
    assert second["base_backup_id"] == first["id"]
    assert second["stored_bytes"] < first["stored_bytes"] / 10
    assert second["logical_bytes"] >= first["logical_bytes"]

    inn("vm", "rm", "loss", "--force", "--with-disks")
    inn("backup", "restore", second["id"], "--as", "found")
    inn("vm", "start", "found", "--wait", "ready")
    assert inn.sh("found", "sha256sum /root/data") == digest
    assert inn.sh("found", "cat /root/more") == "more"
    inn("vm", "rm", "found", "--force", "--with-disks")

    inn("repository", "verify", "main")
    plan = inn.json("repository", "prune", "main", "--keep-last", "1", "--dry-run")
    assert [entry["id"] for entry in plan["remove"]] == [first["id"]]
    inn("repository", "prune", "main", "--keep-last", "1")
    assert [backup["id"] for backup in inn.json("backup", "ls")] == [second["id"]]

    pack = max((tmp_path / "repository" / "packs").rglob("*"), key=lambda path: path.stat().st_size)
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(pack.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    said = inn.refused("repository.corrupt", "repository", "verify", "main")
    assert pack.name in said
    assert second["id"] in said
    inn.refused("repository.corrupt", "backup", "restore", second["id"], "--as", "never")
    assert "never" not in inn("vm", "ls")
    assert not [disk for disk in inn.json("disk", "ls") if disk["name"].startswith("never")]
    inn("repository", "rm", "main")


def test_guests_outlive_the_daemon_and_do_not_notice_a_new_fabric(inn: LiveInn) -> None:
    inn("vm", "create", "steady", *SMALL, "--switch", "lan", "--wait", "ready")
    before = inn.json("vm", "show", "steady")["status"]
    write = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo line $i >> /root/log; sync; done; touch /root/done"
    inn.sh("steady", f"({write}) > /dev/null 2>&1 &")
    os.kill(inn.pid("fabric"), signal.SIGKILL)
    os.kill(inn.pid("daemon"), signal.SIGKILL)
    inn("up")
    after = inn.json("vm", "show", "steady")["status"]
    assert (after["pid"], after["state"]) == (before["pid"], "running")
    eventually(lambda: inn.run("vm", "exec", "steady", "--", "ls", "/root/done").returncode == 0, "it wrote on", 120)
    seen = inn.sh("steady", "wc -l < /root/log; tail -n 1 /root/log; dmesg | grep -ci 'i/o error' || true")
    assert seen.split("\n") == ["400", "line 400", "0"]
    inn("vm", "rm", "steady", "--force", "--with-disks")
