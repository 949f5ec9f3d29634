"""Tenants' gateways: between their subnets, to their guests that route, and out; and never to another tenant."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import frames as f
import pytest
from overlay_lab import INNS, PROVIDERS, Hosts, Layout, new_hosts
from switch_lab import PATIENCE_S, Guest, Machine, new_machine, new_namespace, run_in

from innkeeper.network.namespace import NAMESPACES
from innkeeper.network.overlay import CustomerRoute, OverlayPolicy, Record
from innkeeper.network.policy import GuardPolicy, PortPolicy, SwitchPolicy
from innkeeper.network.tenant import uplink_of

pytestmark = pytest.mark.root
OUTSIDE_HOST, OUTSIDE = "198.51.100.1", "198.51.100.2"
ROUTED = "10.9.0.1"
"""An address behind red's guest on host b."""
SUBNETS = {"red": "10.5.0.0/24", "garden": "10.6.0.0/24", "blue": "10.5.0.0/24"}
VNIS = {"red": 5001, "garden": 5003, "blue": 5002}
DOMAINS = {"red": 1, "garden": 1, "blue": 2}
RECORDS = {
    name: tuple(
        Record(f"{SUBNETS[name][:-4]}1{place}", f"52:54:00:00:0{VNIS[name] % 10}:1{place}", PROVIDERS[host])
        for place, host in enumerate(PROVIDERS, 1)
    )
    for name in SUBNETS
}


def switch_of(host: str, name: str) -> SwitchPolicy:
    routes = (CustomerRoute("10.9.0.0/16", "10.5.0.12"),) if name == "red" else ()
    domain, gateway = DOMAINS[name], name == "red"
    overlay = OverlayPolicy(
        VNIS[name], PROVIDERS[host], domain=domain, records=RECORDS[name], routes=routes, gateway=gateway
    )
    number = list(SUBNETS).index(name) + 1
    bridge = f"inbr-{INNS[host]}{number}"
    return SwitchPolicy(name, bridge, kind="virtual", subnet=SUBNETS[name], mtu=1450, overlay=overlay)


def port_of(host: str, name: str) -> PortPolicy:
    record = next(one for one in RECORDS[name] if one.provider == PROVIDERS[host])
    number = list(SUBNETS).index(name) + 1
    routes = (host, name) == ("b", "red")
    guards = GuardPolicy(ip=not routes, arp=not routes)
    return PortPolicy(
        f"intp-{INNS[host]}{number}", record.mac, (record.customer,), guards=guards, hostname=f"{name}-{host}"
    )


def layout() -> Layout:
    return {host: [(switch_of(host, name), [port_of(host, name)]) for name in SUBNETS] for host in PROVIDERS}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with new_hosts(layout()) as made:
        yield made


@contextmanager
def machines(hosts: Hosts, *places: tuple[str, str]) -> Iterator[list[Machine]]:
    with ExitStack() as stack:
        made = []
        for place in places:
            machine = stack.enter_context(new_machine("-".join(place), hosts.guests[place]))
            run_in(machine.namespace, "ip", "link", "set", "eth0", "mtu", "1450")
            machine.give_address(SUBNETS[place[1]].replace(".0/24", ".1"))
            made.append(machine)
        yield made


def reaches(machine: Machine, address: str, *, patience_s: float = PATIENCE_S) -> bool:
    said = run_in(machine.namespace, "ping", "-c", "1", "-W", f"{patience_s:.0f}", address, check=False)
    return "1 received" in said


def test_a_tenants_subnets_reach_each_other_over_hosts_and_no_other_tenants(hosts: Hosts) -> None:
    with machines(hosts, ("a", "red"), ("b", "red"), ("b", "garden"), ("a", "blue")) as (red, router, garden, blue):
        assert reaches(red, garden.guest.ip)
        assert reaches(garden, red.guest.ip)
        assert reaches(red, "10.5.0.1") and reaches(blue, "10.5.0.1")
        assert reaches(red, "10.6.0.1")
        assert not reaches(blue, garden.guest.ip, patience_s=1)
        run_in(router.namespace, "ip", "addr", "add", f"{ROUTED}/32", "dev", "lo")
        assert reaches(red, ROUTED), "by the customer route"
        assert reaches(garden, ROUTED)
        assert not reaches(blue, ROUTED, patience_s=1)
    assert all(frame[0] & 1 == 0 for _, frame in hosts.on_the_wire()), "no broadcast and no multicast"


