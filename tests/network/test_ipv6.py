"""IPv6 of a switch: subnets, addresses of cards, router advertisements and rules."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Conflict, Invalid, NoSpace
from innkeeper.network.dhcp import Lease, compile_files, parse_leases
from innkeeper.network.dhcp_policy import DhcpPolicy
from innkeeper.network.ipv6 import check_address6, check_subnet6, choose_subnet6, interface_address, parse_subnet6
from innkeeper.network.nat import switch_elements
from innkeeper.network.plan import Standing, plan_change
from innkeeper.network.policy import Forward, PortPolicy, SwitchPolicy

UUID = "6f1c7ad2-5f6f-4ab5-8d0e-0c9d5f3a1b11"
NETWORK = ipaddress.IPv6Network("fd00:77::/64")
MAC = "52:54:00:00:00:01"
OWN = "fd00:77::5054:ff:fe00:1"
LAN = SwitchPolicy("lan", "inbr-k3f91", subnet="10.77.0.0/24", subnet6="fd00:77::/64")
WEB = PortPolicy("intp-k3f91", MAC, ("10.77.0.2",), (OWN,), hostname="web")


@pytest.mark.parametrize(
    "wanted",
    ["fd00::/48", "fd00::/65", "fd00::1/64", "fe80::/64", "ff02::/64", "::/64", "10.0.0.0/24", "::ffff:0:0/64", "six"],
)
def test_an_impossible_subnet_is_refused(wanted: str) -> None:
    with pytest.raises(Invalid) as problem:
        parse_subnet6(wanted)
    assert problem.value.code == "switch.subnet6" and problem.value.remedy


def test_an_overlap_is_refused_and_named() -> None:
    for switches, routes, cause in (
        ({"other": "fd00:77::/64"}, {}, "switch other has fd00:77::/64"),
        ({}, {"fd00::/8": "wg0"}, "the host reaches fd00::/8 through wg0"),
    ):
        with pytest.raises(Conflict) as problem:
            check_subnet6("fd00:77::/64", switches, routes)
        assert (problem.value.code, problem.value.cause) == ("switch.subnet_in_use", cause)
    assert check_subnet6("fd00:0077:0::/64", {"other": "fd00:78::/64"}, {}) == "fd00:77::/64"


@given(st.uuids(), st.integers(0, 40))
def test_a_chosen_subnet_is_the_inns_own_and_free(uuid: object, count: int) -> None:
    taken: dict[str, str] = {}
    for number in range(count):
        taken[f"s{number}"] = choose_subnet6(str(uuid), taken, {})
    assert len(set(taken.values())) == count
    networks = [ipaddress.IPv6Network(text) for text in taken.values()]
    assert all(network.subnet_of(ipaddress.IPv6Network("fd00::/8")) for network in networks)
    assert len({network.supernet(new_prefix=48) for network in networks}) <= 1


def test_no_subnet_left_is_said() -> None:
    with pytest.raises(NoSpace) as problem:
        choose_subnet6(UUID, {}, {"fc00::/7": "wg0"})
    assert problem.value.code == "switch.subnets_exhausted"


@given(st.binary(min_size=5, max_size=5))
def test_a_cards_address_is_of_the_prefix_and_made_as_its_link_local_one(octets: bytes) -> None:
    mac = ":".join(f"{octet:02x}" for octet in (0x52, *octets))
    address = ipaddress.IPv6Address(interface_address(NETWORK, mac))
    link_local = ipaddress.IPv6Address(PortPolicy("intp-k3f91", mac).link_local)
    assert address in NETWORK and address.packed[8:] == link_local.packed[8:]


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ("fd00:77::1", "nic.address_in_use"),
        ("fd00:77::9", "nic.address_in_use"),
        ("fd00:77::", "nic.address_outside"),
        ("fd00:78::9", "nic.address_outside"),
        ("10.77.0.9", "nic.address"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(wanted: str, code: str) -> None:
    with pytest.raises((Invalid, Conflict)) as problem:
        check_address6("lan", NETWORK, wanted, {"fd00:77::9": "web-0"})
    assert problem.value.code == code and problem.value.remedy


def test_a_free_address_is_taken_in_its_usual_form() -> None:
    assert check_address6("lan", NETWORK, "FD00:77:0::0A", {}) == "fd00:77::a"
    with pytest.raises(Invalid) as problem:
        check_address6("lan", None, "fd00:77::a", {})
    assert problem.value.code == "switch.no_subnet"


def told(switch: SwitchPolicy, *ports: PortPolicy) -> tuple[set[str], str, str]:
    """What dnsmasq is told: its configuration, reservations and hosts."""
    files = compile_files(switch, ports, Path("/run/lan"), "nobody")
    return set(files.configuration.splitlines()), files.reservations, files.hosts


def test_managed_addresses_are_reserved_and_named() -> None:
    configuration, reservations, hosts = told(LAN, WEB)
    wanted = {"enable-ra", "dhcp-range=fd00:77::,static,64,3600", "ra-param=inbr-k3f91,mtu:1500,600,1800"}
    assert wanted | {"dhcp-option=option6:dns-server,[fd00:77::1]"} <= configuration
    assert reservations == f"{MAC},10.77.0.2,[{OWN}],web\n"
    assert f"{OWN} web.inn web\n" in hosts and "fd00:77::1 gateway.inn gateway\n" in hosts


def test_guests_make_their_own_addresses_where_that_is_wanted() -> None:
    configuration, reservations, hosts = told(replace(LAN, ra_mode="slaac"), WEB)
    assert "dhcp-range=fd00:77::,ra-stateless,64,3600" in configuration
    assert OWN not in reservations and OWN in hosts


def test_an_internal_switch_is_no_default_router() -> None:
    dhcp = DhcpPolicy(dns_servers=("192.0.2.53", "2001:db8::53"), ntp_servers=("2001:db8::7",))
    configuration, _, _ = told(replace(LAN, kind="internal", mtu=1400, dhcp_policy=dhcp))
    assert "ra-param=inbr-k3f91,mtu:1400,600,0" in configuration
    assert "dhcp-option=option6:dns-server,[2001:db8::53]" in configuration
    assert "dhcp-option=option6:ntp-server,[2001:db8::7]" in configuration


def test_without_an_ipv6_subnet_nothing_is_said_of_it() -> None:
    configuration, reservations, _ = told(replace(LAN, subnet6=None), WEB)
    assert not any("6" in line.partition("=")[0] or "enable-ra" in line for line in configuration)
    assert OWN not in reservations


def test_leases_of_ipv6_have_no_mac() -> None:
    text = f"1764000000 {MAC} 10.77.0.2 web *\nduid 00:01:00:01\n1764000000 1234 {OWN} web 00:03:00:01\n"
    assert parse_leases(text)[1] == Lease(OWN, "", "web", 1764000000)


def test_the_rules_of_a_switch_with_ipv6() -> None:
    forwards = (
        Forward("tcp", 8080, "10.77.0.2", 80),
        Forward("tcp", 8080, OWN, 80),
        Forward("udp", 53, OWN, 53, host_address="2001:db8::1"),
    )
    made = {
        (element.container, element.key, element.value) for element in switch_elements(replace(LAN, forwards=forwards))
    }
    assert {
        ("nat_bridges6", ("inbr-k3f91",), ()),
        ("nat_subnets6", ("fd00:77::/64",), ()),
        ("forwards", ("6", "8080"), ("10.77.0.2", "80")),
        ("forwards6", ("6", "8080"), (OWN, "80")),
        ("forwards6_at", ("2001:db8::1", "17", "53"), (OWN, "53")),
    } <= made
    inside = {element.container for element in switch_elements(replace(LAN, kind="internal"))}
    assert not inside & {"nat_bridges6", "nat_subnets6"}
    with pytest.raises(Invalid):
        Forward("tcp", 80, OWN, 80, host_address="192.0.2.1")


def test_the_plan_says_that_the_host_will_forward() -> None:
    plan = plan_change(Standing(replace(LAN, subnet6=None)), Standing(LAN), Path("/run/lan"), "nobody")
    assert "let the host forward IPv6 (net.ipv6.conf.all.forwarding)" in plan.steps
