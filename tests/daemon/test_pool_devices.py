"""A pool with a slow device: what is cold goes there when the fast one fills, and comes back when it is drained."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest
from live_inn import SMALL, LiveInn, eventually, live_inn

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]
MIB = 1 << 20


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Two file systems: a small one for the inn, and another."""
    with ExitStack() as mounted:
        for name, size in (("fast", "3G"), ("slow", "2500M")):
            place = tmp_path / name
            place.mkdir()
            place.chmod(0o755)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=755", name, place], check=True)
            mounted.callback(subprocess.run, ["umount", place], check=True)
        yield tmp_path / "fast", tmp_path / "slow"


def held(inn: LiveInn) -> dict[str, int]:
    """Path -> bytes that the pool has there."""
    return {device["path"]: device["group_bytes"] for device in inn.json("pool", "show", "default")["devices"]}


def state_of(inn: LiveInn, place: Path) -> str:
    return next(one["state"] for one in inn.json("pool", "show", "default")["devices"] if one["path"] == str(place))


def test_cold_data_goes_down_and_comes_back(places: tuple[Path, Path], probe_image: Path, tmp_path: Path) -> None:
    fast, slow = places
    with live_inn(fast / "state") as inn:
        inn("image", "import", "probe", str(probe_image), "--format", "raw")
        inn.refused("device.inside", "pool", "add", "default", str(fast / "state" / "more"))
        (slow / "mine").write_text("")
        inn.refused("device.not_empty", "pool", "add", "default", str(slow))
        (slow / "mine").unlink()
        inn("pool", "add", "default", str(slow), "--tier", "slow")
        inn.refused("device.exists", "pool", "add", "default", str(slow))
        inn.refused("device.home", "pool", "drain", "default", "home")
        inn.refused("device.not_found", "pool", "drain", "default", "/elsewhere")
        assert held(inn)[str(slow)] == 0

        inn("vm", "create", "writer", *SMALL, "--wait", "ready")
        inn.sh("writer", "dd if=/dev/urandom of=/root/data bs=64k count=300 conv=fsync 2>/dev/null")
        digest = inn.sh("writer", "sha256sum /root/data")
        noise = tmp_path / "noise"
        noise.write_bytes(os.urandom(1700 * MIB))
        inn("image", "import", "noise", str(noise), "--format", "raw")
        eventually(lambda: held(inn)[str(slow)] > 100 * MIB, "what is cold goes down", 120)
        os.kill(inn.pid("fabric"), signal.SIGKILL)
        inn.sh("writer", "echo 3 > /proc/sys/vm/drop_caches")
        assert inn.sh("writer", "sha256sum /root/data") == digest

        held_for = str(uuid4())
        inn.fabric("hold", hold_id=held_for, snapshot_id=inn.json("image", "show", "noise")["snapshot_id"])
        task = inn.json("pool", "drain", "default", str(slow), "--no-wait")
        eventually(lambda: state_of(inn, slow) == "draining", "it is being drained, but for what is held")
        inn("task", "cancel", task["id"])
        eventually(lambda: state_of(inn, slow) == "online", "draining was called off")
        assert held(inn)[str(slow)] > 0
        inn.fabric("release", hold_id=held_for)

        inn("image", "rm", "noise")
        eventually(lambda: held(inn)[str(fast / "state" / "fabric")] < 500 * MIB, "what was removed is swept", 120)
        inn("pool", "drain", "default", str(slow))
        assert str(slow) not in held(inn)
        assert list((slow / "groups").iterdir()) == []
        inn.sh("writer", "echo 3 > /proc/sys/vm/drop_caches")
        assert inn.sh("writer", "sha256sum /root/data") == digest

        inn("pool", "add", "default", str(slow), "--tier", "slow")
        inn("down", "--force")
        (slow / "device.json").rename(slow / "away")
        assert str(slow) in inn.refused("device.missing", "up")
        (slow / "away").rename(slow / "device.json")
        inn("up")
        eventually(lambda: inn.run("vm", "exec", "writer", "--", "true").returncode == 0, "it was started again")
        assert inn.sh("writer", "sha256sum /root/data") == digest
        inn("down", "--force", "--purge")
        assert {entry.name for entry in slow.iterdir()} == set()
        inn("up")
