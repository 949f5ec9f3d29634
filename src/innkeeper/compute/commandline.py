"""The arguments of a guest's QEMU: one pure function, so that they can be read, compared and tested without a machine.

The machine is always q35 with a fixed plan of PCI addresses; nothing that QEMU would add by itself is there. It
starts stopped (``-S``): the guest runs its first instruction only when the daemon says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from innkeeper.compute import devices
from innkeeper.compute.inputs import DISK_PORTS, NIC_PORTS, Descriptors, MachineInputs

AGENT_PORT = "org.qemu.guest_agent.0"
CDROM = "cd0"
AGENT_CHARDEV = "agent"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_SEED_FDSET = 1
_KVM_FDSET = 2


def command_line(machine: MachineInputs, descriptors: Descriptors, run_dir: Path) -> list[str]:
    """The arguments after ``qemu-system-x86_64``.

    ``run_dir`` holds the sockets that QEMU makes or looks for itself: ``vnc.sock`` and ``tpm.sock``.
    """
    return [
        *_process(machine),
        *_board(machine, descriptors),
        *_firmware(machine),
        *_channels(descriptors, run_dir),
        *_comforts(machine),
        *_root_ports(),
        *_disks(machine),
        *_removable(machine, descriptors),
        *_nics(machine, descriptors),
        *_tpm(machine, run_dir),
        *(["-incoming", "defer"] if machine.restoring else []),
    ]


def _device(properties: devices.Properties) -> list[str]:
    return ["-device", json.dumps(properties)]


def _blockdev(properties: devices.Properties) -> list[str]:
    return ["-blockdev", json.dumps(properties)]


def _process(machine: MachineInputs) -> list[str]:
    return [
        "-nodefaults",
        "-no-user-config",
        "-S",
        "-name",
        f"guest={machine.name},process=inn-{machine.name[:11]},debug-threads=on",
        "-uuid",
        machine.vm_id,
        "-sandbox",
        SANDBOX,
        "-msg",
        "timestamp=on",
        "-action",
        "reboot=reset,shutdown=pause,panic=pause",
    ]


def _board(machine: MachineInputs, descriptors: Descriptors) -> list[str]:
    secure = machine.uefi is not None and machine.uefi.secure_boot
    board = f"{machine.machine},usb=off,vmport=off,dump-guest-core=off,smm={'on' if secure else 'off'}"
    if machine.uefi is not None:
        board += f",pflash0={devices.format_node('code')},pflash1={devices.format_node('nvram')}"
    arguments = ["-machine", board]
    if machine.accelerator == "kvm":
        arguments += ["-cpu", "host,migratable=on"]
        if descriptors.kvm is None:
            arguments += ["-accel", "kvm"]
        else:
            arguments += ["-add-fd", f"fd={descriptors.kvm},set={_KVM_FDSET}"]
            arguments += ["-accel", f"kvm,device=/dev/fdset/{_KVM_FDSET}"]
    else:
        tb_size_mib = machine.tb_size_bytes // (1024 * 1024)
        arguments += ["-cpu", "max", "-accel", f"tcg,thread=multi,tb-size={tb_size_mib}"]
    return [
        *arguments,
        "-smp",
        f"{machine.cpus},sockets=1,cores={machine.cpus},threads=1",
        "-m",
        f"size={machine.memory_bytes // 1024}k",
        "-rtc",
        "base=utc,driftfix=slew",
        "-global",
        "ICH9-LPC.disable_s3=1",
        "-global",
        "ICH9-LPC.disable_s4=1",
        "-boot",
        "strict=on",
        *_device({"driver": "vmgenid", "id": "vmgenid0", "guid": machine.generation_id}),
    ]


def _firmware(machine: MachineInputs) -> Iterator[str]:
    """UEFI code and variables as two flash chips; BIOS needs nothing."""
    if machine.uefi is None:
        return
    if machine.uefi.secure_boot:
        yield from ("-global", "driver=cfi.pflash01,property=secure,value=on")
    read_only = {"read-only": True, "auto-read-only": False}
    file = {"driver": "file", "node-name": devices.protocol_node("code"), "filename": str(machine.uefi.code)}
    yield from _blockdev({**file, **read_only})
    raw = {"driver": "raw", "node-name": devices.format_node("code"), "file": devices.protocol_node("code")}
    yield from _blockdev({**raw, **read_only})
    for node in devices.nbd_nodes("nvram", machine.uefi.nvram, read_only=False):
        yield from _blockdev(node)


def _channels(descriptors: Descriptors, run_dir: Path) -> list[str]:
    """The monitor, the serial console, the agent's port and VNC."""
    return [
        "-chardev",
        f"socket,id=monitor,fd={descriptors.monitor},server=on,wait=off",
        "-mon",
        "chardev=monitor,mode=control",
        "-chardev",
        f"socket,id=serial,fd={descriptors.serial},server=on,wait=off",
        "-serial",
        "chardev:serial",
        "-chardev",
        f"socket,id={AGENT_CHARDEV},fd={descriptors.agent},server=on,wait=off",
        *_device({"driver": "virtio-serial-pci", "id": "serial0", "bus": "pcie.0", "addr": "0x2", "max_ports": 4}),
        *_device(
            {
                "driver": "virtserialport",
                "id": "agent0",
                "bus": "serial0.0",
                "nr": 1,
                "chardev": AGENT_CHARDEV,
                "name": AGENT_PORT,
            }
        ),
        "-vnc",
        f"unix:{run_dir / 'vnc.sock'}",
        *_device({"driver": "VGA", "id": "video0", "bus": "pcie.0", "addr": "0x1"}),
    ]


