"""QEMU's block nodes and devices as the dictionaries that the command line and QMP (``blockdev-add``) take.

Cold plugging and hot plugging use the same values, so a guest restored from a memory image finds what it had.
Every format is named; nothing is ever probed. Schema: QEMU's QMP reference, BlockdevOptions.
"""

from __future__ import annotations

import base64
import hashlib
from typing import Any
from uuid import UUID

from innkeeper.compute.inputs import DiskInput, NbdExport, NicInput

RECONNECT_DELAY_S = 30
"""How long a request waits for the storage process to come back before it fails and QEMU pauses the guest."""
OPEN_TIMEOUT_S = 10
"""How long opening a disk waits for the storage process."""

Properties = dict[str, Any]


def short(identity: str) -> str:
    """A UUID in 26 characters (base 32): whole, and room for a prefix, because QEMU's node names end at 31."""
    return base64.b32encode(UUID(identity).bytes).decode().rstrip("=").lower()


def disk_device_id(disk_id: str) -> str:
    return f"disk-{short(disk_id)}"


def nic_device_id(nic_id: str) -> str:
    return f"nic-{short(nic_id)}"


def root_port_id(port: int) -> str:
    return f"rp{port}"


def media_name(source: NbdExport) -> str:
    """A node name for removable media, its own for each export, so that old and new media can be open together."""
    return "iso-" + hashlib.sha256(f"{source.socket}\0{source.export}".encode()).hexdigest()[:20]


def nbd_nodes(name: str, source: NbdExport, *, read_only: bool) -> tuple[Properties, Properties]:
    """The protocol node ``p-<name>`` and above it the raw format node ``f-<name>``, in the order of adding."""
    shared = {
        "read-only": read_only,
        "auto-read-only": False,
        "discard": "unmap",
        "detect-zeroes": "off",
        "cache": {"direct": True, "no-flush": False},
    }
    protocol = {
        "driver": "nbd",
        "node-name": protocol_node(name),
        "server": {"type": "unix", "path": str(source.socket)},
        "export": source.export,
        "reconnect-delay": RECONNECT_DELAY_S,
        "open-timeout": OPEN_TIMEOUT_S,
        **shared,
    }
    return protocol, {"driver": "raw", "node-name": format_node(name), "file": protocol_node(name), **shared}


def protocol_node(name: str) -> str:
    return f"p-{name}"


def format_node(name: str) -> str:
    return f"f-{name}"


def disk_nodes(disk: DiskInput) -> tuple[Properties, Properties]:
    return nbd_nodes(short(disk.disk_id), disk.source, read_only=disk.read_only)


def disk_device(disk: DiskInput) -> Properties:
    """A virtio disk that stops the guest, and not the guest's file system, when storage is away."""
    device: Properties = {
        "driver": "virtio-blk-pci",
        "id": disk_device_id(disk.disk_id),
        "bus": root_port_id(disk.port),
        "drive": format_node(short(disk.disk_id)),
        "serial": disk.disk_id.replace("-", "")[:20],
        "write-cache": "on",
        "werror": "stop",
        "rerror": "stop",
    }
    if disk.boot_index is not None:
        device["bootindex"] = disk.boot_index
    return device


def nic_device(nic: NicInput) -> Properties:
    """A virtio card without a boot ROM; its back end is the netdev ``net-…``."""
    return {
        "driver": "virtio-net-pci",
        "id": nic_device_id(nic.nic_id),
        "bus": root_port_id(nic.port),
        "netdev": netdev_id(nic.nic_id),
        "mac": nic.mac,
        "host_mtu": nic.mtu,
        "romfile": "",
    }


def netdev_id(nic_id: str) -> str:
    return f"net-{short(nic_id)}"


def root_port(port: int) -> Properties:
    """A PCIe root port; eight share one slot of the root bus from slot 0x10 on. No legacy I/O window is reserved."""
    index = port - 1
    device: Properties = {
        "driver": "pcie-root-port",
        "id": root_port_id(port),
        "bus": "pcie.0",
        "addr": f"{0x10 + index // 8:#x}.{index % 8}",
        "chassis": port,
        "slot": port,
        "io-reserve": 0,
    }
    if index % 8 == 0:
        device["multifunction"] = True
    return device
