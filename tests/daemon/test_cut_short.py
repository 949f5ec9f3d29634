"""A daemon that is killed amid its work: the next one undoes what was begun, and nothing half-made is left."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from live_inn import LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]
MIB = 1 << 20


def held(inn: LiveInn) -> tuple[set[str], dict[str, Any]]:
    """What the fabric keeps: attachments, and disks with their snapshots."""
    disks = inn.fabric("disk_ls")
    return inn.attached(), {each["id"]: each["snapshots"] for each in disks}


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file that takes seconds to copy."""
    path = tmp_path / "big.raw"
    with path.open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(MIB))
    return path


def test_what_is_killed_leaves_nothing(inn: LiveInn, tmp_path: Path, big: Path) -> None:
    bare = held(inn)
    task = inn.kill_at("copy it to the fabric", "image", "import", "cut", str(big), "--format", "raw")
    assert task["problem"]["code"] == "task.interrupted"
    assert held(inn) == bare
    inn.refused("image.not_found", "image", "show", "cut")

    inn("image", "import", "cut", str(big), "--format", "raw")
    big.unlink()
    inn("vm", "create", "heavy", "--image", "cut", "--memory", "128M", "--no-start")
    inn("repository", "create", "cut", "--path", str(tmp_path / "repository"))
    before = held(inn)
    task = inn.kill_at("snapshot and copy", "backup", "create", "heavy", "--repository", "cut")
    assert task["problem"]["code"] == "task.interrupted"
    assert held(inn) == before
    assert not [each for each in inn.json("backup", "ls") if each["vm_name"] == "heavy"]

    inn("backup", "create", "heavy", "--repository", "cut")
    before = held(inn)
    task = inn.kill_at("restore the disks", "backup", "restore", "heavy", "--as", "again")
    assert task["problem"]["code"] == "task.interrupted"
    assert held(inn) == before
    inn.refused("vm.not_found", "vm", "show", "again")
    assert not [each for each in inn.json("disk", "ls") if each["name"].startswith("again")]
    assert {each.name for each in (inn.state / "vms").glob("*")} <= {each["id"] for each in inn.json("vm", "ls")}

    inn("backup", "restore", "heavy", "--as", "again")
    inn("repository", "verify", "cut")
    for vm in ("heavy", "again"):
        inn("vm", "rm", vm, "--with-disks")
    inn("repository", "rm", "cut")
    inn("image", "rm", "cut")
    assert held(inn) == bare, "no hold keeps what was removed"
