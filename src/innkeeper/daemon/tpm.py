"""The state of a vm's TPM: it goes with the vm's checkpoints, clones and backups."""

from __future__ import annotations

from pathlib import Path

from innkeeper.compute import firmware
from innkeeper.daemon.power import Power
from innkeeper.model.resources import Vm, VmState

_ARCHIVE = "tpm.tar"


async def tpm_at_rest(power: Power, vm: Vm) -> bytes | None:
    """The TPM's state as an archive, taken while the guest stands still; None when the vm has no TPM."""
    if not vm.spec.tpm:
        return None
    guest = power.guest(vm)
    if guest is None or guest.state != VmState.RUNNING:
        return firmware.pack_tpm(power.place(vm).tpm_state)
    await guest.pause()
    try:
        return firmware.pack_tpm(power.place(vm).tpm_state)
    finally:
        await guest.resume()


async def keep_tpm(power: Power, vm: Vm, directory: Path) -> None:
    """Archive the TPM's state into ``directory``; the guest stands still for that moment."""
    archive = await tpm_at_rest(power, vm)
    if archive is None:
        return
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / _ARCHIVE).write_bytes(archive)


def put_tpm_back(power: Power, vm: Vm, directory: Path) -> None:
    """Put an archived state back, if there is one; the vm has no process."""
    archive = directory / _ARCHIVE
    if archive.exists():
        restore_tpm(power, vm, archive.read_bytes())


def restore_tpm(power: Power, vm: Vm, archive: bytes) -> None:
    """Give a vm without a process that state."""
    place = power.place(vm)
    place.state_dir.mkdir(mode=0o711, parents=True, exist_ok=True)
    firmware.unpack_tpm(archive, place.tpm_state, place.uid)
