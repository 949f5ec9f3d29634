"""UEFI variables and the TPM's state go wherever the vm goes: checkpoints, clones, backups."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from live_inn import LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]

VARIABLE = "/sys/firmware/efi/efivars/Inn-8a3b1e2c-5f0d-4c9a-9d57-3a0c0f6b7e11"


def tpm_digest(inn: LiveInn, vm: str) -> str:
    """A digest of what the TPM of a vm that is off remembers."""
    state = inn.state / "vms" / inn.json("vm", "show", vm)["id"] / "tpm" / "tpm2-00.permall"
    return hashlib.sha256(state.read_bytes()).hexdigest()


def write_variable(inn: LiveInn, vm: str, letter: str) -> str:
    """Boot, write the variable, end; returns the digest of the TPM's state then."""
    inn("vm", "start", vm, "--wait", "ready")
    # Its first four bytes are the attributes: non-volatile, for boot services and at run time.
    inn.sh(vm, f"test ! -e {VARIABLE} || chattr -i {VARIABLE}; printf '\\007\\000\\000\\000{letter}' > {VARIABLE}")
    inn("vm", "shutdown", vm)
    return tpm_digest(inn, vm)


def variable(inn: LiveInn, vm: str) -> str:
    inn("vm", "start", vm, "--wait", "ready")
    found = inn.sh(vm, f"tail -c 1 {VARIABLE}")
    inn("vm", "poweroff", vm)
    return found


@pytest.mark.slow
def test_firmware_state_goes_with_the_vm(inn: LiveInn, tmp_path: Path) -> None:
    inn("repository", "create", "firm", "--path", str(tmp_path / "repository"))
    inn(
        *("vm", "create", "secure", "--image", "probe", "--memory", "256M", "--no-start"),
        *("--firmware", "uefi", "--secure-boot", "--tpm"),
    )
    first = write_variable(inn, "secure", "1")
    inn("checkpoint", "create", "secure", "point")
    assert inn.json("checkpoint", "show", "secure", "point")["has_tpm_state"]
    inn("backup", "create", "secure", "--repository", "firm")
    second = write_variable(inn, "secure", "2")
    assert first != second, "a TPM remembers that it was started"

    inn("vm", "clone", "secure", "now")
    assert tpm_digest(inn, "now") == second
    assert variable(inn, "now") == "2"
    inn("vm", "clone", "secure", "then", "--checkpoint", "point")
    assert tpm_digest(inn, "then") == first
    assert variable(inn, "then") == "1"

    inn("checkpoint", "apply", "secure", "point")
    assert tpm_digest(inn, "secure") == first
    assert variable(inn, "secure") == "1"

    inn("vm", "rm", "secure", "--with-disks")
    inn("backup", "restore", "secure", "--as", "back")
    assert tpm_digest(inn, "back") == first
    assert variable(inn, "back") == "1"
    for vm in ("now", "then", "back"):
        inn("vm", "rm", vm, "--with-disks")
    assert not [disk for disk in inn.json("disk", "ls") if disk["role"] == "nvram" and disk["vm_id"]]
    inn("repository", "rm", "firm")


def test_a_tpm_of_a_running_guest_is_cloned_and_checkpointed(inn: LiveInn) -> None:
    inn(
        *("vm", "create", "busy", "--image", "probe", "--memory", "256M"),
        *("--firmware", "uefi", "--tpm", "--wait", "ready"),
    )
    assert inn.sh("busy", "ls -d /sys/firmware/efi") == "/sys/firmware/efi"
    assert "tpm0" in inn.sh("busy", "ls /sys/class/tpm")
    nvram_id = inn.json("vm", "show", "busy")["spec"]["nvram_disk_id"]
    assert inn.json("disk", "show", nvram_id)["size_bytes"] % 65536 != 0
    inn("checkpoint", "create", "busy", "first")
    assert nvram_id in inn.json("checkpoint", "show", "busy", "first")["snapshots"]
    inn("vm", "clone", "busy", "twin")
    inn("vm", "start", "twin", "--wait", "ready")
    assert "tpm0" in inn.sh("twin", "ls /sys/class/tpm")
    inn("checkpoint", "apply", "busy", "first")
    for vm in ("busy", "twin"):
        inn("vm", "rm", vm, "--force", "--with-disks")
    assert nvram_id not in {disk["id"] for disk in inn.json("disk", "ls")}
