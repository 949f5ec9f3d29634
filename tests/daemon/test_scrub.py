"""Damage on the medium: found by a scrub, repaired from a backup repository, or told with the disks that it hits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from live_inn import SMALL, LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]


def extents(inn: LiveInn, disk_id: str) -> list[Any]:
    """[path, offset, stored bytes, codec] of the extents of a disk's youngest snapshot."""
    snapshot = inn.fabric("snapshot_ls", disk_id=disk_id)[-1]["id"]
    blocks = inn.fabric("changed_blocks", snapshot_id=snapshot)["blocks"]
    return [block[3] for block in blocks if block[1] == "extent"]


def spoil(place: list[Any]) -> None:
    path, offset, stored, _codec = place
    with Path(path).open("r+b") as file:
        file.seek(offset + stored // 2)
        byte = file.read(1)
        file.seek(offset + stored // 2)
        file.write(bytes([byte[0] ^ 0x55]))


def test_damage_is_repaired_from_a_backup_or_told(inn: LiveInn, tmp_path: Path) -> None:
    inn("pool", "scrub", "default")
    inn("repository", "create", "infirmary", "--path", str(tmp_path / "infirmary"))
    inn("vm", "create", "ward", *SMALL, "--wait", "ready")
    inn.sh("ward", "dd if=/dev/urandom of=/root/data bs=64k count=128 conv=fsync 2>/dev/null")
    digest = inn.sh("ward", "sha256sum /root/data")
    inn.fabric("drain")
    inn("backup", "create", "ward", "--repository", "infirmary")
    inn("vm", "shutdown", "ward")
    inn.fabric("drain")
    inn("pool", "set", "default", "--cache", "8M")
    disk = inn.json("disk", "show", "ward-disk")["id"]
    for place in extents(inn, disk)[-40::10]:
        spoil(place)
    task = inn.json("pool", "scrub", "default")
    assert task["result"]["damaged"] == 0
    assert inn.json("pool", "show", "default")["repaired"] == 4
    inn("vm", "start", "ward", "--wait", "ready")
    assert inn.sh("ward", "sha256sum /root/data") == digest

    inn("vm", "shutdown", "ward")
    for backup in inn.json("backup", "ls"):
        if backup["vm_name"] == "ward":
            inn("backup", "rm", backup["id"])
    inn("disk", "snapshot", "ward-disk", "kept")
    inn.fabric("drain")
    inn("repository", "prune", "infirmary", "--keep-last", "1")
    spoil(extents(inn, disk)[-1])
    told = inn.refused("pool.damaged", "pool", "scrub", "default")
    assert "disk ward-disk" in told
    assert "snapshot kept of disk ward-disk" in told
    assert "1 stored items are damaged" in inn.json("pool", "show", "default")["problem"]
    (told_by_doctor,) = [check for check in inn.checks() if check["name"] == "pool"]
    assert "1 stored items" in told_by_doctor["cause"]
    inn("disk", "snapshot", "ward-disk", "kept", "--rm")
    inn("vm", "rm", "ward", "--force", "--with-disks")
    inn.fabric("sweep")
    inn("pool", "scrub", "default")
    assert inn.json("pool", "show", "default")["problem"] is None
    assert [check for check in inn.checks() if check["name"] == "pool"] == []
    inn("pool", "set", "default", "--cache", "auto")
