"""The doctor's judgements are pure: every bad fact gives a finding with a cause or detail and a remedy."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from pathlib import Path

import pytest
from waiting_process import waiting_process

from innkeeper.harden import doctor
from innkeeper.harden.facts import HostFacts, disciplined, gather
from innkeeper.harden.ports import Listener, command_names, listeners, parse_sockets
from innkeeper.model.sizes import GIB, MIB
from innkeeper.network.features import FEATURES, Feature

WELL = HostFacts(
    is_root=True,
    kernel="6.1.0",
    devices={"/dev/kvm": True, "/dev/net/tun": True, "/dev/vhost-net": True},
    kernel_parts={"bridge": True, "nf_tables": True, "tun": True, "br_netfilter": False}
    | {part: True for feature in FEATURES for part in feature.parts},
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
        ({"switch_findings": (("lan", "eth0, the uplink, is gone"),)}, "switch lan", "warning", False),
        ({"firewall_findings": ("there is no interface eth9 now",)}, "host firewall", "warning", False),
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
        ({"kernel_parts": {**WELL.kernel_parts, "ifb": False}}, "kernel traffic control", "warning", False),
        ({"state_free_bytes": GIB}, "disk space", "failed", True),
        ({"state_free_bytes": 5 * GIB}, "disk space", "warning", True),
        ({"state_free_bytes": GIB, "founded": True}, "disk space", "warning", True),
        ({"memory_available_bytes": 100 * MIB}, "memory", "failed", True),
        ({"memory_available_bytes": 700 * MIB}, "memory", "warning", True),
        ({"unix_time": 0.0}, "clock", "failed", False),
        ({"clock_synchronised": False}, "clock", "warning", False),
        ({"accelerator": "tcg"}, "kvm", "warning", False),
        ({"pool_problem": "2 stored items are damaged"}, "pool", "failed", False),
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


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_a_kernel_without_a_part_is_told_what_works_all_the_same(feature: Feature) -> None:
    for part in feature.parts:
        found = doctor.examine(dataclasses.replace(WELL, kernel_parts={**WELL.kernel_parts, part: False}))
        warned = [check for check in found if check.state != "ok" and check.name == f"kernel {feature.name}"]
        assert len(warned) == 1 == sum(check.state != "ok" for check in found), "told once"
        assert part in warned[0].detail
        assert warned[0].cause == f"{feature.need}; {feature.still}"


def test_a_held_port_names_its_holder() -> None:
    tomcat = Listener("tcp", "0.0.0.0", 443, pid=812, process="java")
    facts = dataclasses.replace(WELL, wanted_ports=(("tcp", 443), ("udp", 443)), listeners=(tomcat,))
    held, free = [check for check in doctor.examine(facts) if check.name.startswith("port")]
    assert held.state == "warning"
    assert "java (pid 812)" in held.detail
    assert held.remedy is not None
    assert "java" in held.remedy
    assert free.state == "ok"


@pytest.mark.parametrize(
    ("listener", "warned"),
    [
        (Listener("udp", "10.9.0.1", 67, pid=7, process="dhcpd"), "port udp/67"),
        (Listener("tcp", "10.9.0.1", 53, pid=7, process="named"), "port tcp/53"),
        (Listener("udp", "0.0.0.0", 53, "inbr-aaaa1", pid=7, process="named"), "port udp/53"),
        (Listener("udp", "::", 67, pid=7, process="dhcpd"), "port udp/67"),
        (Listener("udp", "0.0.0.0", 67, "virbr0", pid=7, process="dnsmasq"), None),
        (Listener("udp", "127.0.0.1", 53, pid=7, process="named"), None),
        (Listener("tcp", "10.9.0.1", 67, pid=7, process="other"), None),
    ],
)
def test_who_holds_what_a_gateway_answers_on(listener: Listener, warned: str | None) -> None:
    facts = dataclasses.replace(WELL, gateways=(("inbr-aaaa1", "10.9.0.1"),), listeners=(listener,))
    found = [check for check in doctor.examine(facts) if check.state == "warning"]
    assert [check.name for check in found] == ([warned] if warned else [])
    assert all("(pid 7)" in check.detail and check.remedy for check in found)


def test_the_tables_of_ss_are_read() -> None:
    text = (
        'udp UNCONN 0 0 0.0.0.0%inbr-aaaa1:67 0.0.0.0:* users:(("dnsmasq",pid=31,fd=4))\n'
        'tcp LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=12,fd=3),("sshd",pid=13,fd=3))\n'
        "tcp LISTEN 0 5 [fe80::1%eth0]:53 [::]:*\n"
        "udp UNCONN 0 0 *:5353 *:*\n"
    )
    assert parse_sockets(text) == [
        Listener("udp", "0.0.0.0", 67, "inbr-aaaa1", pid=31, process="dnsmasq"),
        Listener("tcp", "::", 22, pid=12, process="sshd"),
        Listener("tcp", "fe80::1", 53, "eth0"),
        Listener("udp", "*", 5353),
    ]


def test_this_process_is_found_as_the_holder_of_its_own_port() -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        (found,) = [one for one in listeners() if one.port == port and one.protocol == "tcp"]
    assert found.pid == os.getpid()
    assert found.address == "127.0.0.1"


def test_what_names_its_state_directory_is_this_inn() -> None:
    program = Path(sys.executable)
    with waiting_process() as child:
        assert command_names(child.pid, program.parent)
        assert not command_names(child.pid, Path("/elsewhere"))
    assert not command_names(2**22, program.parent)


@pytest.mark.parametrize(
    ("answered", "status", "said"),
    [(0, 0x2001, True), (1, 0x2011, True), (5, 0x40, False), (5, 0x2000, False), (0, 0x41, False), (-1, 0, None)],
)
def test_a_clock_is_judged_by_the_kernels_answer(answered: int, status: int, said: bool | None) -> None:
    assert disciplined(answered, status) is said


def test_this_host_can_be_looked_at(tmp_path: Path) -> None:
    facts = gather(tmp_path / "not" / "there" / "yet")
    assert facts.memory_total_bytes > facts.memory_available_bytes > 0
    assert facts.state_total_bytes > 0
    assert doctor.examine(facts)
