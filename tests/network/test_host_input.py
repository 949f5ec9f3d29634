"""Guests reach nothing of the host but their gateway's DHCP, DNS and echo, and what their switch names.

Nor does anybody outside reach a switch's DHCP and DNS. With real network stacks.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from knocking import listening, reaches
from switch_lab import Lab, Machine, in_namespace, new_machine, new_namespace, run_in
from switch_world import GATEWAY, SWITCH, port_of, until

from innkeeper.network.host_input import host_elements
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.reach import End, reach

ELSEWHERE = "198.51.100.1"


def test_what_stands_for_a_switch() -> None:
    elements = {(each.container, each.key) for each in host_elements(replace(SWITCH, host_services=("tcp/3142",)))}
    assert elements == {
        ("gateways", (SWITCH.bridge, GATEWAY)),
        ("gateway_addresses", (GATEWAY,)),
        ("host_services", (SWITCH.bridge, "6", "3142")),
    }
    assert host_elements(SwitchPolicy("p", "inbr-t3st2", kind="private")) == frozenset()


def test_what_stands_for_services_of_some_guests() -> None:
    some = ("tcp/22@10.66.0.0/28", "tcp/22@10.66.0.16/28", "tcp/22@10.66.0.3", "udp/123@fe80::/10")
    elements = {(each.container, each.key) for each in host_elements(replace(SWITCH, host_services=some))}
    assert {(name, key) for name, key in elements if name.startswith("host_services")} == {
        ("host_services4", (SWITCH.bridge, "6", "22", "10.66.0.0/27")),
        ("host_services6", (SWITCH.bridge, "17", "123", "fe80::/10")),
    }


@pytest.fixture
def machine(lab: Lab) -> Iterator[Machine]:
    run_in(lab.namespace, "ip", "addr", "add", f"{ELSEWHERE}/32", "dev", "lo")
    guest = lab.plug(port_of(1))
    with new_machine("guest", guest) as machine:
        machine.give_address(GATEWAY)
        for namespace, device in ((machine.namespace, "eth0"), (lab.namespace, SWITCH.bridge)):
            show = ("ip", "-6", "-o", "addr", "show", "dev", device, "scope", "link", "-tentative")
            assert until(lambda namespace=namespace, show=show: run_in(namespace, *show)), f"{device} has an address"
        yield machine


@pytest.mark.root
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_services_of_the_host_are_closed_until_the_switch_names_them(lab: Lab, machine: Machine, kind: int) -> None:
    name = "tcp" if kind == socket.SOCK_STREAM else "udp"
    bridge = run_in(lab.namespace, "ip", "-6", "-o", "addr", "show", "dev", SWITCH.bridge, "scope", "link").split()[3]
    local = f"{bridge.partition('/')[0]}%eth0"
    with listening(lab.namespace, kind, 3142) as service:
        for address in (GATEWAY, ELSEWHERE, local):
            assert not reaches(machine.namespace, address, kind, 3142, service), address
        lab.do(lab.runner.ensure(replace(SWITCH, host_services=(f"{name}/3142",)), [machine.guest.port]))
        for address in (GATEWAY, ELSEWHERE, local):
            assert reaches(machine.namespace, address, kind, 3142, service), address
        lab.do(lab.runner.ensure(SWITCH, [machine.guest.port]))
        assert not reaches(machine.namespace, GATEWAY, kind, 3142, service)


@pytest.mark.root
def test_guests_reach_of_the_host_what_is_said(lab: Lab, machine: Machine) -> None:
    kinds = {6: socket.SOCK_STREAM, 17: socket.SOCK_DGRAM}
    guest, host = End("guest", machine.guest.ip, machine.guest.port), End("host", GATEWAY)
    asked = [(protocol, port) for protocol in kinds for port in (3142, 3150, 3200)]
    for services in ((), ("tcp/3142",), ("tcp/3100-3199@10.66.0.0/28", "udp/3150"), ("udp/3142-3200@10.66.0.128/25",)):
        switch = replace(SWITCH, host_services=services)
        lab.do(lab.runner.ensure(switch, [machine.guest.port]))
        for protocol, port in asked:
            with listening(lab.namespace, kinds[protocol], port) as service:
                said = reach(switch, guest, host, protocol, port)
                assert reaches(machine.namespace, GATEWAY, kinds[protocol], port, service) == said.reaches, said
        echo = run_in(machine.namespace, "ping", "-c1", "-W1", GATEWAY, check=False)
        assert ("1 received" in echo) == reach(switch, guest, host, 1).reaches
    assert lab.do(lab.runner.host_dropped())["guests"] > 0


@pytest.mark.root
def test_ranges_of_ports_and_whole_protocols_are_services_too(lab: Lab, machine: Machine) -> None:
    def serve(*services: str) -> None:
        lab.do(lab.runner.ensure(replace(SWITCH, host_services=services), [machine.guest.port]))
        assert lab.do(lab.runner.repair()).done == [], "what nft lists is what was written"

    def pings() -> bool:
        return "1 received" in run_in(machine.namespace, "ping", "-c1", "-W1", ELSEWHERE, check=False)

    with listening(lab.namespace, socket.SOCK_STREAM, 3142) as service:
        for ports, allowed in (("3100-3199", True), ("3072-3135", False), ("3136-3143", True), ("1-65535", True)):
            serve(
                f"tcp/{ports}", "tcp/3130-3140", "tcp/22", f"tcp/{ports}@10.66.0.0/25", "tcp/3140-3150@10.66.0.128/25"
            )
            assert reaches(machine.namespace, GATEWAY, socket.SOCK_STREAM, 3142, service) == allowed, ports
        assert not pings(), "only the gateway's address answers"
        serve("icmp@10.66.0.0/24", "gre")
        assert pings() and not reaches(machine.namespace, GATEWAY, socket.SOCK_STREAM, 3142, service)
        serve("icmpv6", "icmp@10.66.0.128/25")
        assert not pings()


@pytest.mark.root
def test_a_service_for_some_guests_is_closed_to_the_others(lab: Lab, machine: Machine) -> None:
    def serve(*services: str) -> None:
        lab.do(lab.runner.ensure(replace(SWITCH, host_services=services), [machine.guest.port]))

    own = machine.guest.ip
    with listening(lab.namespace, socket.SOCK_STREAM, 3142) as service:
        for source, allowed in ((own, True), ("10.66.0.128/25", False), ("10.66.0.0/25", True), ("fe80::/10", False)):
            serve(f"tcp/3142@{source}", "tcp/22@10.66.0.0/24")
            assert reaches(machine.namespace, GATEWAY, socket.SOCK_STREAM, 3142, service) == allowed, source
            assert lab.do(lab.runner.repair()).done == [], "what nft lists is what was written"
        bridge = run_in(lab.namespace, "ip", "-6", "-o", "addr", "show", "dev", SWITCH.bridge, "scope", "link").split()
        local = f"{bridge[3].partition('/')[0]}%eth0"
        assert reaches(machine.namespace, local, socket.SOCK_STREAM, 3142, service), "in IPv6, as named last"


@pytest.mark.root
def test_the_gateway_answers_echo_dns_and_what_the_host_asks(lab: Lab, machine: Machine) -> None:
    run_in(machine.namespace, "ping", "-c", "1", "-W", "5", GATEWAY)
    assert "1 received" not in run_in(machine.namespace, "ping", "-c", "1", "-W", "1", ELSEWHERE, check=False)
    run_in(lab.namespace, "ping", "-c", "1", "-W", "5", machine.guest.ip)
    query = b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06guest1\x03inn\x00\x00\x01\x00\x01"

    def ask() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(5)
            client.sendto(query, (GATEWAY, 53))
            return client.recv(512)

    assert socket.inet_aton(machine.guest.ip) in in_namespace(machine.namespace, ask)


@pytest.mark.root
def test_nobody_outside_reaches_a_switchs_dns(lab: Lab, machine: Machine) -> None:
    with new_namespace("outside") as outside:
        run_in(lab.namespace, "ip", "link", "add", "up0", "type", "veth", "peer", "name", "out0", "netns", outside)
        run_in(lab.namespace, "ip", "addr", "add", "192.0.2.1/24", "dev", "up0")
        run_in(lab.namespace, "ip", "link", "set", "up0", "up")
        run_in(outside, "ip", "addr", "add", "192.0.2.2/24", "dev", "out0")
        run_in(outside, "ip", "link", "set", "out0", "up")
        run_in(outside, "ip", "route", "add", "10.66.0.0/24", "via", "192.0.2.1")
        with listening(lab.namespace, socket.SOCK_STREAM, 3142) as service:
            assert reaches(outside, "192.0.2.1", socket.SOCK_STREAM, 3142, service), "the host's own services"
            assert not reaches(outside, GATEWAY, socket.SOCK_STREAM, 53, service)
            local = in_namespace(lab.namespace, lambda: socket.create_connection((GATEWAY, 53), 5).close())
            assert local is None, "the host itself may ask"
