"""The doctor's judgements are pure: every bad fact gives a finding with a cause or detail and a remedy."""

from __future__ import annotations

import dataclasses
import os
import socket
from pathlib import Path

import pytest

from innkeeper.harden import doctor
from innkeeper.harden.facts import HostFacts, gather
from innkeeper.harden.ports import Listener, listeners, parse_table
from innkeeper.model.sizes import GIB, MIB

WELL = HostFacts(
    is_root=True,
    kernel="6.1.0",
    devices={"/dev/kvm": True, "/dev/net/tun": True, "/dev/vhost-net": True},
    kernel_parts={"bridge": True, "nf_tables": True, "tun": True, "br_netfilter": False},
    cgroup_version=2,
    tools={
        "qemu-system-x86_64": "QEMU emulator version 10.0.2 (Debian)",
        "qemu-img": "qemu-img version 10.0.2",
        "nft": "nftables v1.0.6",
        "dnsmasq": "Dnsmasq version 2.90",
        "ip": "ip utility",
        "setpriv": "setpriv",
        "swtpm": "swtpm",
    },
    state_free_bytes=100 * GIB,
    state_total_bytes=200 * GIB,
    memory_total_bytes=16 * GIB,
    memory_available_bytes=8 * GIB,
    clock_synchronised=True,
    unix_time=1_790_000_000.0,
    accelerator="kvm",
)


def test_a_well_host_has_no_complaints() -> None:
    assert {check.state for check in doctor.examine(WELL)} == {"ok"}


@pytest.mark.parametrize(
    ("change", "name", "state", "essential"),
    [
        ({"is_root": False}, "root", "failed", True),
        ({"tools": {**WELL.tools, "nft": None}}, "tool nft", "failed", True),
        ({"tools": {**WELL.tools, "swtpm": None}}, "tool swtpm", "warning", False),
        (
            {"tools": {**WELL.tools, "qemu-system-x86_64": "QEMU emulator version 7.2.22"}},
            "qemu version",
            "failed",
            True,
        ),
        ({"devices": {"/dev/net/tun": False}}, "device /dev/net/tun", "failed", True),
        ({"devices": {"/dev/net/tun": True}}, "device /dev/vhost-net", "warning", False),
        ({"kernel_parts": {"bridge": False, "nf_tables": True}}, "kernel bridge", "failed", True),
        ({"state_free_bytes": GIB}, "disk space", "failed", True),
        ({"state_free_bytes": 5 * GIB}, "disk space", "warning", True),
        ({"memory_available_bytes": 100 * MIB}, "memory", "failed", True),
        ({"memory_available_bytes": 700 * MIB}, "memory", "warning", True),
        ({"unix_time": 0.0}, "clock", "failed", False),
        ({"clock_synchronised": False}, "clock", "warning", False),
        ({"accelerator": "tcg"}, "kvm", "warning", False),
        ({"foreign_drops": (("ip filter FORWARD drops it", "accept inbr-*"),)}, "firewall", "warning", False),
    ],
)
def test_each_complaint_has_a_remedy(change: dict[str, object], name: str, state: str, essential: bool) -> None:
    checks = doctor.examine(dataclasses.replace(WELL, **change))
    (found,) = [check for check in checks if check.name == name and check.state != "ok"]
    assert found.state == state
    assert found.remedy
    assert found.essential == essential
    assert (found in doctor.essential(checks)) == (essential and state == "failed")


def test_a_held_port_names_its_holder() -> None:
    tomcat = Listener("tcp", "0.0.0.0", 443, 1, pid=812, process="java")
    facts = dataclasses.replace(WELL, wanted_ports=(("tcp", 443), ("udp", 443)), listeners=(tomcat,))
    held, free = [check for check in doctor.examine(facts) if check.name.startswith("port")]
    assert held.state == "warning"
    assert "java (pid 812)" in held.detail
    assert held.remedy is not None
    assert "java" in held.remedy
    assert free.state == "ok"


def test_proc_net_tables_are_read() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:0035 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 x 100 0\n"
        "   1: 0100007F:1F90 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 x 100 0\n"
    )
    assert parse_table(text, "tcp") == [Listener("tcp", "127.0.0.1", 53, 4242)]


def test_this_process_is_found_as_the_holder_of_its_own_port() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        (found,) = [one for one in listeners() if one.port == port and one.protocol == "tcp"]
    assert found.pid == os.getpid()
    assert found.address == "127.0.0.1"


def test_this_host_can_be_looked_at(tmp_path: Path) -> None:
    facts = gather(tmp_path / "not" / "there" / "yet")
    assert facts.memory_total_bytes > facts.memory_available_bytes > 0
    assert facts.state_total_bytes > 0
    assert doctor.examine(facts)