def test_only_a_subnet_with_a_gateway_has_a_way_out_and_nothing_comes_in(hosts: Hosts) -> None:
    host = hosts.labs["a"].namespace
    with (
        new_namespace("outside") as outside,
        machines(hosts, ("a", "red"), ("a", "garden"), ("a", "blue")) as (red, garden, blue),
    ):
        run_in(host, "ip", "link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", outside)
        run_in(host, "ip", "addr", "add", f"{OUTSIDE_HOST}/24", "dev", "out0")
        run_in(host, "ip", "link", "set", "out0", "up")
        run_in(outside, "ip", "addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
        run_in(outside, "ip", "link", "set", "eth0", "up")
        assert reaches(red, OUTSIDE)
        assert not reaches(garden, OUTSIDE, patience_s=1)
        assert not reaches(blue, OUTSIDE, patience_s=1)
        uplink = uplink_of(switch_of("a", "red").bridge, switch_of("a", "red").overlay)  # type: ignore[arg-type]
        for network, way in (("10.5.0.0/24", uplink.tenant), (f"{uplink.tenant}/32", OUTSIDE_HOST)):
            namespace = host if way == uplink.tenant else outside
            run_in(namespace, "ip", "route", "add", network, "via", way)
        run_in(outside, "ip", "route", "add", "10.5.0.0/24", "via", OUTSIDE_HOST)
        for target in (red.guest.ip, "10.5.0.1", uplink.tenant):
            said = run_in(outside, "ping", "-c", "1", "-W", "1", target, check=False)
            assert "0 received" in said, target
        said = run_in(host, "ping", "-c", "1", "-W", "1", red.guest.ip, check=False)
        assert "0 received" in said, "the host itself is no part of it"


def test_behind_dockers_rules_a_tenant_goes_out_with_consent(hosts: Hosts) -> None:
    if shutil.which("iptables") is None:
        pytest.skip("iptables is not installed")
    lab = hosts.labs["a"]
    with new_namespace("outside") as outside, machines(hosts, ("a", "red")) as (red,):
        run_in(lab.namespace, "ip", "link", "add", "out0", "type", "veth", "peer", "name", "eth0", "netns", outside)
        run_in(lab.namespace, "ip", "addr", "add", f"{OUTSIDE_HOST}/24", "dev", "out0")
        run_in(lab.namespace, "ip", "link", "set", "out0", "up")
        run_in(outside, "ip", "addr", "add", f"{OUTSIDE}/24", "dev", "eth0")
        run_in(outside, "ip", "link", "set", "eth0", "up")
        for rule in ("-P FORWARD DROP", "-N DOCKER-USER", "-A FORWARD -j DOCKER-USER", "-A DOCKER-USER -j RETURN"):
            run_in(lab.namespace, "iptables", *rule.split())
        assert not reaches(red, OUTSIDE, patience_s=1)
        assert lab.do(lab.runner.allow_docker(True)) == ["let guests pass Docker's rules (iptables DOCKER-USER)"]
        assert lab.do(lab.runner.allow_docker(True)) == [], "as iptables prints it"
        assert reaches(red, OUTSIDE)


def test_each_tenant_has_its_own_dhcp(hosts: Hosts) -> None:
    for name in SUBNETS:
        guest = hosts.guests["a", name]
        discover = f.dhcp(1, 1, guest.mac)
        packet = f.ipv4("0.0.0.0", "255.255.255.255", 17, f.udp("0.0.0.0", "255.255.255.255", 68, 67, discover))
        guest.send(f.ethernet(f.BROADCAST, guest.mac, 0x0800, packet))
        offered = _offer(guest)
        assert offered[16:20] == f.ip(guest.ip)
    assert hosts.on_the_wire() == [], "every host serves its own"


def _offer(guest: Guest) -> bytes:
    """The DHCP message that comes to the guest."""
    while True:
        answer = guest.receive(PATIENCE_S)
        assert answer is not None, "no answer of DHCP"
        if answer[12:14] == b"\x08\x06" and answer[38:42] == f.ip(guest.ip):
            guest.send(f.arp(guest.mac, 2, guest.mac, guest.ip, f"{answer[6:12].hex(':')}", guest.ip[:-2] + "1"))
        if answer[12:14] == b"\x08\x00" and answer[23] == 17 and answer[36:38] == b"\0\x44":
            return answer[42:]


def test_dhcp_of_a_tenant_goes_on_where_it_is_when_a_card_comes(hosts: Hosts) -> None:
    lab = hosts.labs["a"]
    red = switch_of("a", "red")
    aside = SwitchPolicy("aside", f"inbr-{INNS['a']}9", kind="internal", subnet="10.66.0.0/24")
    card = PortPolicy(f"intp-{INNS['a']}9", "52:54:00:00:00:99", ("10.66.0.9",), hostname="mover")
    lab.do(lab.runner.ensure(aside, [card]))
    folder = lab.runner._directory / red.bridge
    before = (folder / "dnsmasq.pid").read_text()
    there = replace(card, ipv4=("10.5.0.99",))
    lab.do(lab.runner.move_port(red.bridge, there))
    assert (folder / "dnsmasq.pid").read_text() == before and card.mac in (folder / "reservations").read_text()
    lab.do(lab.runner.move_port(aside.bridge, card))
    assert (folder / "dnsmasq.pid").read_text() == before and card.mac not in (folder / "reservations").read_text()
    assert lab.do(lab.runner.repair()).done == []


def test_damage_to_a_gateway_is_repaired(hosts: Hosts) -> None:
    lab, inn = hosts.labs["a"], INNS["a"]
    tenant = f"intn-{inn}1"
    with machines(hosts, ("a", "red"), ("b", "garden")) as (red, garden):
        assert lab.do(lab.runner.repair()).done == []
        inside = ["ip", "netns", "exec", tenant]
        outside = ["ip", "netns", "exec", lab.namespace]
        damages = [
            [*inside, "nft", "flush", "ruleset"],
            [*inside, "nft", "add", "rule", "inet", "inn_tenant", "forward", "drop"],
            [*inside, "nft", "delete", "element", "inet", "inn_tenant", "ways", "{ gw-1 }"],
            [*inside, "ip", "addr", "flush", "dev", "gw-1"],
            [*inside, "ip", "route", "del", "10.9.0.0/16"],
            [*inside, "ip", "route", "del", "default"],
            [*inside, "ip", "link", "set", "gw-2", "address", "52:54:00:00:00:99"],
            [*inside, "sysctl", "-qw", "net.ipv4.ip_forward=0"],
            [*inside, "ip", "link", "del", "gw-1"],
            [*outside, "ip", "link", "del", f"intu-{inn}1"],
            [*outside, "ip", "addr", "flush", "dev", f"intu-{inn}1"],
            [*outside, "ip", "link", "set", f"ingw-{inn}1", "nomaster"],
            ["ip", "netns", "del", tenant],
        ]
        for damage in damages:
            subprocess.run(damage, check=True)
            report = lab.do(lab.runner.repair())
            assert report.problems == {} and report.done != [], damage
            assert reaches(red, garden.guest.ip), damage
            assert reaches(red, "10.5.0.1"), damage
            assert lab.do(lab.runner.repair()).done == [], damage
        guest = hosts.guests["a", "blue"]
        assert guest.ip == "10.5.0.11"


def test_a_tenant_goes_with_its_last_switch(hosts: Hosts) -> None:
    lab, inn = hosts.labs["a"], INNS["a"]
    red, garden = switch_of("a", "red"), switch_of("a", "garden")
    assert garden.overlay is not None and red.overlay is not None
    lab.do(lab.runner.remove(red.bridge))
    assert namespaces() >= {f"intn-{inn}1", f"intn-{inn}2"}
    assert "intu-" not in run_in(lab.namespace, "ip", "link", "show"), "garden has no way out"
    lab.do(lab.runner.ensure(replace(garden, overlay=replace(garden.overlay, gateway=True)), []))
    lab.do(lab.runner.ensure(red, []))
    lab.do(lab.runner.remove(red.bridge))
    assert f"intu-{inn}1" in run_in(lab.namespace, "nft", "list", "set", "inet", f"inn_{inn}", "nat_bridges")
    assert lab.do(lab.runner.repair()).done == []
    lab.do(lab.runner.remove(garden.bridge))
    assert f"intn-{inn}1" not in namespaces()
    subprocess.run(["ip", "netns", "add", f"intn-{inn}9"], check=True)
    assert lab.do(lab.runner.repair()).done == [f"remove namespace intn-{inn}9"]
    lab.do(lab.runner.remove_all())
    assert not [name for name in namespaces() if name.startswith(f"intn-{inn}")]
    links = run_in(lab.namespace, "ip", "link", "show")
    assert not [prefix for prefix in ("inbr-", "inov-", "ingw-", "intu-", "intp-") if prefix in links]


def namespaces() -> set[str]:
    return {path.name for path in NAMESPACES.iterdir()}
