"""A disk moves between pools while its guest writes and verifies, whoever is killed meanwhile; nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_load import WORK, goes_on
from live_inn import SMALL, LiveInn, eventually

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(600)]
MIB = 1 << 20


@pytest.fixture
def flash(tmp_path: Path) -> Iterator[Path]:
    """The root of a file system."""
    place = tmp_path / "flash"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2G,mode=755", "flash", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def pool_of(inn: LiveInn) -> str:
    """The pool that the disk is in, as its storage and the fabric tell."""
    pools = {pool["id"]: pool["name"] for pool in inn.json("pool", "ls")}
    told = inn.fabric("disk_show", disk_id=inn.json("disk", "show", "work")["id"])["pool_id"]
    storage = inn.json("storage", "show", inn.json("disk", "show", "work")["storage_id"])
    assert storage["pool_id"] == told
    return pools[told]


def ended(inn: LiveInn, task: dict[str, str]) -> str:
    def state() -> str:
        return str(inn.json("task", "show", task["id"])["state"])

    eventually(lambda: state() in ("succeeded", "failed", "cancelled"), "the task has ended", 120)
    return state()


@pytest.fixture
def loaded(inn: LiveInn, flash: Path) -> Iterator[str]:
    """A guest that writes and verifies the disk ``work``; the command in it that tells a digest of what stays."""
    inn("pool", "create", "flash", str(flash))
    inn("storage", "create", "quick", "--pool", "flash", "--compression", "off")
    inn("disk", "create", "work", "--size", "96M")
    inn("vm", "create", "load", *SMALL, "--wait", "ready")
    inn("disk", "attach", "work", "load")
    inn.sh("load", "dd if=/dev/urandom of=$(ls /dev/vd? | tail -1) bs=1M seek=16 count=32 conv=fsync 2>/dev/null")
    inn.sh("load", WORK)
    goes_on(inn)
    yield "dd if=$(ls /dev/vd? | tail -1) bs=1M skip=16 count=32 2>/dev/null | md5sum"
    inn.sh("load", "touch /tmp/enough; sleep 1; test ! -e /tmp/bad")
    inn("disk", "detach", "work")
    inn("disk", "rm", "work")
    inn("vm", "rm", "load", "--force", "--with-disks")
    inn("storage", "rm", "quick")
    inn("pool", "rm", "flash")


def fresh(inn: LiveInn, digest: str) -> str:
    """The digest of what is on the disk, not in the guest's memory."""
    inn.sh("load", "echo 3 > /proc/sys/vm/drop_caches")
    return inn.sh("load", digest)


def test_a_disk_moves_under_load(inn: LiveInn, flash: Path, loaded: str) -> None:
    before = fresh(inn, loaded)
    others = inn.json("pool", "show", "default")["snapshots"]
    inn("disk", "snapshot", "work", "one")
    goes_on(inn)
    inn("disk", "snapshot", "work", "two")
    inn("disk", "move", "work", "--storage", "quick")
    assert pool_of(inn) == "flash"
    assert [place["path"] for place in inn.json("disk", "show", "work")["places"]] in ([], [str(flash)])
    goes_on(inn)
    assert [each["name"] for each in inn.json("disk", "snapshots", "work")] == ["one", "two"]
    assert inn.json("pool", "show", "default")["snapshots"] == others, "nothing of the disk's is left behind"

    task = inn.json("disk", "move", "work", "--storage", "default", "--no-wait")
    inn("task", "cancel", task["id"])
    assert ended(inn, task) in ("cancelled", "succeeded")
    pool_of(inn)
    assert inn.fabric("move_ls") == []
    goes_on(inn)
    assert fresh(inn, loaded) == before


def test_a_move_goes_on_when_fabric_or_daemon_are_killed(inn: LiveInn, loaded: str) -> None:
    before = fresh(inn, loaded)
    task = inn.json("disk", "move", "work", "--storage", "quick", "--no-wait")
    os.kill(inn.pid("fabric"), signal.SIGKILL)
    assert ended(inn, task) == "succeeded"
    assert pool_of(inn) == "flash"
    goes_on(inn)

    task = inn.json("disk", "move", "work", "--storage", "default", "--no-wait")
    os.kill(inn.pid("daemon"), signal.SIGKILL)
    inn("up")
    assert ended(inn, task) == "succeeded"
    assert pool_of(inn) == "default"
    goes_on(inn)
    assert fresh(inn, loaded) == before
