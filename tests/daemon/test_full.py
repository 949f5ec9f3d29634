"""A pool that is full: what does not fit is refused and leaves nothing, and everything else goes on."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn, eventually, live_inn

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]
MIB = 1 << 20


@pytest.fixture
def small(tmp_path: Path, probe_image: Path) -> Iterator[LiveInn]:
    """An inn whose file system has 3 GiB."""
    place = tmp_path / "small"
    place.mkdir()
    place.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3G,mode=755", "small", place], check=True)
    try:
        with live_inn(place / "state") as inn:
            inn("image", "import", "probe", str(probe_image), "--format", "raw")
            yield inn
    finally:
        subprocess.run(["umount", place], check=True)


def noise(path: Path, size_mib: int) -> Path:
    with path.open("wb") as file:
        for _ in range(size_mib):
            file.write(os.urandom(MIB))
    return path


def kept(inn: LiveInn) -> tuple[set[str], set[str]]:
    return inn.attached(), {disk["id"] for disk in inn.fabric("disk_ls")}


def succeeds_at_last(inn: LiveInn, *words: str) -> None:
    """Once the space of what was removed is given back."""
    deadline = time.monotonic() + 120
    while (ended := inn.run(*words)).returncode:
        assert time.monotonic() < deadline, f"{words}: {ended.stdout}{ended.stderr}"
        time.sleep(0.1)


def test_what_does_not_fit_leaves_nothing(small: LiveInn, tmp_path: Path) -> None:
    inn = small
    inn("vm", "create", "bystander", *SMALL, "--wait", "ready")
    data = noise(tmp_path / "data", 1000)
    inn("image", "import", "heavy", str(data), "--format", "raw")
    inn("vm", "create", "heavy", "--image", "heavy", "--memory", "128M", "--no-start")
    inn("repository", "create", "vault", "--path", str(tmp_path / "vault"))
    inn("backup", "create", "heavy", "--repository", "vault")

    before = kept(inn)
    huge = noise(tmp_path / "huge", 3000)
    inn.refused("image.no_space", "image", "import", "huge", str(huge), "--format", "raw")
    assert kept(inn) == before
    inn.refused("image.not_found", "image", "show", "huge")
    inn.sh("bystander", "dd if=/dev/urandom of=/root/a bs=64k count=16 conv=fsync 2>/dev/null && sha256sum /root/a")

    inn("vm", "rm", "heavy", "--with-disks")
    inn("image", "rm", "heavy")
    second = noise(tmp_path / "second", 2000)
    succeeds_at_last(inn, "image", "import", "other", str(second), "--format", "raw")
    before = kept(inn)
    inn.refused("nbd.full", "backup", "restore", "heavy", "--as", "heavy")
    assert kept(inn) == before
    inn.refused("vm.not_found", "vm", "show", "heavy")

    inn("image", "rm", "other")
    succeeds_at_last(inn, "backup", "restore", "heavy", "--as", "heavy")
    inn("repository", "verify", "vault")
    assert inn.sh("bystander", "sha256sum /root/a | wc -l") == "1"


def fill(path: Path) -> None:
    """Write until the file system has no byte left."""
    with path.open("wb") as file:
        try:
            while file.write(bytes(MIB)):
                file.flush()
        except OSError as full:
            assert full.errno == errno.ENOSPC


def test_a_disk_without_a_byte_left_stops_nothing_for_good(small: LiveInn) -> None:
    inn = small
    inn("vm", "create", "steady", *SMALL, "--wait", "ready")
    daemon = inn.pid("daemon")
    ballast = inn.state.parent / "ballast"
    fill(ballast)
    inn.refused("state.no_space", "switch", "create", "wide", *("--label", "long=" + "x" * 60))
    assert inn.sh("steady", "cat /proc/sys/kernel/hostname"), "the guest and its agent answer"
    inn.refused("state.no_space", "vm", "poweroff", "steady")
    os.kill(inn.json("vm", "show", "steady")["status"]["pid"], signal.SIGKILL)
    ballast.unlink()
    eventually(lambda: inn.json("vm", "show", "steady")["status"]["state"] == "crashed", "what became of it is told")
    eventually(lambda: not inn.json("vm", "show", "steady")["status"]["attachments"], "its disks are given back")
    inn("vm", "start", "steady", "--wait", "ready")
    inn("vm", "rm", "steady", "--force", "--with-disks")
    assert inn.pid("daemon") == daemon
    assert inn.json("switch", "ls") == []

    inn("vm", "create", "last", *SMALL, "--wait", "ready")
    fill(ballast)
    assert "--force" in inn.refused("state.no_space", "down")
    inn("down", "--force")
    ballast.unlink()
    inn("up")
    assert inn.json("vm", "show", "last")["status"]["state"] == "running", "it ran before, so it is started again"
    eventually(lambda: inn.run("vm", "exec", "last", "--", "true").returncode == 0, "the guest has booted")
