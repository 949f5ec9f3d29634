"""Ranges, options and reservations of a switch's DHCP: what can be, and what dnsmasq is told."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.dhcp import DhcpOption, DhcpSettings, DhcpSettingsSet
from innkeeper.model.problems import Conflict, Invalid, NoSpace
from innkeeper.network.addresses import check_address, choose_address
from innkeeper.network.dhcp import compile_files
from innkeeper.network.dhcp_policy import DhcpPolicy, Reservation, check_dhcp, in_ranges
from innkeeper.network.policy import PortPolicy, SwitchPolicy

NETWORK = ipaddress.IPv4Network("10.77.0.0/24")
PRINTER = Reservation("52:54:00:aa:00:01", "10.77.0.9", "printer")
RANGES = (("10.77.0.100", "10.77.0.101"), ("10.77.0.50", "10.77.0.50"))


def refusal(dhcp: DhcpPolicy) -> tuple[str, str | None]:
    """The code and cause of the refusal of ``dhcp`` on a switch that has a card."""
    with pytest.raises((Invalid, Conflict)) as problem:
        check_dhcp(dhcp, NETWORK, "10.77.0.1", {"10.77.0.2": "web-0"}, {"52:54:00:00:00:01": "web-0"})
    assert problem.value.remedy
    return problem.value.code, problem.value.cause


@pytest.mark.parametrize(
    ("ranges", "cause"),
    [
        ([("10.77.0.20", "10.77.0.10")], "10.77.0.20 comes after 10.77.0.10"),
        ([("10.77.0.200", "10.77.1.10")], "the switch's subnet is 10.77.0.0/24"),
        ([("10.77.0.0", "10.77.0.10")], "the switch's subnet is 10.77.0.0/24"),
        ([("10.77.0.9", "10.77.0.255")], "the switch's subnet is 10.77.0.0/24"),
        ([("10.77.0.9", "10.77.0.20"), ("10.77.0.20", "10.77.0.30")], "it overlaps 10.77.0.9-10.77.0.20"),
    ],
)
def test_an_impossible_range_is_refused(ranges: list[tuple[str, str]], cause: str) -> None:
    assert refusal(DhcpPolicy(ranges=tuple(ranges))) == ("dhcp.range", cause)


def test_a_reservation_must_be_inside_and_free() -> None:
    assert refusal(DhcpPolicy(reservations=(replace(PRINTER, address="10.78.0.9"),)))[0] == "dhcp.reservation"
    for taken in ("10.77.0.2", "10.77.0.1"):
        used = DhcpPolicy(reservations=(replace(PRINTER, address=taken),))
        assert refusal(used)[0] == "dhcp.reservation_taken"
    card = DhcpPolicy(reservations=(replace(PRINTER, mac="52:54:00:00:00:01"),))
    assert refusal(card)[0] == "dhcp.reservation_taken"
    for second in (replace(PRINTER, address="10.77.0.10"), replace(PRINTER, mac="52:54:00:aa:00:02")):
        assert refusal(DhcpPolicy(reservations=(PRINTER, second)))[0] == "dhcp.reservation_taken"


def test_an_option_is_given_once() -> None:
    assert refusal(DhcpPolicy(options=((66, "a"), (66, "b"))))[0] == "dhcp.option_twice"


def test_a_switch_without_a_subnet_has_neither_range_nor_reservation() -> None:
    for dhcp in (DhcpPolicy(ranges=RANGES), DhcpPolicy(reservations=(PRINTER,))):
        with pytest.raises(Invalid) as problem:
            check_dhcp(dhcp, None, None, {}, {})
        assert problem.value.code == "switch.no_subnet"
    check_dhcp(DhcpPolicy(ntp_servers=("192.0.2.1",)), None, None, {}, {})


@pytest.mark.parametrize("number", [0, 1, 6, 26, 42, 51, 53, 61, 119, 255, 256, -1])
def test_options_that_the_inn_or_the_protocol_sets_are_refused(number: int) -> None:
    with pytest.raises(ValueError, match="cannot be given"):
        DhcpOption(number=number, value="1")


@pytest.mark.parametrize("value", ["", "a\nuser=root", 'a"', "a #b", "x" * 256])
def test_an_option_cannot_say_more_than_its_value(value: str) -> None:
    with pytest.raises(ValueError):
        DhcpOption(number=66, value=value)


LAN = SwitchPolicy("lan", "inbr-k3f91", subnet="10.77.0.0/24", dhcp_policy=DhcpPolicy(RANGES, reservations=(PRINTER,)))


def test_addresses_are_chosen_from_the_ranges_in_order() -> None:
    assert choose_address(LAN, []) == "10.77.0.100"
    assert choose_address(LAN, ["10.77.0.100", "10.77.0.101"]) == "10.77.0.50"
    with pytest.raises(NoSpace, match="ranges") as problem:
        choose_address(LAN, ["10.77.0.100", "10.77.0.101", "10.77.0.50"])
    assert problem.value.code == "switch.addresses_exhausted"
    assert check_address(LAN, "10.77.0.7", {}) == "10.77.0.7", "one that is named may be outside of the ranges"


def test_what_is_reserved_is_nobody_elses() -> None:
    reserved = replace(LAN, dhcp_policy=DhcpPolicy((("10.77.0.9", "10.77.0.10"),), reservations=(PRINTER,)))
    assert choose_address(reserved, []) == "10.77.0.10"
    with pytest.raises(Conflict, match=PRINTER.mac) as problem:
        check_address(reserved, PRINTER.address, {})
    assert problem.value.code == "nic.address_in_use"


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(0, 255)), max_size=6))
def test_ranges_that_are_taken_give_only_addresses_for_cards_and_each_once(pairs: list[tuple[int, int]]) -> None:
    dhcp = DhcpPolicy(ranges=tuple((f"10.77.0.{first}", f"10.77.0.{last}") for first, last in pairs))
    try:
        check_dhcp(dhcp, NETWORK, None, {}, {})
    except Invalid:
        numbers = [number for first, last in pairs for number in range(first, last + 1)]
        empty = any(first > last for first, last in pairs)
        assert empty or 0 in numbers or 255 in numbers or len(set(numbers)) < len(numbers)
        return
    addresses = list(in_ranges(dhcp, NETWORK))
    assert len(set(addresses)) == len(addresses)
    assert set(addresses) <= {str(host) for host in NETWORK.hosts()}


def lines(dhcp: DhcpPolicy, kind: str = "nat") -> list[str]:
    """What dnsmasq is told of ``dhcp``."""
    switch = replace(LAN, kind=kind, dhcp_policy=dhcp)  # type: ignore[arg-type]
    return compile_files(switch, [], Path("/run/lan"), "nobody").configuration.splitlines()


def test_what_is_set_is_told_to_dnsmasq() -> None:
    plain = lines(DhcpPolicy())
    assert {"dhcp-option=option:dns-server,10.77.0.1", "dhcp-option=option:domain-search,inn"} <= set(plain)
    assert "dhcp-range=10.77.0.0,static,255.255.255.0,3600" in plain
    dhcp = DhcpPolicy(
        lease_s=600,
        dns_servers=("192.0.2.53", "2001:db8::53", "192.0.2.54"),
        search_domains=("a.example", "b.example"),
        ntp_servers=("2001:db8::7", "192.0.2.7"),
        options=((66, "boot.example"), (3, "10.77.0.254")),
    )
    told = lines(dhcp)
    assert "dhcp-range=10.77.0.0,static,255.255.255.0,600" in told
    assert "dhcp-option=option:dns-server,192.0.2.53,192.0.2.54" in told
    assert "dhcp-option=option:domain-search,a.example,b.example" in told
    assert "dhcp-option=option:ntp-server,192.0.2.7" in told
    assert "dhcp-option-force=66,boot.example" in told and "dhcp-option-force=3,10.77.0.254" in told
    assert not any("option:router" in line for line in told), "the router that was given replaces the switch's own"


def test_a_card_with_an_mtu_of_its_own_is_told_it() -> None:
    port = PortPolicy("intp-k3f91", "52:54:00:00:00:01", ("10.77.0.2",), hostname="web", mtu=1400)
    files = compile_files(LAN, [port], Path("/run/lan"), "nobody")
    told = files.configuration.splitlines()
    assert "dhcp-option=option:mtu,1500" in told and "dhcp-option=tag:mtu1400,option:mtu,1400" in told
    assert "52:54:00:00:00:01,set:mtu1400,10.77.0.2,web\n" in files.reservations


def test_reservations_are_told_with_their_names() -> None:
    files = compile_files(LAN, [], Path("/run/lan"), "nobody")
    assert files.reservations == "52:54:00:aa:00:01,10.77.0.9,printer\n"
    assert files.hosts.splitlines()[1:] == ["10.77.0.9 printer.inn printer"]


def test_changes_replace_lists_and_null_clears() -> None:
    before = DhcpSettings(ntp_servers=["192.0.2.7"], lease_s=600)
    after = DhcpSettingsSet.model_validate({"lease_s": None, "dns_servers": ["192.0.2.53"]}).applied_to(before)
    assert after == DhcpSettings(ntp_servers=["192.0.2.7"], dns_servers=["192.0.2.53"])
