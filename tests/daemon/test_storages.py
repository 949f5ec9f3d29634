"""Storages and the pool on a real inn: policies that change while in use, and the content cache."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]


def policies(inn: LiveInn) -> dict[str, tuple[str, int, bool]]:
    """id -> policy, as the fabric has it."""
    return {one["id"]: (one["compression"], one["level"], one["dedup"]) for one in inn.fabric("storage_ls")}


def test_a_policy_changes_under_a_guest_and_outlives_restarts(inn: LiveInn) -> None:
    inn("storage", "create", "cold", "--compression", "zstd", "--level", "12")
    storage = inn.json("storage", "show", "cold")
    assert policies(inn)[storage["id"]] == ("zstd", 12, True)
    inn("disk", "create", "archive", "--size", "64M", "--storage", "cold")
    inn("vm", "create", "keeper", *SMALL, "--wait", "ready")
    inn("disk", "attach", "archive", "keeper")
    disk = "$(ls /dev/vd? | tail -1)"
    inn.sh("keeper", f"dd if=/bin/busybox of={disk} bs=64k conv=fsync 2>/dev/null")
    digest = inn.sh("keeper", f"dd if={disk} bs=64k count=512 2>/dev/null | sha256sum")
    inn.fabric("drain")
    held = inn.json("disk", "show", "archive")["figures"]
    assert held["data_bytes"] > 512 << 10
    assert held["compression_ratio"] > 1.2
    assert inn.json("storage", "show", "cold")["figures"] == held
    inn("storage", "set", "cold", "--compression", "lz4", "--no-dedup", "--name", "warm")
    assert policies(inn)[storage["id"]] == ("lz4", 0, False)
    inn.sh("keeper", f"dd if=/bin/busybox of={disk} bs=64k seek=256 conv=fsync 2>/dev/null")
    inn.fabric("drain")
    inn.sh("keeper", "echo 3 > /proc/sys/vm/drop_caches")
    assert inn.sh("keeper", f"dd if={disk} bs=64k count=256 2>/dev/null | sha256sum") != digest
    assert inn.json("storage", "show", "warm")["disks"] == 1
    inn("up", "--restart")
    assert policies(inn)[storage["id"]] == ("lz4", 0, False)
    assert inn.json("storage", "show", "warm")["compression"] == "lz4"
    inn("disk", "detach", "archive")
    inn("disk", "rm", "archive")
    inn("vm", "rm", "keeper", "--force", "--with-disks")
    inn("storage", "rm", "warm")


def test_what_a_storage_cannot_be_is_refused(inn: LiveInn) -> None:
    inn("storage", "create", "plain")
    before = inn.json("storage", "show", "plain")
    inn.refused("storage.level", "storage", "set", "plain", "--level", "3")
    inn.refused("storage.level", "storage", "create", "odd", "--level", "3")
    inn.refused("storage.default", "storage", "set", "default", "--name", "other")
    inn.refused("pool.cache", "pool", "set", "default", "--cache", "8T")
    assert inn.json("storage", "show", "plain") == before
    inn("storage", "rm", "plain")


def test_the_cache_has_the_size_that_was_wished_whatever_ends(inn: LiveInn) -> None:
    def limit() -> int:
        return int(inn.json("pool", "show", "default")["cache"]["limit_bytes"])

    chosen = limit()
    inn("pool", "set", "default", "--cache", "64M")
    assert limit() == 64 << 20
    os.kill(inn.pid("fabric"), signal.SIGKILL)
    assert limit() == 64 << 20
    os.kill(inn.pid("daemon"), signal.SIGKILL)
    inn("up")
    assert limit() == 64 << 20
    inn("pool", "set", "default", "--cache", "auto")
    assert limit() == chosen
    pool = inn.json("pool", "show", "default")
    assert Path(pool["path"]) == inn.state / "fabric"
    assert pool["problem"] is None
    assert pool["capacity_bytes"] > pool["used_bytes"] > 0
