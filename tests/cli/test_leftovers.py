"""What an inn leaves on its host is found and cleared."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from innkeeper.cli import leftovers
from innkeeper.system.paths import Paths


@pytest.mark.root
def test_mounts_below_the_state_directory_are_cleared(tmp_path: Path) -> None:
    paths = Paths.open(tmp_path / "state", create=True)
    inner = paths.state / "cache" / "jail"
    inner.mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for point in (inner, tmp_path / "other"):
        subprocess.run(["mount", "-t", "tmpfs", "test", point], check=True)
    (inner / "deeper").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "test", inner / "deeper"], check=True)
    try:
        assert leftovers.clear(paths) == ([f"mount {inner / 'deeper'}", f"mount {inner}"], [])
        assert leftovers.find(paths) == []
        assert (tmp_path / "other").is_mount()
    finally:
        subprocess.run(["umount", tmp_path / "other"], check=True)


@pytest.mark.root
def test_what_virtual_networks_left_is_cleared(tmp_path: Path) -> None:
    paths = Paths.open(tmp_path / "state", create=True)
    namespace, wire = f"intn-{paths.inn_id}1", f"ingw-{paths.inn_id}1"
    subprocess.run(["ip", "netns", "add", namespace], check=True)
    argv = ["ip", "link", "add", wire, "type", "veth", "peer", "name", "gw-1", "netns", namespace]
    subprocess.run(argv, check=True)
    assert leftovers.clear(paths) == ([f"device {wire}", f"namespace {namespace}"], [])
    assert leftovers.find(paths) == []
    assert not Path("/sys/class/net", wire).exists()
