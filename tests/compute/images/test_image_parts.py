"""The pure parts that images are put together from."""

from __future__ import annotations

import lzma
import struct
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from innkeeper.compute.images import bootloader, catalogue, cpio, debian, disk_layout
from innkeeper.compute.images.built import narrow, publish
from innkeeper.compute.images.kernel_modules import ModuleTree, dependencies, module_name
from innkeeper.compute.images.packages import merged
from innkeeper.compute.images.scratch import working_directory
from innkeeper.model.problems import Failed, NoSpace, NotFound, Unavailable

PLAN = disk_layout.DiskPlan(512 << 20, UUID(int=1), UUID(int=2), "root")


# --- cpio ---


def test_cpio_entries_are_aligned_and_end_with_the_trailer() -> None:
    data = cpio.archive([cpio.Entry.directory("bin"), cpio.Entry.file("bin/a", b"abcde", executable=True)])
    assert data.startswith(b"070701") and b"TRAILER!!!\0" in data
    assert all(data[at : at + 6] == b"070701" for at in _headers(data))
    assert len(data) % 4 == 0


def _headers(data: bytes) -> list[int]:
    """Offsets of the headers, walked as the kernel does."""
    found, at = [], 0
    while at < len(data):
        found.append(at)
        name_bytes, file_bytes = int(data[at + 94 : at + 102], 16), int(data[at + 54 : at + 62], 16)
        body = at + 110 + name_bytes
        body += -body % 4
        at = body + file_bytes + (-file_bytes % 4)
    return found


@given(st.lists(st.tuples(st.text("abc/", min_size=1, max_size=9), st.binary(max_size=50)), max_size=6))
def test_cpio_walk_finds_every_entry(files: list[tuple[str, bytes]]) -> None:
    data = cpio.archive([cpio.Entry.file(path, content) for path, content in files])
    assert len(_headers(data)) == len(files) + 1


# --- kernel modules ---


def _module(folder: Path, name: str, *needs: str) -> None:
    elf = b"\x7fELF...\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0retpoline=Y\0" + name.encode()
    (folder / f"{name}.ko.xz").write_bytes(lzma.compress(elf))


def test_modules_come_after_what_they_need_once_and_without_what_is_built_in(tmp_path: Path) -> None:
    for name, needs in {"virtio-net": ["net_failover", "virtio"], "net_failover": ["failover"], "failover": []}.items():
        _module(tmp_path, name, *needs)
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio.ko\n")
    order = ModuleTree(tmp_path).load_order(["virtio_net", "failover"])
    assert list(order) == ["failover", "net_failover", "virtio_net"]
    assert order["virtio_net"].startswith(b"\x7fELF")
    with pytest.raises(Unavailable) as absent:
        ModuleTree(tmp_path).load_order(["virtio_gpu"])
    assert absent.value.code == "kernel.module"


def test_module_names() -> None:
    assert module_name("virtio-rng.ko.xz") == "virtio_rng"
    assert dependencies(b"\0depends=\0") == [] and dependencies(b"nothing") == []
    assert dependencies(b"\0depends=a-b,c\0") == ["a_b", "c"]


# --- the disk ---


def test_partitions_do_not_overlap_and_fit() -> None:
    parts = [line for line in disk_layout.sfdisk_script(PLAN).splitlines() if line.startswith("start=")]
    ends = 34
    for line in parts:
        fields = dict(field.strip().split("=") for field in line.split(","))
        start, size = int(fields["start"]), int(fields["size"])
        assert start >= ends and start % 2048 == 0
        ends = start + size
    assert ends * 512 <= PLAN.size_bytes - 33 * 512


def test_boot_sector_keeps_the_table_and_learns_the_address() -> None:
    boot, table = bytes(range(256)) * 2, bytes(440) + b"T" * 72
    sector = bootloader.patch_boot_sector(boot, table, 2048)
    assert len(sector) == 512 and sector[440:] == table[440:]
    assert struct.unpack_from("<Q", sector, 0x5C) == (2048,)


