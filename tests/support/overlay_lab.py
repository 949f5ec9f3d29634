"""Hosts of virtual networks: namespaces that are wired to each other, each with an inn's switches and guests on it."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import frames as f
from switch_lab import Guest, Lab, in_namespace, new_namespace, run_in

from innkeeper.network.overlay import Encapsulation, OverlayPolicy, Record
from innkeeper.network.policy import PortPolicy, SwitchPolicy

PROVIDERS = {"a": "192.0.2.1", "b": "192.0.2.2"}
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_OWN = "".join(_DIGITS[os.getpid() // 36**place % 36] for place in range(3))
INNS = {"a": f"a{_OWN}", "b": f"b{_OWN}"}
"""Names of tenants' namespaces are seen by the whole machine: they carry this process's id."""
TENANTS = {"red": 5001, "blue": 5002}
NUMBER = {"red": 1, "blue": 2}
ADDRESS = {"a": "10.5.0.11", "b": "10.5.0.12"}
MACS = {"a": "52:54:00:00:00:11", "b": "52:54:00:00:00:12"}
"""Both tenants have the same macs and addresses."""
RECORDS = tuple(Record(ADDRESS[host], MACS[host], PROVIDERS[host]) for host in ADDRESS)


def virtual(host: str, tenant: str, encapsulation: Encapsulation = "vxlan") -> SwitchPolicy:
    overlay = OverlayPolicy(TENANTS[tenant], PROVIDERS[host], encapsulation, NUMBER[tenant], RECORDS)
    bridge = f"inbr-{INNS[host]}{NUMBER[tenant]}"
    return SwitchPolicy(tenant, bridge, kind="virtual", subnet="10.5.0.0/24", mtu=1450, overlay=overlay)


def port(host: str, tenant: str) -> PortPolicy:
    tap = f"intp-{INNS[host]}{NUMBER[tenant]}"
    return PortPolicy(tap, MACS[host], (ADDRESS[host],), hostname=f"{tenant}-{host}")


@dataclass
class Hosts:
    """The two hosts' labs, their guests by (host, tenant), and a listener on the wire."""

    labs: dict[str, Lab]
    guests: dict[tuple[str, str], Guest]
    wire: socket.socket

    def bridge(self, host: str, tenant: str) -> str:
        return f"inbr-{INNS[host]}{NUMBER[tenant]}"

    def on_the_wire(self) -> list[tuple[int, bytes]]:
        """(VNI, inner frame) of what has passed since the last time."""
        seen = []
        while True:
            try:
                packet = self.wire.recv(65536)
            except BlockingIOError:
                return seen
            if packet[12:14] == b"\x08\x00" and packet[23] == 47 and packet[34:38] == b"\x20\x00\x65\x58":
                seen.append((int.from_bytes(packet[38:41], "big"), packet[42:]))
            if packet[12:14] == b"\x08\x00" and packet[23] == 17 and packet[36:38] == struct.pack("!H", 4789):
                seen.append((int.from_bytes(packet[46:49], "big"), packet[50:]))


Layout = dict[str, Sequence[tuple[SwitchPolicy, Sequence[PortPolicy]]]]
"""Host -> its switches with their ports; a switch has one port at most."""


def two_tenants(encapsulation: Encapsulation = "vxlan") -> Layout:
    """Red and blue on both hosts, with the same addresses."""
    return {
        host: [(virtual(host, tenant, encapsulation), [port(host, tenant)]) for tenant in TENANTS] for host in PROVIDERS
    }


@contextmanager
def new_hosts(layout: Layout) -> Iterator[Hosts]:
    with ExitStack() as stack:
        names = {host: stack.enter_context(new_namespace(f"host-{host}")) for host in PROVIDERS}
        run_in(names["a"], "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up0", "netns", names["b"])
        for host, namespace in names.items():
            run_in(namespace, "ip", "addr", "add", f"{PROVIDERS[host]}/24", "dev", "up0")
            run_in(namespace, "ip", "link", "set", "up0", "up")
        labs: dict[str, Lab] = {}
        guests: dict[tuple[str, str], Guest] = {}
        for host, namespace in names.items():
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="inn-lab-"))
            Path(folder).chmod(0o755)
            labs[host] = lab = Lab(namespace, Path(folder) / "switches", layout[host][0][0], INNS[host])
            stack.callback(lab.close)
            for switch, ports in layout[host]:
                lab.do(lab.runner.ensure(switch, ports))
                guests.update(((host, switch.name), lab.open(one)) for one in ports)
        wire = in_namespace(names["b"], _listen)
        stack.callback(wire.close)
        yield Hosts(labs, guests, wire)


def _listen() -> socket.socket:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    wire.bind(("up0", 0))
    wire.setblocking(False)
    return wire


def packet(sender: Guest, receiver: Guest, payload: bytes) -> bytes:
    datagram = f.udp(sender.ip, receiver.ip, 4000, 4000, payload)
    return f.ethernet(receiver.mac, sender.mac, 0x0800, f.ipv4(sender.ip, receiver.ip, 17, datagram))


def tunnel_entries(lab: Lab, tenant: str) -> list[dict[str, object]]:
    bridge = f"inbr-{lab.inn_id}{NUMBER[tenant]}"
    found = json.loads(run_in(lab.namespace, "bridge", "-j", "fdb", "show", "br", bridge))
    return [one for one in found if one["ifname"].startswith("inov-") and one["mac"] in MACS.values()]
