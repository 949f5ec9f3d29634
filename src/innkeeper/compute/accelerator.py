"""KVM or TCG: decided by booting a Linux kernel under KVM, because ``/dev/kvm`` may open and still hang a guest.

The kernel is booted without a root file system; it runs its own start-up, panics and reboots, which ends QEMU. The
answer is kept in a file, valid for one boot of the host and one version of QEMU.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from innkeeper.compute import qemu
from innkeeper.compute.inputs import Accelerator
from innkeeper.model.problems import Problem
from innkeeper.system import process

KVM = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TRIAL_S = 20.0
"""A kernel takes one or two seconds under KVM; one that hangs takes for ever."""
_PROOF = (b"Linux version ", b"Kernel panic")
_APPEND = "console=ttyS0 panic=-1"


@dataclass(frozen=True, slots=True)
class AcceleratorFound:
    """What guests run on, and why, in words for the administrator."""

    accelerator: Accelerator
    reason: str


def probe(cache: Path, kernels: Sequence[Path] = ()) -> AcceleratorFound:
    """What guests run on; blocks for up to ``TRIAL_S`` the first time after a boot of the host.

    ``kernels`` are Linux images to try with, best first; the host's own in ``/boot`` come after them.
    """
    key = {"boot": BOOT_ID.read_text().strip(), "qemu": qemu.installed().version}
    try:
        known = json.loads(cache.read_text())
        if known["key"] == key and known["accelerator"] in ("kvm", "tcg"):
            return AcceleratorFound(known["accelerator"], str(known["reason"]))
    except (OSError, ValueError, KeyError, TypeError):
        pass
    kernel = next((path for path in (*kernels, *_own_kernels()) if path.is_file()), None)
    found = _find_out(kernel)
    if kernel is not None or not KVM.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        fresh = cache.with_suffix(".new")
        fresh.write_text(json.dumps({"key": key, "accelerator": found.accelerator, "reason": found.reason}))
        fresh.rename(cache)
    return found


def _own_kernels() -> list[Path]:
    return sorted(Path("/boot").glob("vmlinuz-*"), reverse=True)


def _find_out(kernel: Path | None) -> AcceleratorFound:
    if not KVM.exists():
        return AcceleratorFound("tcg", f"{KVM} does not exist: no hardware virtualisation here")
    if kernel is None:
        return AcceleratorFound("tcg", f"{KVM} exists, but there is no kernel to try it with")
    try:
        ended = process.run(trial_command(qemu.installed().program, kernel), timeout_s=TRIAL_S, check=False)
    except Problem:
        return AcceleratorFound("tcg", f"a Linux guest hangs under {KVM}: it did not start within {TRIAL_S:g} s")
    if ended.returncode == 0 and all(words in ended.stdout for words in _PROOF):
        return AcceleratorFound("kvm", "a Linux guest starts under KVM")
    words = (ended.stderr or ended.stdout)[-200:].decode(errors="replace").strip()
    return AcceleratorFound("tcg", f"a Linux guest does not start under {KVM}: {words}")


def trial_command(program: str, kernel: Path, accelerator: Accelerator = "kvm") -> list[str]:
    """Boots ``kernel`` without disks, its console on the standard output; ends by itself when the kernel has run."""
    return [
        program,
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"),
        *("-accel", accelerator, "-cpu", "host" if accelerator == "kvm" else "max", "-smp", "1", "-m", "256"),
        *("-kernel", str(kernel), "-append", _APPEND, "-serial", "stdio"),
    ]
