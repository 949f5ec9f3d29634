"""QEMU's arguments: golden files to read, and properties that hold for every machine.

After a wanted change: ``INNKEEPER_UPDATE_GOLDEN=1 pytest tests/compute/test_commandline.py``, then read the difference.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from innkeeper.compute import devices
from innkeeper.compute.commandline import command_line
from innkeeper.compute.inputs import (
    DISK_PORTS,
    NIC_PORTS,
    CdromInput,
    Descriptors,
    DiskInput,
    MachineInputs,
    NbdExport,
    NicInput,
    UefiInput,
    machine_for,
)
from innkeeper.model.problems import Invalid
from innkeeper.model.resources import DiskLink, Firmware, Vm, VmSpec

GOLDEN = Path(__file__).with_name("golden")
NBD = Path("/run/innkeeper/k3f9/nbd.sock")
RUN_DIR = Path("/run/innkeeper/k3f9/vms/11111111")


def uuid(number: int) -> str:
    return str(UUID(int=number, version=4))


def disk(number: int, **parts: Any) -> DiskInput:
    made = DiskInput(uuid(number), NbdExport(NBD, f"export-{number}"), DISK_PORTS[number - 1], number)
    return replace(made, **parts)


def nic(number: int) -> NicInput:
    return NicInput(uuid(100 + number), f"52:54:00:00:00:{number:02x}", f"intp-k3f9{number}", NIC_PORTS[number - 1])


BIOS = MachineInputs(
    vm_id="11111111-2222-4333-8444-555555555555",
    name="web",
    machine="pc-q35-10.0",
    cpus=2,
    memory_bytes=512 * 1024 * 1024,
    generation_id=uuid(7),
    disks=(disk(1),),
    nics=(nic(1),),
)
UEFI = UefiInput(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), NbdExport(NBD, "nvram"))
SECURE = UefiInput(Path("/usr/share/OVMF/OVMF_CODE_4M.ms.fd"), NbdExport(NBD, "nvram"), secure_boot=True)
ISO = CdromInput(NbdExport(NBD, "iso"), 0)

CASES = {
    "bios": (BIOS, Descriptors(3, 4, 5, (6,))),
    "uefi": (replace(BIOS, uefi=UEFI), Descriptors(3, 4, 5, (6,))),
    "secure-boot-tpm": (replace(BIOS, uefi=SECURE, tpm=True), Descriptors(3, 4, 5, (6,))),
    "iso-and-seed": (replace(BIOS, cdrom=ISO, seed=Path("/s.iso")), Descriptors(3, 4, 5, (6,), seed=7)),
    "restoring": (replace(BIOS, restoring=True), Descriptors(3, 4, 5, (6,))),
    "kvm": (replace(BIOS, accelerator="kvm"), Descriptors(3, 4, 5, (6,), kvm=8)),
    "two-of-each": (
        replace(BIOS, disks=(disk(1), disk(2, read_only=True, boot_index=None)), nics=(nic(1), nic(2))),
        Descriptors(3, 4, 5, (6, 7)),
    ),
}


def as_text(arguments: list[str]) -> str:
    """One option with its value a line."""
    return "".join(f"\n{argument}" if argument.startswith("-") else f" {argument}" for argument in arguments)[1:] + "\n"


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str) -> None:
    machine, descriptors = CASES[case]
    text = as_text(command_line(machine, descriptors, RUN_DIR))
    file = GOLDEN / f"{case}.txt"
    if os.environ.get("INNKEEPER_UPDATE_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def json_values(arguments: list[str], option: str) -> list[dict[str, Any]]:
    return [json.loads(value) for name, value in pairwise(arguments) if name == option]


@st.composite
def machines(draw: st.DrawFn) -> MachineInputs:
    ids = iter(draw(st.lists(st.uuids(version=4), min_size=60, max_size=60, unique=True)))
    disk_ports = draw(st.lists(st.sampled_from(DISK_PORTS), unique=True, max_size=len(DISK_PORTS)))
    nic_ports = draw(st.lists(st.sampled_from(NIC_PORTS), unique=True, max_size=len(NIC_PORTS)))
    boots = draw(st.permutations(range(len(disk_ports) + 1)))
    disks = [
        DiskInput(str(next(ids)), NbdExport(NBD, str(next(ids))), port, boot if draw(st.booleans()) else None)
        for port, boot in zip(disk_ports, boots, strict=False)
    ]
    nics = [NicInput(str(next(ids)), f"52:54:00:00:00:{port:02x}", f"intp-k3f9{port}", port) for port in nic_ports]
    uefi = draw(st.sampled_from([None, UEFI, SECURE]))
    return MachineInputs(
        vm_id=str(next(ids)),
        name=draw(st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,62}", fullmatch=True)),
        machine="pc-q35-10.0",
        cpus=draw(st.integers(1, 512)),
        memory_bytes=draw(st.integers(32, 2**24)) * 1024 * 1024,
        generation_id=str(next(ids)),
        uefi=uefi,
        tpm=uefi is not None and draw(st.booleans()),
        disks=tuple(disks),
        nics=tuple(nics),
        cdrom=draw(st.sampled_from([CdromInput(), CdromInput(NbdExport(NBD, "iso"), boots[-1])])),
        seed=draw(st.sampled_from([None, Path("/seed.iso")])),
        restoring=draw(st.booleans()),
    )


@given(machines())
def test_every_machine_has_distinct_ids_nodes_and_addresses(machine: MachineInputs) -> None:
    seed = 900 if machine.seed else None
    descriptors = Descriptors(3, 4, 5, tuple(range(100, 100 + len(machine.nics))), seed)
    arguments = command_line(machine, descriptors, RUN_DIR)
    assert all(isinstance(argument, str) and argument and "\0" not in argument for argument in arguments)
    nodes = [node["node-name"] for node in json_values(arguments, "-blockdev")]
    made = json_values(arguments, "-device")
    ids = [device["id"] for device in made if "id" in device]
    places = [(device["bus"], device["addr"]) for device in made if "addr" in device]
    behind_ports = [device["bus"] for device in made if str(device.get("bus", "")).startswith("rp")]
    boots = [device["bootindex"] for device in made if "bootindex" in device]
    for distinct in (nodes, ids, places, behind_ports, boots):
        assert len(distinct) == len(set(distinct))
    assert all(len(node) <= 31 for node in nodes)
    used = [device["drive"] for device in made if "drive" in device]
    flash = ["f-code", "f-nvram"] if machine.uefi else []
    files = [node["file"] for node in json_values(arguments, "-blockdev") if node["driver"] == "raw"]
    assert sorted([*used, *flash, *files]) == sorted(nodes)
    assert {node["driver"] for node in json_values(arguments, "-blockdev")} <= {"nbd", "raw", "file"}
    assert ("-incoming" in arguments) == machine.restoring
    assert arguments[arguments.index("-S") - 1] == "-no-user-config"


@given(machines())
def test_hot_plugging_uses_what_cold_plugging_uses(machine: MachineInputs) -> None:
    arguments = command_line(machine, Descriptors(3, 4, 5, tuple(range(len(machine.nics))), 9), RUN_DIR)
    nodes, made = json_values(arguments, "-blockdev"), json_values(arguments, "-device")
    for one in machine.disks:
        assert devices.disk_device(one) in made
        assert all(node in nodes for node in devices.disk_nodes(one))


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ({"disks": (disk(1), disk(1))}, "vm.duplicate"),
        ({"disks": (disk(1), disk(2, port=DISK_PORTS[0]))}, "vm.duplicate"),
        ({"disks": (disk(1), disk(2, boot_index=1))}, "vm.duplicate"),
        ({"disks": (disk(1, port=2),)}, "vm.disk"),
        ({"disks": (disk(1, disk_id="x"),)}, "vm.disk"),
        ({"nics": (replace(nic(1), mac="zz"),)}, "vm.nic"),
        ({"memory_bytes": 1024 * 1024 + 1}, "vm.memory"),
        ({"machine": "pc,readonly=off"}, "vm.machine"),
        ({"tpm": True}, "vm.tpm_needs_uefi"),
        ({"generation_id": "1"}, "vm.id"),
    ],
)
def test_impossible_machines_are_refused(parts: dict[str, Any], code: str) -> None:
    with pytest.raises(Invalid) as refused:
        replace(BIOS, **parts)
    assert refused.value.code == code


def vm(**spec: Any) -> Vm:
    return Vm(name="web", spec=VmSpec(**spec))


def test_a_vm_becomes_a_machine() -> None:
    first, second, nvram = uuid(1), uuid(2), uuid(3)
    document = vm(
        disks=[DiskLink(disk_id=first, boot_index=1), DiskLink(disk_id=second, read_only=True)],
        firmware=Firmware.UEFI,
        secure_boot=True,
        tpm=True,
        nvram_disk_id=nvram,
        machine="pc-q35-9.2",
    )
    exports = {name: NbdExport(NBD, name) for name in (first, second, nvram)}
    machine = machine_for(
        document,
        machine="pc-q35-10.0",
        accelerator="tcg",
        exports=exports,
        ovmf_code=Path("/code"),
        iso=NbdExport(NBD, "iso"),
        ports={second: DISK_PORTS[0]},
    )
    assert machine.machine == "pc-q35-9.2"
    assert {one.disk_id: one.port for one in machine.disks} == {second: DISK_PORTS[0], first: DISK_PORTS[1]}
    assert machine.cdrom.boot_index == 2
    assert machine.uefi == UefiInput(Path("/code"), exports[nvram], True)


def test_an_iso_boots_first_when_asked() -> None:
    document = vm(iso_boot_first=True)
    machine = machine_for(document, machine="pc-q35-10.0", accelerator="tcg", exports={}, iso=NbdExport(NBD, "iso"))
    assert machine.cdrom.boot_index == 0


def test_a_machine_holds_sixteen_disks() -> None:
    links = [DiskLink(disk_id=uuid(number)) for number in range(1, 18)]
    exports = {link.disk_id: NbdExport(NBD, link.disk_id) for link in links}
    machine_for(vm(disks=links[:16]), machine="pc-q35-10.0", accelerator="tcg", exports=exports)
    with pytest.raises(Invalid, match="no place"):
        machine_for(vm(disks=links), machine="pc-q35-10.0", accelerator="tcg", exports=exports)
