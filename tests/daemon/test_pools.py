"""Several pools on a real inn: a guest with disks in two, one of them missing after a restart, and back again."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn, eventually, live_inn
from prometheus_client.parser import text_string_to_metric_families

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]
DISK = "$(ls /dev/vd? | tail -1)"


@pytest.fixture
def flash(tmp_path: Path) -> Iterator[Path]:
    """The root of a file system."""
    with ExitStack() as mounted:
        place = tmp_path / "flash"
        place.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2G,mode=755", "flash", place], check=True)
        mounted.callback(subprocess.run, ["umount", place], check=True)
        yield place


def seen(inn: LiveInn) -> str:
    return inn.sh("two", f"echo 3 > /proc/sys/vm/drop_caches; head -n 1 {DISK}")


def check_what_is_missing(inn: LiveInn) -> None:
    """The pool is told as missing, what needs it is refused, all else goes on."""
    shown = inn.json("pool", "show", "flash")
    assert (shown["available"], "not there" in shown["problem"]) == (False, True)
    assert "not there" in inn("pool", "ls")
    assert "flash" in next(one for one in inn.checks() if one["name"] == "pool")["cause"]
    assert "mount" in inn.refused("pool.unavailable", "disk", "rm", "loose")
    inn.refused("pool.unavailable", "disk", "show", "loose")
    assert "not there" in inn.refused("pool.unavailable", "disk", "resize", "loose", "128M")
    inn.refused("pool.missing", "pool", "open", "flash")
    inn("disk", "create", "other", "--size", "64M")
    inn("disk", "rm", "other")
    inn.refused("pool.unavailable", "disk", "create", "more", "--size", "64M", "--storage", "quick")
    inn.refused("disk.attached", "pool", "rm", "flash", "--lost")


def test_a_guest_with_disks_in_two_pools(flash: Path, probe_image: Path, tmp_path: Path) -> None:
    with live_inn(tmp_path / "state") as inn:
        inn("image", "import", "probe", str(probe_image), "--format", "raw")
        inn.refused("pool.inside", "pool", "create", "flash", str(tmp_path / "state" / "more"))
        inn("pool", "create", "flash", str(flash))
        inn.refused("pool.nested", "pool", "create", "again", str(flash))
        inn.refused("pool.name_taken", "pool", "create", "flash", str(tmp_path / "x"))
        inn.refused("pool.default", "pool", "rm", "default")
        inn("storage", "create", "quick", "--pool", "flash")
        inn.refused("pool.in_use", "pool", "rm", "flash")
        inn("disk", "create", "work", "--size", "64M", "--storage", "quick")
        inn("disk", "create", "loose", "--size", "64M", "--storage", "quick")
        inn("disk", "create", "far", "--image", "probe", "--storage", "quick")
        far = inn.json("disk", "show", "far")["figures"]
        assert far["data_bytes"] + far["undrained_bytes"] > 0
        inn("disk", "rm", "far")
        inn.refused("disk.other_pool", "disk", "set", "work", "--storage", "default")
        inn("vm", "create", "two", *SMALL, "--wait", "ready")
        inn("disk", "attach", "work", "two")
        inn.sh("two", f"echo one | dd of={DISK} bs=64k conv=sync,fsync 2>/dev/null")
        assert [inn.json("pool", "show", pool)["disks"] for pool in ("default", "flash")] == [2, 2]
        inn("checkpoint", "create", "two", "point", "--kind", "standard")
        inn.sh("two", f"echo two | dd of={DISK} bs=64k conv=sync,fsync 2>/dev/null")
        inn("checkpoint", "apply", "two", "point")
        assert seen(inn) == "one"
        inn("checkpoint", "rm", "two", "point")
        inn("pool", "set", "flash", "--cache", "64M")
        inn("pool", "scrub", "flash")
        inn("pool", "curate", "flash")
        labels = {
            sample.labels["pool"]
            for family in text_string_to_metric_families(inn("metrics"))
            for sample in family.samples
            if sample.name == "innkeeper_pool_disks"
        }
        assert labels == {"default", "flash"}

        inn("down", "--force")
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "hidden", flash], check=True)
        inn("up")
        try:
            check_what_is_missing(inn)
        finally:
            subprocess.run(["umount", flash], check=True)
        eventually(lambda: inn.json("pool", "show", "flash")["available"], "it is opened by itself")
        if inn.json("vm", "show", "two")["status"]["state"] != "running":
            inn("vm", "start", "two", "--wait", "ready")
        assert seen(inn) == "one"
        assert inn.json("pool", "show", "flash")["cache"]["limit_bytes"] == 64 << 20
        inn("vm", "rm", "two", "--force", "--with-disks")
        inn("disk", "rm", "loose")
        inn("storage", "rm", "quick")
        inn("pool", "rm", "flash")
        assert [path for path in flash.rglob("*") if path.is_file()] == []
        inn("pool", "create", "flash", str(flash))
        inn("down", "--force", "--purge")
        assert [path for path in flash.rglob("*") if path.is_file()] == []
        inn("up")
