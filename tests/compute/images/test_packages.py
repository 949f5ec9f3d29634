"""Packages from the archive that apt knows here: resolved, verified, unpacked."""

from __future__ import annotations

from pathlib import Path

import pytest
from probe import cache_directory

from innkeeper.compute.images.packages import Archive, Package, unpack
from innkeeper.compute.images.toolbox import open_toolbox, tool_packages
from innkeeper.model.problems import Corrupt, Unavailable

pytestmark = pytest.mark.guest  # needs a package archive, as the probe guest does


@pytest.fixture(scope="module")
def archive() -> Archive:
    return Archive(cache_directory() / "packages")


def _quiet(fraction: float, text: str) -> None:
    assert 0.0 <= fraction <= 1.0 and text


def test_the_closure_does_not_depend_on_what_is_installed(archive: Archive) -> None:
    names = archive.closure(["qemu-guest-agent"], without=["dpkg"])
    assert {"qemu-guest-agent", "libc6"} <= set(names) and "dpkg" not in names
    with pytest.raises(Unavailable) as unknown:
        archive.closure(["no-such-package-anywhere"])
    assert unknown.value.code == "packages.unresolved" and "apt-get update" in str(unknown.value.remedy)
    with pytest.raises(Unavailable):
        archive.locate(["no-such-package-anywhere"])
    with pytest.raises(Unavailable):
        archive.real_name("no-such-package-anywhere")


def test_a_damaged_package_is_fetched_again(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    [package] = archive.locate(["usr-is-merged"])
    [file] = archive.fetch([package], _quiet)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert archive.fetch([package], _quiet) == [file] and file.read_bytes() == whole


def test_a_package_that_differs_from_its_index_is_refused(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    [package] = archive.locate(["usr-is-merged"])
    with pytest.raises(Corrupt) as refused:
        archive.fetch([Package(package.file_name, package.size_bytes, "0" * 64)], _quiet)
    assert refused.value.code == "packages.checksum"


def test_unpacking_merges_usr_and_leaves_documentation_out(archive: Archive, tmp_path: Path) -> None:
    files = archive.fetch(archive.locate(["busybox-static", "libc6"]), _quiet)
    root = tmp_path / "root"
    unpack(files, root, tmp_path, keep=lambda path: "gconv" not in path)
    assert (root / "bin").is_symlink() and (root / "bin/busybox").exists()
    assert (root / "usr/lib/x86_64-linux-gnu/libc.so.6").exists()
    assert not (root / "usr/share/doc").exists() and not list(root.rglob("gconv"))
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_the_toolbox_runs_its_own_tools(archive: Archive, tmp_path: Path) -> None:
    toolbox = open_toolbox(archive.fetch(tool_packages(archive), _quiet), tmp_path / "tools", tmp_path)
    assert b"sfdisk" in toolbox.run("sfdisk", "--version")
    assert b"grub-mkimage" in toolbox.run("grub-mkimage", "--version").lower()
    with pytest.raises(Unavailable) as absent:
        toolbox.run("mke9fs")
    assert absent.value.code == "tool.missing"