def _comforts(machine: MachineInputs) -> list[str]:
    """Entropy, memory that can be given back, an absolute pointer, notice of panics, a thread for disk I/O."""
    return [
        "-object",
        json.dumps({"qom-type": "rng-random", "id": "entropy0", "filename": "/dev/urandom"}),
        *_device({"driver": "virtio-rng-pci", "id": "rng0", "rng": "entropy0", "bus": "pcie.0", "addr": "0x3"}),
        *_device(
            {
                "driver": "virtio-balloon-pci",
                "id": "balloon0",
                "bus": "pcie.0",
                "addr": "0x4",
                "free-page-reporting": True,
            }
        ),
        *_device({"driver": "virtio-tablet-pci", "id": "tablet0", "bus": "pcie.0", "addr": "0x5"}),
        *_device({"driver": "pvpanic-pci", "id": "panic0", "bus": "pcie.0", "addr": "0x8"}),
    ]


def _root_ports() -> Iterator[str]:
    for port in (*NIC_PORTS, *DISK_PORTS):
        yield from _device(devices.root_port(port))


def _disks(machine: MachineInputs) -> Iterator[str]:
    for disk in machine.disks:
        for node in devices.disk_nodes(disk):
            yield from _blockdev(node)
        yield from _device(devices.disk_device(disk))


def _removable(machine: MachineInputs, descriptors: Descriptors) -> Iterator[str]:
    """The CD-ROM drive on virtio-scsi, and the cloud-init seed as a disk: small kernels have no driver for AHCI."""
    yield from _device({"driver": "virtio-scsi-pci", "id": "scsi0", "bus": "pcie.0", "addr": "0x6"})
    drive: devices.Properties = {"driver": "scsi-cd", "id": CDROM, "bus": "scsi0.0", "scsi-id": 0, "lun": 0}
    if machine.cdrom.media is not None:
        name = devices.media_name(machine.cdrom.media)
        for node in devices.nbd_nodes(name, machine.cdrom.media, read_only=True):
            yield from _blockdev(node)
        drive |= {"drive": devices.format_node(name), "werror": "stop", "rerror": "stop"}
    if machine.cdrom.boot_index is not None:
        drive["bootindex"] = machine.cdrom.boot_index
    yield from _device(drive)
    if descriptors.seed is not None:
        yield from ("-add-fd", f"fd={descriptors.seed},set={_SEED_FDSET}")
        read_only = {"read-only": True, "auto-read-only": False}
        file = {"driver": "file", "node-name": devices.protocol_node("seed"), "filename": f"/dev/fdset/{_SEED_FDSET}"}
        yield from _blockdev({**file, **read_only})
        seed = devices.format_node("seed")
        yield from _blockdev({"driver": "raw", "node-name": seed, "file": devices.protocol_node("seed"), **read_only})
        yield from _device({"driver": "virtio-blk-pci", "id": "seed0", "bus": "pcie.0", "addr": "0x7", "drive": seed})


def _nics(machine: MachineInputs, descriptors: Descriptors) -> Iterator[str]:
    for nic, descriptor in zip(machine.nics, descriptors.taps, strict=True):
        yield from ("-netdev", f"tap,id={devices.netdev_id(nic.nic_id)},fd={descriptor}")
        yield from _device(devices.nic_device(nic))


def _tpm(machine: MachineInputs, run_dir: Path) -> list[str]:
    if not machine.tpm:
        return []
    return [
        "-chardev",
        f"socket,id=tpm,path={run_dir / 'tpm.sock'}",
        "-tpmdev",
        "emulator,id=tpm0,chardev=tpm",
        *_device({"driver": "tpm-crb", "tpmdev": "tpm0"}),
    ]
