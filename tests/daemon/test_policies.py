"""A disk changes while its guest writes and verifies: size, storage, tier, QoS; nothing is lost, all is told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from guest_load import WORK, goes_on
from live_inn import SMALL, LiveInn, eventually
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]


@pytest.fixture
def slow_device(tmp_path: Path):  # type: ignore[no-untyped-def]
    place = tmp_path / "slow"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1G", "slow", place], check=True)
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_changes_under_load(inn: LiveInn, slow_device: Path) -> None:
    inn("qos", "create", "bounded", "--max-iops", "400", "--burst", "1")
    inn("storage", "create", "packed", "--compression", "zstd", "--level", "9", "--quota", "512M")
    inn("disk", "create", "work", "--size", "64M")
    inn("vm", "create", "load", *SMALL, "--wait", "ready")
    inn("disk", "attach", "work", "load")
    inn.sh("load", WORK)
    goes_on(inn)

    inn("disk", "resize", "work", "128M")
    assert inn.sh("load", "cat /sys/block/$(ls /sys/block | grep vd | tail -1)/size") == str((128 << 20) // 512)
    goes_on(inn)
    inn.refused("disk.in_use", "disk", "resize", "work", "64M", "--shrink")

    inn("disk", "set", "work", "--storage", "packed")
    inn("pool", "curate", "default")
    inn.fabric("drain")
    goes_on(inn)
    assert inn.json("storage", "show", "packed")["disks"] == 1

    inn("pool", "add", "default", str(slow_device), "--tier", "slow")
    inn("disk", "set", "work", "--tier", "slow")
    goes_on(inn)
    inn.fabric("drain")
    inn("pool", "curate", "default")
    assert "slow" in {place["tier"] for place in inn.json("disk", "show", "work")["places"]}
    inn("disk", "set", "work", "--tier", "none")
    inn("pool", "drain", "default", str(slow_device))
    goes_on(inn)

    inn("disk", "set", "work", "--qos", "bounded")
    goes_on(inn)
    shown = inn.json("qos", "show", "bounded")
    assert shown["disk_ids"] == [inn.json("disk", "show", "work")["id"]]
    eventually(lambda: inn.json("qos", "show", "bounded")["flows"][0]["iops"] <= 440, "the limit holds")
    activity = inn.json("disk", "show", "work")["activity"]
    assert activity["writes"] > 20
    assert activity["write_ms"] > 0
    inn.refused("qos.in_use", "qos", "rm", "bounded")
    inn.refused("pool.promised", "disk", "create", "vast", "--size", "60T", "--thick")
    inn("disk", "set", "work", "--thick")
    assert inn.json("disk", "show", "work")["promised_bytes"] > 0
    inn("disk", "set", "work", "--thin", "--qos", "none")

    families = {family.name for family in text_string_to_metric_families(inn("metrics"))}
    assert {"innkeeper_disk_write_seconds", "innkeeper_log_sync_seconds", "innkeeper_cache_hits"} <= families
    inn("pool", "pause", "default")
    assert inn.json("pool", "show", "default")["curator"]["paused"] is True
    inn("pool", "resume", "default")
    inn.json("pool", "hot", "default")

    inn.sh("load", "touch /tmp/enough; sleep 1; test ! -e /tmp/bad")
    assert inn.json("pool", "show", "default")["problem"] is None
    inn("disk", "detach", "work")
    inn("disk", "rm", "work")
    inn("vm", "rm", "load", "--force", "--with-disks")
    inn("storage", "rm", "packed")
    inn("qos", "rm", "bounded")
