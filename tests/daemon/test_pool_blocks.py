"""A block device in a pool of a whole inn: refused, taken, mounted again at ``inn up``, drained."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from live_inn import LiveInn, live_inn
from loop_devices import Loops, loops as loops

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]


def device(inn: LiveInn, source: str) -> dict[str, str] | None:
    devices = inn.json("pool", "show", "default")["devices"]
    return next((each for each in devices if each["source"] == source), None)


def test_a_block_device_comes_and_goes(tmp_path: Path, loops: Loops) -> None:
    source, taken = loops.make(), loops.make()
    subprocess.run(["mkfs.ext4", "-q", taken], check=True)
    with live_inn(tmp_path / "state") as inn:
        inn.refused("device.not_block", "pool", "add", "default", "/dev/nothing-here")
        inn.refused("device.not_block", "pool", "add", "default", str(tmp_path), "--format")
        inn.refused("device.signature", "pool", "add", "default", taken)
        inn("pool", "add", "default", taken, "--format")
        inn.refused("device.in_use", "pool", "add", "default", taken, "--format")
        inn("pool", "add", "default", source, "--tier", "fast")
        found = device(inn, source)
        assert found is not None and found["kind"] == "block"
        place = Path(found["path"])
        assert place.is_mount() and (place / "device.json").exists()

        inn("down")
        assert not place.is_mount()
        inn("up")
        assert place.is_mount()
        inn("disk", "create", "data", "--size", "64M")

        inn("down")
        kept = loops.detach(source)
        inn.refused("device.missing", "up")
        again = loops.attach(kept)
        inn("up")
        assert place.is_mount()
        inn("pool", "drain", "default", source)
        inn("pool", "drain", "default", taken)
        assert device(inn, source) is None
        assert not place.exists()
        assert not Path("/proc/mounts").read_text().count(str(tmp_path / "state"))
        inn("pool", "add", "default", again, "--format")
        inn("down", "--purge")
        assert subprocess.run(["blkid", "-p", again], capture_output=True, check=False).stdout == b""
