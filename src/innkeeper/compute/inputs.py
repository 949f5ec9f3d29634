"""Everything that a guest's QEMU is told, resolved: plain frozen values, checked once here.

``MachineInputs`` says what the machine is; ``Descriptors`` says which open file descriptors the launcher hands over.
From the two, ``commandline.command_line`` makes the arguments. ``machine_for`` makes the inputs from a vm document.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from innkeeper.model.problems import Invalid
from innkeeper.model.resources import Firmware, Vm

NIC_PORTS = range(1, 9)
"""PCIe root ports for nics, fixed so that a card keeps its address (and its name in the guest)."""
DISK_PORTS = range(9, 25)
"""PCIe root ports for disks."""
MIB = 1024 * 1024

_MAC = re.compile(r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")
_UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_MACHINE = re.compile(r"^pc-q35-\d+\.\d+$")

Accelerator = Literal["kvm", "tcg"]


@dataclass(frozen=True, slots=True)
class NbdExport:
    """A disk served over NBD: the unix socket and the name of the export there."""

    socket: Path
    export: str


@dataclass(frozen=True, slots=True)
class DiskInput:
    """A disk behind a root port of its own, so that it can be taken out while the guest runs.

    ``boot_index``: smallest boots first; None never boots. ``port`` is one of ``DISK_PORTS``.
    """

    disk_id: str
    source: NbdExport
    port: int
    boot_index: int | None = None
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class NicInput:
    """A network card and the tap device that is its port; ``port`` is one of ``NIC_PORTS``."""

    nic_id: str
    mac: str
    tap: str
    port: int
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class UefiInput:
    """UEFI: the read-only code image, and the variables as an NBD export of exactly the template's size."""

    code: Path
    nvram: NbdExport
    secure_boot: bool = False


@dataclass(frozen=True, slots=True)
class CdromInput:
    """The CD-ROM drive; it is always there, ``media`` None leaves it empty."""

    media: NbdExport | None = None
    boot_index: int | None = None


@dataclass(frozen=True, slots=True)
class MachineInputs:
    """A guest's machine. Sizes in bytes; ids are UUID text. ``uefi`` None means BIOS.

    ``restoring``: the process waits for a memory image instead of booting.
    """

    vm_id: str
    name: str
    machine: str
    cpus: int
    memory_bytes: int
    generation_id: str
    accelerator: Accelerator = "tcg"
    tb_size_bytes: int = 64 * MIB
    """TCG's translation buffer; without meaning under KVM."""
    uefi: UefiInput | None = None
    tpm: bool = False
    disks: tuple[DiskInput, ...] = ()
    nics: tuple[NicInput, ...] = ()
    cdrom: CdromInput = field(default_factory=CdromInput)
    seed: Path | None = None
    """A NoCloud ISO that the launcher opens and hands over."""
    restoring: bool = False

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True, slots=True)
class Descriptors:
    """File descriptors that QEMU inherits: three listening unix sockets, the taps in the order of the nics, the seed.

    ``kvm`` is ``/dev/kvm`` opened by root, so that the vm's uid needs no right to it.
    """

    monitor: int
    agent: int
    serial: int
    taps: tuple[int, ...] = ()
    seed: int | None = None
    kvm: int | None = None

    def all(self) -> tuple[int, ...]:
        """Every descriptor, for handing over."""
        optional = (fd for fd in (self.seed, self.kvm) if fd is not None)
        return (self.monitor, self.agent, self.serial, *self.taps, *optional)


