"""IPv6 of a switch between real network stacks: advertisements, addresses, the way out and port forwards."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace

import frames as f
import pytest
from switch_lab import PATIENCE_S, Guest, Lab, Machine, in_namespace, new_lab, new_machine, new_namespace, run_in
from switch_world import SWITCH, port_of, until

from innkeeper.network.ipv6 import interface_address
from innkeeper.network.policy import Forward, PortPolicy, SwitchPolicy

pytestmark = pytest.mark.root
SIX = replace(SWITCH, subnet6="fd00:66::/64", ra_mode="slaac")
GATEWAY6 = "fd00:66::1"
OUTSIDE_HOST, OUTSIDE = "2001:db8:9::1", "2001:db8:9::2"


def port6(number: int, switch: SwitchPolicy = SIX) -> PortPolicy:
    """The port of guest ``number`` with its IPv6 address."""
    assert switch.network6 is not None
    port = port_of(number)
    return replace(port, ipv6=(interface_address(switch.network6, port.mac),))


@pytest.fixture
def lab() -> Iterator[Lab]:
    """In place of the one with IPv4 only."""
    with new_lab(SIX) as made:
        yield made


@pytest.fixture
def outside(lab: Lab) -> Iterator[str]:
    """A host that the lab's host reaches, and whose advertisements it believes."""
    with new_namespace("outside6") as namespace:
        run_in(lab.namespace, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", namespace)
        for where, device, address in ((lab.namespace, "up0", OUTSIDE_HOST), (namespace, "eth0", OUTSIDE)):
            run_in(where, "ip", "addr", "add", f"{address}/64", "dev", device, "nodad")
            run_in(where, "ip", "link", "set", device, "up")
        run_in(namespace, "ip", "-6", "route", "add", "fd00:66::/64", "via", OUTSIDE_HOST)
        yield namespace


def configured(machine: Machine, address: str) -> bool:
    """Whether a guest's stack has the address and may use it."""
    shown = run_in(machine.namespace, "ip", "-6", "-o", "addr", "show", "dev", "eth0")
    return any(f" {address}/" in line and "tentative" not in line for line in shown.splitlines())


def _word(client: str, address: str, port: int, server_namespace: str, server_address: str, server_port: int) -> str:
    """Connect over IPv6; the address that the server sees."""

    def listen() -> socket.socket:
        listening = socket.create_server((server_address, server_port), family=socket.AF_INET6)
        listening.settimeout(PATIENCE_S)
        return listening

    def connect() -> socket.socket:
        return socket.create_connection((address, port), timeout=PATIENCE_S)

    with in_namespace(server_namespace, listen) as server, in_namespace(client, connect) as speaking:
        accepted, peer = server.accept()
        with accepted:
            speaking.sendall(b"word")
            assert accepted.recv(4) == b"word"
    return str(peer[0])


def test_guests_configure_themselves_and_reach_the_world(lab: Lab, outside: str) -> None:
    ports = port6(1), port6(2)
    forwards = (
        Forward("tcp", 8080, ports[0].ipv6[0], 80),
        Forward("tcp", 8081, ports[0].ipv6[0], 81, host_address=OUTSIDE_HOST),
    )
    lab.do(lab.runner.ensure(replace(SIX, forwards=forwards), ports))
    with (
        new_machine("six1", lab.open(ports[0])) as one,
        new_machine("six2", lab.open(ports[1])) as two,
    ):
        for machine in (one, two):
            assert until(lambda machine=machine: configured(machine, machine.guest.port.ipv6[0]))  # type: ignore[misc]
        mtu = run_in(one.namespace, "cat", "/proc/sys/net/ipv6/conf/eth0/mtu").strip()
        assert mtu == "1500"
        assert until(lambda: "default via fe80" in run_in(one.namespace, "ip", "-6", "route"))
        for target in (GATEWAY6, ports[1].ipv6[0], OUTSIDE):
            run_in(one.namespace, "ping", "-6", "-c", "2", "-i", "0.2", "-W", "5", target)
        assert _word(one.namespace, OUTSIDE, 7000, outside, OUTSIDE, 7000) == OUTSIDE_HOST, "behind the host's address"
        assert _word(outside, OUTSIDE_HOST, 8080, one.namespace, ports[0].ipv6[0], 80) == OUTSIDE
        assert _word(outside, OUTSIDE_HOST, 8081, one.namespace, ports[0].ipv6[0], 81) == OUTSIDE
        assert _word(two.namespace, GATEWAY6, 8080, one.namespace, ports[0].ipv6[0], 80) == GATEWAY6, "a neighbour"
        _word(lab.namespace, OUTSIDE_HOST, 8080, one.namespace, ports[0].ipv6[0], 80)
        unasked = ("ping", "-6", "-c", "1", "-W", "1", ports[0].ipv6[0])
        assert "100% packet loss" in run_in(outside, *unasked, check=False), "nothing comes in unasked"
        assert sum(lab.dropped(one.guest).values()) + sum(lab.dropped(two.guest).values()) == 0


def test_another_address_of_the_prefix_is_a_lie(lab: Lab) -> None:
    lab.do(lab.runner.ensure(SIX, [port6(1), port6(2)]))
    one, two = lab.open(port6(1)), lab.open(port6(2))
    stolen = f.ipv6("fd00:66::bad", two.port.ipv6[0], 17, f.udp("fd00:66::bad", two.port.ipv6[0], 1, 2, b"lie"))
    frame = f.ethernet(two.mac, one.mac, 0x86DD, stolen)
    assert frame not in lab.deliver(one, two, frame)
    assert lab.dropped(one)["ip"] == 1


def _solicit(guest: Guest) -> bytes:
    """A DHCPv6 Solicit (RFC 8415) for one address."""
    client = struct.pack("!HHHH", 1, 10, 3, 1) + f.mac(guest.mac)
    wants = struct.pack("!HHIII", 3, 12, 7, 0, 0) + struct.pack("!HHHH", 6, 4, 23, 24) + struct.pack("!HHH", 8, 2, 0)
    message = b"\1\0\0\7" + client + wants
    body = f.udp(guest.link_local, "ff02::1:2", 546, 547, message)
    packet = f.ipv6(guest.link_local, "ff02::1:2", 17, body, hop_limit=1)
    return f.ethernet("33:33:00:01:00:02", guest.mac, 0x86DD, packet)


def test_dhcpv6_gives_the_reserved_address(lab: Lab) -> None:
    managed = replace(SIX, ra_mode="managed")
    port = replace(port6(1), ipv6=("fd00:66::abc",))
    lab.do(lab.runner.ensure(managed, [port]))
    guest = lab.open(port)

    def advertised() -> bool:
        """Answer for the own link-local address while waiting for what the server says."""
        guest.send(_solicit(guest))
        while (frame := guest.receive(1.0)) is not None:
            if frame[12:14] != b"\x86\xdd":
                continue
            if frame[54:55] == b"\x87" and frame[62:78] == socket.inet_pton(socket.AF_INET6, guest.link_local):
                source = socket.inet_ntop(socket.AF_INET6, frame[22:38])
                rest = struct.pack("!I", 0x60000000) + frame[62:78] + f.link_option(2, guest.mac)
                answer = f.icmpv6(guest.link_local, source, 136, 0, rest)
                target = ":".join(f"{octet:02x}" for octet in frame[6:12])
                guest.send(
                    f.ethernet(target, guest.mac, 0x86DD, f.ipv6(guest.link_local, source, 58, answer, hop_limit=255))
                )
            if frame[20] == 17 and frame[56:58] == struct.pack("!H", 546) and frame[62] == 2:
                assert socket.inet_pton(socket.AF_INET6, "fd00:66::abc") in frame[62:], "the reserved address"
                assert socket.inet_pton(socket.AF_INET6, GATEWAY6) in frame[62:], "the switch's DNS"
                return True
        return False

    assert until(advertised)


def test_a_host_that_becomes_a_router_goes_on_to_believe_its_own(lab: Lab, outside: str) -> None:
    accept, forwarding = "/proc/sys/net/ipv6/conf/up0/accept_ra", "/proc/sys/net/ipv6/conf/all/forwarding"
    run_in(lab.namespace, "sysctl", "-w", "net.ipv6.conf.all.forwarding=0", "net.ipv6.conf.up0.accept_ra=1")
    done = lab.do(lab.runner.ensure(SIX, []))
    assert any("up0 go on to believe" in one for one in done)
    assert run_in(lab.namespace, "cat", accept, forwarding).split() == ["2", "1"]
    bridge = run_in(lab.namespace, "cat", f"/proc/sys/net/ipv6/conf/{SIX.bridge}/accept_ra").strip()
    assert bridge == "0", "the host believes no guest"


def test_ipv6_comes_and_goes_with_the_subnet(lab: Lab, outside: str) -> None:
    lab.do(lab.runner.ensure(replace(SIX, subnet6=None), [port_of(1)]))
    shown = run_in(lab.namespace, "ip", "-6", "addr", "show", "dev", SIX.bridge)
    assert GATEWAY6 not in shown
    lab.do(lab.runner.ensure(SIX, [port6(1)]))
    assert f"{GATEWAY6}/64" in run_in(lab.namespace, "ip", "-6", "addr", "show", "dev", SIX.bridge)
    assert lab.do(lab.runner.repair()).done == []
    run_in(lab.namespace, "ip", "addr", "del", f"{GATEWAY6}/64", "dev", SIX.bridge)
    assert any(GATEWAY6 in one for one in lab.do(lab.runner.repair()).done), "what others take away comes back"
    assert ("2001:db8:9::/64", "up0") in [(one.network, one.device) for one in lab.do(lab.runner.routes(6))]
