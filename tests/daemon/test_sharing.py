"""What clones of one image share, and what a guest gives back to the pool."""

from __future__ import annotations

import os
import signal

import pytest
from live_inn import SMALL, LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]
MIB = 1 << 20
BLOCK = 65536


def misses(inn: LiveInn) -> int:
    """Extents that had to be read from their groups."""
    return int(inn.json("pool", "show", "default")["cache"]["misses"])


def test_guests_from_one_image_read_each_of_its_extents_once(inn: LiveInn) -> None:
    inn.fabric("drain")
    inn("pool", "set", "default", "--cache", "256M")
    os.kill(inn.pid("fabric"), signal.SIGKILL)  # the next one has nothing in memory
    distinct = inn.fabric("figures")["distinct_bytes"] // BLOCK
    read = [misses(inn)]
    for name in ("one", "two"):
        inn("vm", "create", name, *SMALL, "--wait", "ready")
        read.append(misses(inn))
    first, second = read[1] - read[0], read[2] - read[1]
    assert 50 < first <= distinct, (read, distinct)
    assert second <= first // 20, f"what the first boot read is not read again: {read}"
    inn("pool", "set", "default", "--cache", "auto")
    for name in ("one", "two"):
        inn("vm", "rm", name, "--force", "--with-disks")


def test_what_a_guest_trims_returns_to_the_pool(inn: LiveInn) -> None:
    inn("vm", "create", "tidy", *SMALL, "--wait", "ready")
    inn("disk", "create", "room", "--size", "512M")
    inn("disk", "attach", "room", "tidy")
    disk_id = inn.json("disk", "show", "room")["id"]
    inn.sh("tidy", "while ! [ -b /dev/vdb ]; do sleep 0.1; done; mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt")
    inn.sh("tidy", "dd if=/dev/urandom of=/mnt/noise bs=1M count=160 conv=fsync 2>/dev/null")
    inn.sh("tidy", "echo kept > /mnt/kept; sync")

    def held() -> tuple[int, int]:
        """(what the disk has of data, what the groups take) in MiB, when all is drained and swept."""
        inn.fabric("drain")
        inn.fabric("sweep")
        groups = sum(device["group_bytes"] for device in inn.json("pool", "show", "default")["devices"])
        return inn.fabric("disk_show", disk_id=disk_id)["data_bytes"] // MIB, groups // MIB

    data, groups = held()
    assert data >= 160
    inn.sh("tidy", "rm /mnt/noise && sync && fstrim /mnt")
    data_after, groups_after = held()
    assert data - data_after >= 155
    assert groups - groups_after >= 120, "groups that are mostly dead are packed anew, the rest is left"
    assert inn.sh("tidy", "umount /mnt && mount /dev/vdb /mnt && cat /mnt/kept") == "kept"
    inn("vm", "rm", "tidy", "--force", "--with-disks")