def _check(machine: MachineInputs) -> None:
    if not _MACHINE.match(machine.machine):
        raise Invalid("vm.machine", f"{machine.machine!r} is not a machine type", remedy="write pc-q35-10.0 or so")
    for what, text in (("vm id", machine.vm_id), ("generation id", machine.generation_id)):
        if not _UUID.match(text):
            raise Invalid("vm.id", f"{what}: {text!r} is not a UUID")
    if machine.memory_bytes % MIB or machine.memory_bytes < 32 * MIB:
        raise Invalid(
            "vm.memory",
            f"{machine.memory_bytes} bytes of memory are not possible",
            cause="memory is a whole number of MiB, at least 32",
            remedy="write for example 512M",
        )
    if machine.uefi is None and machine.tpm:
        raise Invalid("vm.tpm_needs_uefi", "a TPM needs UEFI firmware", remedy="use --firmware uefi")
    _check_distinct("disk", [disk.disk_id for disk in machine.disks])
    _check_distinct("nic", [nic.nic_id for nic in machine.nics])
    _check_distinct("mac", [nic.mac for nic in machine.nics])
    _check_distinct("port", [str(disk.port) for disk in machine.disks] + [str(nic.port) for nic in machine.nics])
    boots = [disk.boot_index for disk in machine.disks] + [machine.cdrom.boot_index]
    _check_distinct("boot index", [str(index) for index in boots if index is not None])
    for disk in machine.disks:
        if not _UUID.match(disk.disk_id) or disk.port not in DISK_PORTS or (disk.boot_index or 0) < 0:
            raise Invalid("vm.disk", f"disk {disk.disk_id!r} at port {disk.port} is not possible")
    for nic in machine.nics:
        if not _UUID.match(nic.nic_id) or not _MAC.match(nic.mac) or nic.port not in NIC_PORTS:
            raise Invalid("vm.nic", f"nic {nic.mac!r} at port {nic.port} is not possible")
    exports = [machine.cdrom.media] if machine.cdrom.media else []
    exports += [disk.source for disk in machine.disks] + ([machine.uefi.nvram] if machine.uefi else [])
    _check_distinct("NBD export", [f"{source.socket} {source.export}" for source in exports])


def _check_distinct(what: str, values: Sequence[str]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise Invalid("vm.duplicate", f"{what} {twice[0]} is used twice in one vm", remedy="give each its own")


def free_port(taken: Sequence[int], ports: range, what: str) -> int:
    """The first of ``ports`` that is not ``taken``.

    Raises ``Invalid`` (``vm.no_port``) when the machine has no place left for another ``what``.
    """
    for port in ports:
        if port not in taken:
            return port
    raise Invalid(
        "vm.no_port",
        f"the vm has no place for another {what}",
        cause=f"a vm holds {len(ports)} at most",
        remedy=f"take another {what} out of it first",
    )


def check_room(*, disks: int = 0, nics: int = 0) -> None:
    """Raises ``Invalid`` (``vm.no_port``) when a machine cannot hold that many."""
    for wanted, ports, what in ((disks, DISK_PORTS, "disk"), (nics, NIC_PORTS, "nic")):
        if wanted > len(ports):
            free_port(ports, ports, what)


def machine_for(
    vm: Vm,
    *,
    machine: str,
    accelerator: Accelerator,
    exports: Mapping[str, NbdExport],
    nics: Sequence[NicInput] = (),
    ovmf_code: Path | None = None,
    iso: NbdExport | None = None,
    seed: Path | None = None,
    ports: Mapping[str, int] | None = None,
    restoring: bool = False,
) -> MachineInputs:
    """The inputs of ``vm``'s machine; pure.

    ``exports`` maps disk id -> where the fabric serves it, for every disk of the spec and its ``nvram_disk_id``.
    ``ports`` maps disk id -> root port as a memory image remembers them (``memory.Layout``); others get the first free.
    ``machine`` is used where the vm pins none. Raises ``Invalid`` for what cannot be a machine.
    """
    spec = vm.spec
    uefi = None
    if spec.firmware is Firmware.UEFI:
        if ovmf_code is None or spec.nvram_disk_id is None:
            raise Invalid("vm.no_nvram", f"vm {vm.name} boots by UEFI but has no variables", remedy="recreate the vm")
        uefi = UefiInput(ovmf_code, exports[spec.nvram_disk_id], spec.secure_boot)
    taken = list((ports or {}).values())
    disks = []
    for link in spec.disks:
        port = (ports or {}).get(link.disk_id)
        if port is None:
            port = free_port(taken, DISK_PORTS, "disk")
            taken.append(port)
        disks.append(DiskInput(link.disk_id, exports[link.disk_id], port, link.boot_index, link.read_only))
    last = max((link.boot_index for link in spec.disks if link.boot_index is not None), default=0)
    iso_index = (0 if spec.iso_boot_first else last + 1) if iso else None
    return MachineInputs(
        vm_id=vm.id,
        name=vm.name,
        machine=spec.machine or machine,
        cpus=spec.cpus,
        memory_bytes=spec.memory_bytes,
        generation_id=vm.status.generation_id,
        accelerator=accelerator,
        uefi=uefi,
        tpm=spec.tpm,
        disks=tuple(disks),
        nics=tuple(nics),
        cdrom=CdromInput(iso, iso_index),
        seed=seed,
        restoring=restoring,
    )
