"""Switches between real network stacks: what passes, and what does not."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace

import frames as f
import pytest
from switch_lab import PATIENCE_S, Lab, in_namespace, new_machine, new_namespace, run_in
from switch_world import GATEWAY, SWITCH, port_of, until

from innkeeper.network.policy import Forward, PortPolicy, SwitchPolicy

pytestmark = pytest.mark.root
OUTSIDE_HOST = "198.51.100.1"
OUTSIDE = "198.51.100.2"


def _ask_dns(machine_namespace: str, name: str) -> str:
    """The IPv4 address that the switch's DNS gives for ``name``; empty for none."""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    query = struct.pack("!HHHHHH", 7, 0x0100, 1, 0, 0, 0) + question + struct.pack("!HH", 1, 1)

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.settimeout(PATIENCE_S)
            asking.connect((GATEWAY, 53))
            asking.send(query)
            return asking.recv(4096)

    answer = in_namespace(machine_namespace, ask)
    count = struct.unpack("!H", answer[6:8])[0]
    return socket.inet_ntoa(answer[-4:]) if count else ""


@pytest.fixture
def world(lab: Lab) -> Iterator[tuple[Lab, str]]:
    """The lab with a host outside, reached by routing, which knows the way to the guests."""
    with new_namespace("outside") as outside:
        commands = f"""
            ip link add up0 type veth peer name eth0 netns {outside}
            ip addr add {OUTSIDE_HOST}/24 dev up0
            ip link set up0 up
        """
        for command in commands.strip().splitlines():
            run_in(lab.namespace, *command.split())
        run_in(outside, "ip", "addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
        run_in(outside, "ip", "link", "set", "eth0", "up")
        run_in(outside, "ip", "route", "add", "10.66.0.0/24", "via", OUTSIDE_HOST)
        yield lab, outside


def _listen(address: str, port: int) -> Callable[[], socket.socket]:
    def listen() -> socket.socket:
        listening = socket.create_server((address, port))
        listening.settimeout(PATIENCE_S)
        return listening

    return listen


def _connect(address: str, port: int) -> Callable[[], socket.socket]:
    return lambda: socket.create_connection((address, port), timeout=PATIENCE_S)


def _speak(client_namespace: str, address: str, port: int, server: socket.socket) -> str:
    """Connect and exchange a word; the address that the server sees."""
    with in_namespace(client_namespace, _connect(address, port)) as client:
        accepted, peer = server.accept()
        with accepted:
            accepted.settimeout(PATIENCE_S)
            client.sendall(b"word")
            assert accepted.recv(4) == b"word"
            accepted.sendall(b"back")
            assert client.recv(4) == b"back"
    return str(peer[0])


def test_guests_with_real_stacks(world: tuple[Lab, str]) -> None:
    lab, outside = world
    forwards = (
        Forward("tcp", 8080, "10.66.0.11", 80),
        Forward("tcp", 8081, "10.66.0.11", 80, host_address=OUTSIDE_HOST),
    )
    lab.do(lab.runner.ensure(replace(SWITCH, forwards=forwards), []))
    with (
        new_machine("guest1", lab.plug(port_of(1))) as one,
        new_machine("guest2", lab.plug(port_of(2))) as two,
    ):
        one.give_address(GATEWAY)
        two.give_address(GATEWAY)
        # neighbours, the host and its names
        run_in(one.namespace, "ping", "-c", "2", "-i", "0.2", "-W", "5", two.guest.ip)
        run_in(one.namespace, "ping", "-c", "1", "-s", "3000", "-W", "5", two.guest.ip)
        run_in(one.namespace, "ping", "-c", "1", "-W", "5", GATEWAY)
        assert until(lambda: "tentative" not in run_in(one.namespace, "ip", "-6", "addr"))
        assert until(lambda: "tentative" not in run_in(two.namespace, "ip", "-6", "addr"))
        run_in(one.namespace, "ping", "-c", "2", "-i", "0.2", "-W", "5", f"{two.guest.link_local}%eth0")
        assert _ask_dns(one.namespace, "guest2") == _ask_dns(one.namespace, "guest2.inn") == two.guest.ip
        assert _ask_dns(one.namespace, "nobody.inn") == ""
        # out
        with in_namespace(outside, _listen(OUTSIDE, 7000)) as server:
            assert _speak(one.namespace, OUTSIDE, 7000, server) == OUTSIDE_HOST
        # in, through a forward: from outside, from a neighbour, from the host itself
        with in_namespace(one.namespace, _listen(one.guest.ip, 80)) as server:
            assert _speak(outside, OUTSIDE_HOST, 8080, server) == OUTSIDE
            assert _speak(outside, OUTSIDE_HOST, 8081, server) == OUTSIDE
            assert _speak(two.namespace, GATEWAY, 8080, server) == GATEWAY
            _speak(lab.namespace, OUTSIDE_HOST, 8080, server)
            _speak(lab.namespace, one.guest.ip, 80, server)
            with pytest.raises(TimeoutError):  # that forward is of another address; the host's own ports are closed
                in_namespace(two.namespace, lambda: socket.create_connection((GATEWAY, 8081), timeout=0.5))
        # nothing comes in unasked
        with in_namespace(outside, lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.sendto(b"unasked", (one.guest.ip, 9))
            assert until(lambda: "packets 0" not in run_in(lab.namespace, *_UNASKED))
        assert sum(lab.dropped(one.guest).values()) + sum(lab.dropped(two.guest).values()) == 0


_UNASKED = ("nft", "list", "counter", "inet", "inn_t3st", "drop_unasked")


def test_switches_do_not_reach_each_other_and_internal_ones_have_no_way_out(world: tuple[Lab, str]) -> None:
    lab, _ = world
    internal = SwitchPolicy("inside", "inbr-t3st2", kind="internal", subnet="10.67.0.0/24")
    inside = PortPolicy("intp-t3st7", "52:54:00:00:00:07", ("10.67.0.7",))
    lab.do(lab.runner.ensure(internal, [inside]))
    seven, one = lab.open(inside), lab.plug(port_of(1))
    for sender, gateway_mac, targets in (
        (one, SWITCH.mac, ["10.67.0.7"]),
        (seven, internal.mac, [one.ip, OUTSIDE]),
    ):
        for target in targets:
            before = run_in(lab.namespace, *_BETWEEN)
            datagram = f.udp(sender.ip, target, 1, 2, b"across")
            sender.send(f.ethernet(gateway_mac, sender.mac, 0x0800, f.ipv4(sender.ip, target, 17, datagram)))
            assert until(lambda before=before: run_in(lab.namespace, *_BETWEEN) != before)


_BETWEEN = ("nft", "list", "counter", "inet", "inn_t3st", "drop_between")


def test_the_host_is_no_part_of_a_private_switch(lab: Lab) -> None:
    private = SwitchPolicy("apart", "inbr-t3st2", kind="private")
    ports = [PortPolicy(f"intp-t3st{n}", f"52:54:00:00:00:0{n}", (f"192.0.2.{n}",)) for n in (7, 8)]
    lab.do(lab.runner.ensure(private, ports))
    seven, eight = (lab.open(port) for port in ports)
    assert lab.deliver(seven, eight) == []
    asks = f.arp(seven.mac, 1, seven.mac, seven.ip, "00" * 6, GATEWAY)
    solicits = f.icmpv6(seven.link_local, "ff02::1", 128, 0, bytes(8))
    everybody = f.ethernet(
        f.multicast_mac("ff02::1"), seven.mac, 0x86DD, f.ipv6(seven.link_local, "ff02::1", 58, solicits)
    )
    assert len(lab.deliver(seven, eight, asks, everybody)) == 2
    assert seven.drain() == []
    assert "inet" not in run_in(lab.namespace, "ip", "addr", "show", "dev", private.bridge)
    assert "packets 0" not in run_in(lab.namespace, "nft", "list", "counter", "bridge", "inn_t3st", "drop_private")


def test_the_host_believes_no_router_among_the_guests(lab: Lab) -> None:
    guest = lab.plug(replace(port_of(1), guards=replace(port_of(1).guards, router=False)))
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + f.ip("2001:db8:bad::")
    advert = f.icmpv6(guest.link_local, "ff02::1", 134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + prefix)
    packet = f.ipv6(guest.link_local, "ff02::1", 58, advert, hop_limit=255)
    two = lab.plug(port_of(2))
    assert lab.deliver(guest, two, f.ethernet(f.multicast_mac("ff02::1"), guest.mac, 0x86DD, packet)) != []
    assert "2001:db8" not in run_in(lab.namespace, "ip", "-6", "addr") + run_in(lab.namespace, "ip", "-6", "route")
