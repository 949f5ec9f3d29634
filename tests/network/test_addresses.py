from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Conflict, Invalid, NoSpace
from innkeeper.network.addresses import POOL, check_address, check_subnet, choose_address, choose_subnet
from innkeeper.network.links import Route
from innkeeper.network.policy import SwitchPolicy

LAN = SwitchPolicy("lan", "inbr-k3f91", subnet="10.77.0.0/29")


def test_the_first_free_subnet_is_chosen() -> None:
    assert choose_subnet({}, []) == "10.77.0.0/24"
    assert choose_subnet({"a": "10.77.0.0/24"}, [Route("10.77.1.128/25", "eth0")]) == "10.77.2.0/24"


def test_no_subnet_left_is_said() -> None:
    with pytest.raises(NoSpace) as problem:
        choose_subnet({}, [Route("10.77.0.0/16", "tun0")])
    assert problem.value.code == "switch.subnets_exhausted"


@given(st.lists(st.integers(0, 255), max_size=200, unique=True), st.lists(st.integers(16, 30), max_size=3))
def test_a_chosen_subnet_overlaps_nothing(thirds: list[int], lengths: list[int]) -> None:
    switches = {f"s{third}": f"10.77.{third}.0/24" for third in thirds}
    routes = [Route(str(ipaddress.ip_network(f"10.77.9.0/{length}", strict=False)), "eth0") for length in lengths]
    try:
        chosen = ipaddress.ip_network(choose_subnet(switches, routes))
    except NoSpace:
        assert 16 in lengths
        return
    taken = [ipaddress.ip_network(text) for text in (*switches.values(), *(route.network for route in routes))]
    assert chosen.subnet_of(POOL) and not any(chosen.overlaps(network) for network in taken)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "cause"),
    [
        ("10.77.0.0/25", "switch other has 10.77.0.0/24"),
        ("10.0.0.0/8", "switch other has 10.77.0.0/24"),
        ("192.168.1.0/29", "the host reaches 192.168.0.0/16 through eth0"),
    ],
)
def test_an_overlap_is_refused_and_named(wanted: str, cause: str) -> None:
    with pytest.raises(Conflict) as problem:
        check_subnet(wanted, {"other": "10.77.0.0/24"}, [Route("192.168.0.0/16", "eth0")])
    assert (problem.value.code, problem.value.cause) == ("switch.subnet_in_use", cause)


def test_a_switch_does_not_conflict_with_its_own_route() -> None:
    routes = [Route("10.77.5.0/24", "inbr-k3f91")]
    assert check_subnet("10.77.5.0/24", {}, routes, own_bridge="inbr-k3f91") == "10.77.5.0/24"
    with pytest.raises(Conflict):
        check_subnet("10.77.5.0/24", {}, routes)


@pytest.mark.parametrize(
    "wanted", ["10.77.0.0/30", "10.77.0.1/24", "224.0.0.0/24", "127.0.0.0/8", "fd00::/64", "lan", ""]
)
def test_an_impossible_subnet_is_refused(wanted: str) -> None:
    with pytest.raises(Invalid) as problem:
        check_subnet(wanted, {}, [])
    assert problem.value.code == "switch.subnet"


@given(st.sets(st.integers(0, 7)))
def test_the_lowest_free_address_is_chosen(taken: set[int]) -> None:
    free = [number for number in range(2, 7) if number not in taken]
    addresses = [f"10.77.0.{number}" for number in taken]
    if free:
        assert choose_address(LAN, addresses) == f"10.77.0.{free[0]}"
    else:
        with pytest.raises(NoSpace, match="every address"):
            choose_address(LAN, addresses)


@pytest.mark.parametrize(
    ("wanted", "code"),
    [
        ("10.77.0.2", "nic.address_in_use"),
        ("10.77.0.1", "nic.address_in_use"),
        ("10.77.0.0", "nic.address_outside"),
        ("10.77.0.7", "nic.address_outside"),
        ("10.78.0.2", "nic.address_outside"),
        ("fd00::1", "nic.address"),
        ("ten", "nic.address"),
    ],
)
def test_an_address_that_cannot_be_had_is_refused(wanted: str, code: str) -> None:
    with pytest.raises((Invalid, Conflict)) as problem:
        check_address(LAN, wanted, {"10.77.0.2": "web-0"})
    assert problem.value.code == code


def test_a_free_address_is_kept() -> None:
    assert check_address(LAN, "10.77.0.3", {"10.77.0.2": "web-0"}) == "10.77.0.3"


def test_a_switch_without_a_subnet_gives_no_address() -> None:
    with pytest.raises(Invalid) as problem:
        choose_address(SwitchPolicy("apart", "inbr-k3f92", kind="private"), [])
    assert problem.value.code == "switch.no_subnet"
