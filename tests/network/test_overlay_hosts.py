"""Two hosts with two tenants that have the same addresses: what reaches whom, and what is on the wire between them."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import frames as f
import pytest
from overlay_lab import (
    ADDRESS,
    INNS,
    MACS,
    NUMBER,
    PROVIDERS,
    RECORDS,
    TENANTS,
    Hosts,
    new_hosts,
    packet,
    port,
    tunnel_entries,
    two_tenants,
    virtual,
)
from switch_lab import Lab, in_namespace, new_machine, run_in
from switch_world import until

from innkeeper.model.problems import Unavailable
from innkeeper.network.overlay import Record
from innkeeper.system.kernel_parts import kernel_parts

pytestmark = pytest.mark.root
TUNNEL, STRAY = f"inov-{INNS['a']}1", f"inov-{INNS['a']}9"


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with new_hosts(two_tenants()) as made:
        yield made


def test_a_tenants_packets_reach_its_own_guest_on_the_other_host_only(hosts: Hosts) -> None:
    red_a, red_b = hosts.guests["a", "red"], hosts.guests["b", "red"]
    blue_a, blue_b = hosts.guests["a", "blue"], hosts.guests["b", "blue"]
    red_a.send(packet(red_a, red_b, b"red one;"))
    assert red_b.wait_for(b"red one;") is not None
    blue_a.send(packet(blue_a, blue_b, b"blue one;"))
    blue_b.wait_for(b"blue one;")
    assert not any(b"one;" in frame for guest in (red_b, red_a, blue_a, blue_b) for frame in guest.drain())
    assert {vni for vni, _ in hosts.on_the_wire()} == set(TENANTS.values())


def test_who_has_an_address_is_answered_here_and_no_broadcast_leaves(hosts: Hosts) -> None:
    red_a, red_b = hosts.guests["a", "red"], hosts.guests["b", "red"]
    red_a.send(f.arp(red_a.mac, 1, red_a.mac, red_a.ip, "00" * 6, red_b.ip))
    answers = red_a.wait_for(f.mac(red_b.mac) + f.ip(red_b.ip))
    assert answers == []
    nobody = f.arp(red_a.mac, 1, red_a.mac, red_a.ip, "00" * 6, "10.5.0.99")
    solicit = f.icmpv6(red_a.link_local, "ff02::1:ff00:99", 135, 0, bytes(4) + f.ip("fe80::99"))
    discovery = f.ipv6(red_a.link_local, "ff02::1:ff00:99", 58, solicit, hop_limit=255)
    group = f.ethernet(f.multicast_mac("ff02::1:ff00:99"), red_a.mac, 0x86DD, discovery)
    unknown = f.ethernet(
        "52:54:00:00:00:77",
        red_a.mac,
        0x0800,
        f.ipv4(red_a.ip, "10.5.0.77", 17, f.udp(red_a.ip, "10.5.0.77", 1, 2, b"?")),
    )
    everybody = f.ipv4(red_a.ip, "10.5.0.255", 17, f.udp(red_a.ip, "10.5.0.255", 1, 2, b"!"))
    red_a.send(nobody, group, unknown, f.ethernet(f.BROADCAST, red_a.mac, 0x0800, everybody))
    red_a.send(packet(red_a, red_b, b"last;"))
    assert red_b.wait_for(b"last;") == []
    passed = hosts.on_the_wire()
    assert [(vni, frame[:6]) for vni, frame in passed] == [(5001, f.mac(red_b.mac))]


def test_frames_that_no_record_knows_are_dropped_on_arrival(hosts: Hosts) -> None:
    """A host that is not in the records, or one whose guards are off, speaks for others."""
    red_a, red_b = hosts.guests["a", "red"], hosts.guests["b", "red"]

    def encapsulated(frame: bytes) -> bytes:
        return struct.pack("!II", 0x08000000, 5001 << 8) + frame

    stranger, other = "52:54:00:00:00:66", "10.5.0.66"
    datagram = f.udp(other, red_b.ip, 1, 2, b"forged;")
    forged = [
        f.ethernet(red_b.mac, stranger, 0x0800, f.ipv4(other, red_b.ip, 17, datagram)),
        f.ethernet(red_b.mac, red_a.mac, 0x0800, f.ipv4(other, red_b.ip, 17, datagram)),
        f.arp(red_a.mac, 2, red_a.mac, other, red_b.mac, red_b.ip),
        f.arp(red_a.mac, 2, stranger, red_a.ip, red_b.mac, red_b.ip),
        f.ethernet(f.BROADCAST, red_a.mac, 0x0800, f.ipv4(other, red_b.ip, 17, datagram)),
    ]

    def speak() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sending:
            for frame in forged:
                sending.sendto(encapsulated(frame), (PROVIDERS["b"], 4789))

    in_namespace(hosts.labs["a"].namespace, speak)
    red_a.send(packet(red_a, red_b, b"last;"))
    assert red_b.wait_for(b"last;") == []
    listed = run_in(hosts.labs["b"].namespace, "nft", "list", "counter", "bridge", f"inn_{INNS['b']}", "drop_overlay")
    assert f"packets {len(forged)}" in listed
    assert {one["mac"] for one in tunnel_entries(hosts.labs["b"], "red")} == {red_a.mac}


def test_damage_is_repaired_and_what_stands_is_left_alone(hosts: Hosts) -> None:
    lab = hosts.labs["a"]
    red_a, red_b = hosts.guests["a", "red"], hosts.guests["b", "red"]
    assert lab.do(lab.runner.repair()).done == []
    before = tunnel_entries(lab, "red")
    bridge = f"inbr-{INNS['a']}1"
    damages = [
        ["bridge", "fdb", "del", red_b.mac, "dev", TUNNEL, "dst", PROVIDERS["b"], "self"],
        ["bridge", "fdb", "replace", red_b.mac, "dev", TUNNEL, "dst", "192.0.2.66", "self"],
        ["bridge", "fdb", "append", "00:00:00:00:00:00", "dev", TUNNEL, "dst", "192.0.2.66", "self"],
        ["bridge", "fdb", "del", red_b.mac, "dev", TUNNEL, "master"],
        ["ip", "neigh", "del", red_b.ip, "dev", bridge],
        ["ip", "neigh", "replace", red_b.ip, "lladdr", "52:54:00:00:00:66", "dev", bridge, "nud", "permanent"],
        ["ip", "link", "set", TUNNEL, "type", "bridge_slave", "flood", "on", "bcast_flood", "on"],
        ["ip", "link", "set", TUNNEL, "nomaster"],
        ["ip", "link", "set", TUNNEL, "down"],
        ["ip", "link", "del", TUNNEL],
    ]
    for damage in damages:
        run_in(lab.namespace, *damage)
        report = lab.do(lab.runner.repair())
        assert report.problems == {} and report.done != [], damage
        assert tunnel_entries(lab, "red") == before, damage
        red_a.send(packet(red_a, red_b, b"again;"))
        red_b.wait_for(b"again;")
        assert lab.do(lab.runner.repair()).done == [], damage


def test_records_come_and_go_and_a_switch_leaves_nothing(hosts: Hosts) -> None:
    lab, switch = hosts.labs["a"], virtual("a", "red")
    assert switch.overlay is not None
    more = tuple(
        Record(f"10.5.{n // 200}.{n % 200 + 20}", f"52:54:01:00:{n >> 8:02x}:{n & 255:02x}", "192.0.2.2")
        for n in range(1000)
    )
    wide = replace(switch, subnet="10.5.0.0/16")
    ports = [port("a", "red")]
    lab.do(lab.runner.ensure(replace(wide, overlay=replace(switch.overlay, records=RECORDS + more)), ports))
    assert lab.do(lab.runner.repair()).done == []
    assert len(_destinations(lab)) == 1001
    lab.do(lab.runner.ensure(switch, ports))
    assert _destinations(lab) == {MACS["b"]: PROVIDERS["b"]}
    run_in(lab.namespace, "ip", "link", "add", STRAY, "type", "vxlan", "id", "9999", "dstport", "4789")
    assert lab.do(lab.runner.repair()).done == [f"remove tunnel {STRAY}"]
    for tenant in TENANTS:
        lab.do(lab.runner.remove(f"inbr-{INNS['a']}{NUMBER[tenant]}"))
    assert "inov-" not in run_in(lab.namespace, "ip", "link", "show")
    assert "10.5.0" not in run_in(lab.namespace, "nft", "list", "ruleset")


def _destinations(lab: Lab) -> dict[str, str]:
    found = json.loads(run_in(lab.namespace, "bridge", "-j", "fdb", "show", "dev", TUNNEL))
    return {one["mac"]: one["dst"] for one in found if "dst" in one}


def test_a_second_network_with_the_same_identifier_is_refused_and_leaves_nothing(hosts: Hosts) -> None:
    lab = hosts.labs["a"]
    double = replace(virtual("a", "red"), name="twice", bridge=f"inbr-{INNS['a']}7")
    with pytest.raises(Exception, match="refused"):
        lab.do(lab.runner.ensure(double, []))
    links = run_in(lab.namespace, "ip", "link", "show")
    assert f"{INNS['a']}7" not in links


def test_a_kernel_without_gre_says_so_and_keeps_what_stands(hosts: Hosts) -> None:
    """``tests/lane/test_nvgre.py`` is about kernels that have it."""
    lab, ports = hosts.labs["a"], [port("a", "red")]
    if not kernel_parts(["ip_gre"])["ip_gre"]:
        with pytest.raises(Unavailable) as refused:
            lab.do(lab.runner.ensure(virtual("a", "red", "nvgre"), ports))
        assert refused.value.code == "network.kernel_lacks"
        assert "ip_gre" in refused.value.detail
    assert lab.do(lab.runner.repair()).problems == {}
    red_a, red_b = hosts.guests["a", "red"], hosts.guests["b", "red"]
    red_a.send(packet(red_a, red_b, b"still;"))
    red_b.wait_for(b"still;")


def test_guests_with_real_stacks_speak_across_hosts(hosts: Hosts) -> None:
    """Same macs and addresses in both tenants: each guest finds its own neighbour."""
    with ExitStack() as stack:
        machines = {
            place: stack.enter_context(new_machine("-".join(place), guest)) for place, guest in hosts.guests.items()
        }
        for machine in machines.values():
            run_in(machine.namespace, "ip", "link", "set", "eth0", "mtu", "1450")
            run_in(machine.namespace, "ip", "addr", "add", f"{machine.guest.ip}/24", "dev", "eth0")
        for machine in machines.values():
            assert until(lambda one=machine: "tentative" not in run_in(one.namespace, "ip", "-6", "addr"))
        for tenant in TENANTS:
            here, there = machines["a", tenant], machines["b", tenant]
            run_in(here.namespace, "ping", "-c", "2", "-i", "0.2", "-W", "5", there.guest.ip)
            run_in(here.namespace, "ping", "-c", "1", "-s", "1400", "-M", "do", "-W", "5", there.guest.ip)
            run_in(here.namespace, "ping", "-c", "1", "-W", "5", f"{there.guest.link_local}%eth0")
        hosts.on_the_wire()
        run_in(machines["b", "red"].namespace, "ip", "addr", "flush", "dev", "eth0")
        run_in(machines["a", "red"].namespace, "ping", "-c", "2", "-i", "0.2", "-W", "1", ADDRESS["b"], check=False)
        run_in(machines["a", "blue"].namespace, "ping", "-c", "1", "-W", "5", ADDRESS["b"])
        assert all(frame[0] & 1 == 0 for _, frame in hosts.on_the_wire()), "no broadcast and no multicast"