def test_core_image_lists_its_own_blocks() -> None:
    patched = bootloader.patch_core(b"c" * 5000, 2048, 1 << 20)
    assert len(patched) == 10 * 512
    assert struct.unpack_from("<QHH", patched, 0x1F4) == (2049, 9, 0x820)
    with pytest.raises(Failed) as large:
        bootloader.patch_core(b"c" * 5000, 2048, 4096)
    assert large.value.code == "image.bootloader"


# --- built ---


def test_a_build_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    image = tmp_path / "made"
    image.write_bytes(b"new")
    publish(image, tmp_path / "a/b/image.raw")
    assert (tmp_path / "a/b/image.raw").read_bytes() == b"new" and not image.exists()
    image.write_bytes(b"newer")
    (tmp_path / "file").touch()
    with pytest.raises(NoSpace) as refused:
        publish(image, tmp_path / "file/image.raw")
    assert refused.value.code == "image.no_space"


def test_progress_of_a_part() -> None:
    seen: list[tuple[float, str]] = []
    part = narrow(lambda fraction, text: seen.append((fraction, text)), 0.5, 0.7)
    part(0.0, "a")
    part(0.5, "b")
    assert seen == [(0.5, "a"), (pytest.approx(0.6), "b")]


def test_merged_usr() -> None:
    assert merged("lib/modules/x") == "usr/lib/modules/x" and merged("etc/x") == "etc/x"


# --- Debian, catalogue ---


def test_the_mirror_comes_from_apt() -> None:
    targets = (
        "http://deb.example/debian/ bookworm-updates Debian\n"
        "http://other.example/ stable Vendor\n"
        "http://deb.example/debian/ bookworm Debian\n"
        "http://sec.example/debian-security/ bookworm-security Debian-Security\n"
    )
    mirror = debian.parse_mirror(targets)
    assert debian.sources_list(mirror, "trixie") == (
        "deb http://deb.example/debian/ trixie main\n"
        "deb http://deb.example/debian/ trixie-updates main\n"
        "deb http://sec.example/debian-security/ trixie-security main\n"
    )
    with pytest.raises(Unavailable) as absent:
        debian.parse_mirror("http://other.example/ stable Vendor\n")
    assert absent.value.code == "packages.no_mirror"


def test_mmdebstrap_is_told_all() -> None:
    command = debian.mmdebstrap_command("bookworm", Path("/b/root"), Path("/b/sources"))
    assert command[0] == "mmdebstrap" and command[-3:] == ["bookworm", "/b/root", "/b/sources"]
    include = next(word for word in command if word.startswith("--include="))
    assert {"cloud-init", "qemu-guest-agent", "shim-signed"} <= set(include.partition("=")[2].split(","))


def test_the_catalogue_names_what_it_has() -> None:
    assert set(catalogue.CATALOGUE) == {"probe", "debian/12", "debian/13"}
    with pytest.raises(NotFound) as unknown:
        catalogue.find("debian/7")
    assert unknown.value.code == "image.unknown" and "debian/12" in str(unknown.value.remedy)
    with pytest.raises(NotFound):
        debian.build_debian("7", Path("/nowhere"), cache_dir=Path("/nowhere"))


# --- working directories ---


def test_a_working_directory_vanishes_also_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "probe-killed").mkdir()
    (tmp_path / "probe-killed/big").write_bytes(b"left")
    (tmp_path / "other-kind").mkdir()
    with working_directory(tmp_path, "probe") as first:
        assert not (tmp_path / "probe-killed").exists()
        (first / "file").touch()
        with working_directory(tmp_path, "probe") as second:
            assert (first / "file").exists() and second != first
        with pytest.raises(KeyError), working_directory(tmp_path, "probe"):
            raise KeyError
    assert [path.name for path in tmp_path.iterdir()] == ["other-kind"]
    (tmp_path / "file").touch()
    with pytest.raises(NoSpace), working_directory(tmp_path / "file", "probe"):
        pass
