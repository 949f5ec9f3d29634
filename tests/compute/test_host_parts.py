"""Control groups, firmware files, TPM archives, QEMU's version, the accelerator: what is decided without a guest."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from innkeeper.compute import accelerator, cgroups, firmware, qemu
from innkeeper.model.problems import Corrupt, Refused, Unavailable

# --- control groups ---


def test_a_unified_hierarchy_that_controls_memory_is_used(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpuset cpu io memory pids\n")
    found = cgroups.find_hierarchies(f"cgroup2 {tmp_path} cgroup2 rw 0 0\n")
    assert found == cgroups.Hierarchies("v2", (tmp_path,))


def test_older_hierarchies_are_used_where_the_unified_one_is_empty(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    mounts = (
        f"cgroup2 {tmp_path} cgroup2 rw 0 0\n"
        "cgroup /c/cpu cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup /c/memory cgroup rw,memory 0 0\n"
        "cgroup /c/pids cgroup rw,pids 0 0\n"
    )
    assert cgroups.find_hierarchies(mounts) == cgroups.Hierarchies("v1", (Path("/c/cpu"), Path("/c/memory")))


def test_none_at_all() -> None:
    assert cgroups.find_hierarchies("proc /proc proc rw 0 0\n").version == "none"


def test_a_group_is_made_and_removed(tmp_path: Path) -> None:
    found = cgroups.Hierarchies("v2", (tmp_path,))
    joined = cgroups.prepare(found, "innkeeper-t/vm", 1000)
    assert joined == [tmp_path / "innkeeper-t/vm/cgroup.procs"]
    assert (tmp_path / "innkeeper-t/vm/memory.max").read_text() == str(1000 + cgroups.OVERHEAD_BYTES)
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory"
    (tmp_path / "innkeeper-t/vm/memory.max").unlink()
    (tmp_path / "innkeeper-t/cgroup.subtree_control").unlink()
    cgroups.remove(found, "innkeeper-t/vm")
    cgroups.remove(found, "innkeeper-t/vm")
    assert not (tmp_path / "innkeeper-t").exists()


# --- firmware and TPM ---


def test_uefi_files_are_found_as_a_pair(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as missing:
        firmware.find_uefi(secure_boot=True, directories=(tmp_path,))
    assert missing.value.code == "uefi.missing"
    for name in ("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd"):
        (tmp_path / name).write_bytes(b"x")
    assert firmware.find_uefi(secure_boot=True, directories=(tmp_path,)).variables_template.read_bytes() == b"x"


def test_a_tpms_state_survives_the_archive(tmp_path: Path) -> None:
    state, uid = tmp_path / "tpm", os.getuid()
    assert firmware.pack_tpm(state) == b""
    state.mkdir()
    (state / "tpm2-00.permall").write_bytes(b"secret" * 1000)
    (state / ".lock").touch()
    archive = firmware.pack_tpm(state)
    (state / "tpm2-00.permall").write_bytes(b"later")
    (state / "tpm2-00.volatilestate").write_bytes(b"later")
    firmware.unpack_tpm(archive, state, uid)
    assert [path.name for path in state.iterdir()] == ["tpm2-00.permall"]
    assert (state / "tpm2-00.permall").read_bytes() == b"secret" * 1000
    assert firmware.pack_tpm(state) == archive
    firmware.unpack_tpm(b"", state, uid)
    assert list(state.iterdir()) == []


def hostile(name: str, kind: bytes = tarfile.REGTYPE, size: int = 1, version: bytes = b"1\n") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        if version:
            first = tarfile.TarInfo("format")
            first.size = len(version)
            tar.addfile(first, io.BytesIO(version))
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        member.size = size if kind == tarfile.REGTYPE else 0
        tar.addfile(member, io.BytesIO(b"x" * size))
    return out.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        *(b"nonsense" * 100, hostile("../x"), hostile("/etc/x"), hostile(".."), hostile("x", tarfile.SYMTYPE)),
        *(hostile("x", version=b""), hostile("x", version=b"one")),
    ],
)
def test_a_hostile_archive_changes_nothing(tmp_path: Path, archive: bytes) -> None:
    state = tmp_path / "tpm"
    state.mkdir()
    (state / "tpm2-00.permall").write_bytes(b"good")
    with pytest.raises(Corrupt):
        firmware.unpack_tpm(archive, state, os.getuid())
    assert {path.name for path in tmp_path.iterdir()} == {"tpm"}
    assert (state / "tpm2-00.permall").read_bytes() == b"good"


def test_an_archive_says_its_format_and_a_later_one_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "tpm"
    state.mkdir()
    (state / "tpm2-00.permall").write_bytes(b"good")
    with tarfile.open(fileobj=io.BytesIO(firmware.pack_tpm(state))) as tar:
        assert tar.getnames() == ["format", "tpm2-00.permall"]
    with pytest.raises(Refused) as newer:
        firmware.unpack_tpm(hostile("x", version=b"2\n"), state, os.getuid())
    assert newer.value.code == "tpm.newer" and newer.value.remedy
    assert [path.name for path in state.iterdir()] == ["tpm2-00.permall"]


# --- QEMU ---


def test_the_version_gives_the_machine_type() -> None:
    found = qemu.parse_version("q", "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)\nCopyright")
    assert (found.version, found.number, found.machine) == ("10.0.2 (Debian 1:10.0.2+ds-2)", (10, 0), "pc-q35-10.0")


@pytest.mark.parametrize("text", ["QEMU emulator version 7.2.22 (Debian)", "QEMU emulator version 9.0.1", "hello"])
def test_an_old_one_is_refused(text: str) -> None:
    with pytest.raises(Unavailable) as refused:
        qemu.parse_version("q", text)
    assert refused.value.code == "qemu.too_old"


# --- accelerator ---


@pytest.mark.guest
def test_the_accelerator_is_remembered_for_this_boot_and_this_qemu(tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "accelerator.json"
    first = accelerator.probe(cache, [tmp_path / "no-such-kernel"])
    assert first.accelerator in ("kvm", "tcg") and first.reason
    boot_id = accelerator.BOOT_ID.read_text().strip()
    known = {"key": {"boot": boot_id, "qemu": qemu.installed().version}, "accelerator": "kvm", "reason": "remembered"}
    cache.parent.mkdir(exist_ok=True)
    cache.write_text(json.dumps(known))
    assert accelerator.probe(cache) == accelerator.AcceleratorFound("kvm", "remembered")
    known["key"] = {"boot": "another", "qemu": ""}
    cache.write_text(json.dumps(known))
    assert accelerator.probe(cache) == first


@pytest.mark.guest
def test_a_file_that_is_no_kernel_is_no_proof(tmp_path: Path) -> None:
    kernel = tmp_path / "vmlinuz"
    kernel.write_bytes(b"not a kernel" * 1000)
    found = accelerator.probe(tmp_path / "accelerator.json", [kernel])
    assert found.accelerator == "tcg"
