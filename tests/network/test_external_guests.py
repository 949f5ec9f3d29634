"""Guests on an external switch: the network outside is theirs, and nothing there speaks for them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import frames as f
import pytest
from host_lab import BRIDGE, WORLD4, Host, dhcp_outside, external_port, new_host, plugged, send_from_world
from switch_lab import INN_ID, PATIENCE_S, Guest, new_namespace, run_in

from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.uplink_policy import UplinkPolicy

pytestmark = pytest.mark.root


@pytest.fixture
def host() -> Iterator[Host]:
    with new_host() as made:
        made.do(made.runner.ensure(made.policy()))
        yield made


def _offer(guest: Guest) -> str:
    """Ask for an address as a guest does at boot; the one that is offered."""
    message = f.dhcp(1, 1, guest.mac)
    packet = f.ipv4("0.0.0.0", "255.255.255.255", 17, f.udp("0.0.0.0", "255.255.255.255", 68, 67, message))
    guest.send(f.ethernet(f.BROADCAST, guest.mac, 0x0800, packet))
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        answer = guest.receive(0.5)
        if answer and answer[12:14] == b"\x08\x00" and answer[23] == 17 and answer[36:38] == struct.pack("!H", 68):
            return socket.inet_ntoa(answer[58:62])
    raise AssertionError("no answer of DHCP")


def test_dhcp_is_that_of_the_network_outside(host: Host) -> None:
    with dhcp_outside(host), plugged(host, external_port(1)) as guest:
        assert _offer(guest).startswith("192.0.2.1")
    assert not list(Path(host.directory).glob("*/dnsmasq.pid")), "the inn serves none there"


def test_nothing_outside_speaks_for_a_local_card(host: Host) -> None:
    with plugged(host, external_port(1)) as guest, plugged(host, external_port(2)) as other:
        world = run_in(host.world, "ip", "-o", "link", "show", "out").split("link/ether ")[1].split()[0]
        guest.send(f.arp(guest.mac, 1, guest.mac, "192.0.2.61", "00:00:00:00:00:00", WORLD4))
        guest.wait_for(f.mac(world))
        other.drain()
        cloned = f.arp(guest.mac, 1, guest.mac, "192.0.2.61", "00:00:00:00:00:00", "192.0.2.62")
        honest = f.arp(world, 1, world, WORLD4, "00:00:00:00:00:00", "192.0.2.62")
        send_from_world(host, cloned, honest)
        arrived = other.wait_for(f.mac(world) + b"\x08\x06")
        assert [frame for frame in arrived if frame[6:12] == f.mac(guest.mac)] == []
        table = run_in(host.namespace, "bridge", "fdb", "show", "br", BRIDGE)
        assert any(line.startswith(guest.mac) and guest.port.tap in line for line in table.splitlines())
        assert not any(line.startswith(guest.mac) and "eth0" in line for line in table.splitlines())
        rules = run_in(host.namespace, "nft", "list", "counter", "bridge", f"inn_{INN_ID}", "drop_cloned")
        assert "packets 1 " in rules
        trusted = run_in(host.namespace, "nft", "list", "set", "bridge", f"inn_{INN_ID}", "trusted_ports")
        assert '"eth0"' in trusted
    assert guest.mac not in run_in(host.namespace, "nft", "list", "set", "bridge", f"inn_{INN_ID}", "uplink_macs")


def test_a_bridge_of_the_hosts_own_is_joined_by_a_cable_and_left_as_it_is() -> None:
    with new_host() as host:
        for command in ("link add br0 type bridge", "link set br0 up", "link set eth0 master br0"):
            host.ip(command)
        for command in ("addr flush dev eth0", "addr add 192.0.2.10/24 dev br0", "route add default via 192.0.2.1"):
            host.ip(command)
        before = host.network()
        uplink = UplinkPolicy(("br0",), via="cable")
        switch = SwitchPolicy("lan", BRIDGE, kind="external", uplink=uplink)
        assert f"connect {BRIDGE} with br0" in host.do(host.runner.ensure(switch))
        assert host.do(host.runner.ensure(switch)) == [] and host.do(host.runner.repair()).problems == {}
        assert host.network() == before
        with dhcp_outside(host), plugged(host, external_port(1)) as guest:
            assert _offer(guest).startswith("192.0.2.1")
        host.ip("link del br0")
        assert host.do(host.runner.repair()).problems["lan"].code == "switch.uplink_gone"
        for command in ("link add br0 type bridge", "link set br0 up", "link set eth0 master br0"):
            host.ip(command)
        assert host.do(host.runner.repair()).problems == {}
        host.do(host.runner.remove(BRIDGE))
        links = host.ip("-o link")
        assert "inup-" not in links and "inuq-" not in links and "br0" in links


def test_a_second_switch_of_cards_without_addresses_moves_nothing(host: Host) -> None:
    with new_namespace("second") as far:
        run_in(host.namespace, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "out", "netns", far)
        for namespace, device in ((host.namespace, "eth1"), (far, "out")):
            run_in(namespace, "ip", "link", "set", device, "up")
        before = host.network()
        facts = host.facts("eth1")
        uplink = UplinkPolicy(("eth1",), mac=facts.mac, network=facts.network, confirm_s=30.0)
        second = replace(host.policy(), name="second", bridge=f"inbr-{INN_ID}2", uplink=uplink)
        host.do(host.runner.ensure(second))
        assert host.runner.read_uplink_record(second.bridge) is None, "there is nothing to be confirmed"
        assert host.network() == before
        host.do(host.runner.remove(second.bridge))
        assert "eth1" in host.ip("link") and host.reaches()
