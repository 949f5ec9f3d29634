"""What is compiled of VLANs lets through exactly what the policies say, for any policies."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Invalid
from innkeeper.network import vlans
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import Element
from innkeeper.network.transaction import read_elements
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.vlan_policy import UNTAGGED, VlanPolicy, reaches, within, without
from innkeeper.network.vlans import outside_elements, vlan_elements

PLAIN = SwitchPolicy("plain", "inbr-k3f91", kind="internal", subnet="10.77.0.0/24")
SWITCH = SwitchPolicy("lan", "inbr-k3f91", kind="internal", subnet="10.77.0.0/24", vlans=True)
ONE, OTHER = "intp-k3f91", "intp-k3f92"

_ids = st.integers(1, 6) | st.sampled_from([4093, 4094])


def _ranges(ids: set[int]) -> tuple[tuple[int, int], ...]:
    found: list[tuple[int, int]] = []
    for one in sorted(ids):
        if found and found[-1][1] + 1 == one:
            found[-1] = (found[-1][0], one)
        else:
            found.append((one, one))
    return tuple(found)


_lists = st.sets(_ids, min_size=1).map(_ranges)
_policies = st.one_of(
    st.just(UNTAGGED),
    st.builds(VlanPolicy, st.just("access"), _ids),
    st.builds(VlanPolicy, st.just("trunk"), st.none() | _ids, _lists),
    st.builds(
        VlanPolicy,
        st.sampled_from(["isolated", "community"]),
        st.integers(1, 2),
        _ids.map(lambda one: ((one, one),)),
    ),
    st.builds(VlanPolicy, st.just("promiscuous"), st.integers(1, 2), _lists),
)


def _port(tap: str, policy: VlanPolicy) -> PortPolicy:
    return PortPolicy(tap, "52:54:00:00:00:01", vlan=policy)


def _bounds(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


class Rules:
    """The chain between ports, evaluated over elements as nft does."""

    def __init__(self, *elements: frozenset[Element]) -> None:
        self._elements = frozenset[Element]().union(*elements)

    def _keys(self, container: str) -> list[tuple[str, ...]]:
        return [element.key for element in self._elements if element.container == container]

    def _key(self, tap: str) -> int:
        return next((int(e.value[0]) for e in self._elements if e.container == "vlan_key" and e.key == (tap,)), 0)

    def _takes(self, key: int, tap: str) -> bool:
        return (str(key), tap) in self._keys("vlan_takes") or self._takes_range(key, tap)

    def _takes_range(self, key: int, tap: str) -> bool:
        return any(t == tap and (b := _bounds(r))[0] <= key <= b[1] for r, t in self._keys("vlan_takes_range"))

    def _carries(self, tap: str, tag: int) -> bool:
        return any(t == tap and (b := _bounds(r))[0] <= tag <= b[1] for t, r in self._keys("vlan_tagged"))

    def admits(self, tap: str, tag: int | None) -> bool:
        return self._carries(tap, tag) if tag is not None else (tap,) in self._keys("vlan_untagged")

    def forwards(self, source: str, target: str, tag: int | None) -> bool:
        """``tag``: what the frame carries where it leaves."""
        if (source,) not in self._keys("vlan_ports") and (target,) not in self._keys("vlan_ports"):
            return True
        between = tag is not None and self._carries(source, tag) and self._carries(target, tag)
        return self._takes(self._key(source), target) or self._takes_range(self._key(target), source) or between


@given(_policies, _policies)
def test_two_ports_reach_each_other_exactly_when_they_share_a_vlan(one: VlanPolicy, other: VlanPolicy) -> None:
    rules = Rules(vlan_elements(SWITCH, _port(ONE, one)), vlan_elements(SWITCH, _port(OTHER, other)))
    tags = [None, *(tag for first, last in one.tagged() for tag in range(first, last + 1))]
    assert any(rules.forwards(ONE, OTHER, tag) for tag in tags) == reaches(one, other)
    assert reaches(one, other) == reaches(other, one)
    assert rules.forwards(ONE, OTHER, None) == rules.forwards(OTHER, ONE, None)


@given(_policies)
def test_every_port_reaches_the_outside_of_its_vlan_and_is_reached(policy: VlanPolicy) -> None:
    """Which VLAN a frame of the uplink is in is the bridge's part."""
    switch = replace(SWITCH, kind="external", subnet=None, uplink=UplinkPolicy(("eth0",)))
    rules = Rules(vlan_elements(switch, _port(ONE, policy)), outside_elements(switch))
    for tag in (None, *(tag for first, last in policy.tagged() for tag in (first, last))):
        if tag is not None or policy.vlan_id is not None:
            assert rules.forwards(ONE, "eth0", tag) and rules.forwards("eth0", ONE, tag)
    assert rules.admits("eth0", None) and rules.admits("eth0", 10) and not rules.admits("eth0", 0)
    assert outside_elements(replace(switch, vlans=False)) == frozenset()
    assert outside_elements(SWITCH) == frozenset()


@given(_policies, st.none() | _ids)
def test_a_frame_comes_in_only_with_the_tags_of_its_port(policy: VlanPolicy, tag: int | None) -> None:
    rules = Rules(vlan_elements(SWITCH, _port(ONE, policy)))
    if tag is None:
        assert rules.admits(ONE, tag) == (policy.vlan_id is not None)
    else:
        allowed = policy.mode == "trunk" and within(policy.others, tag) and tag != policy.vlan_id
        assert rules.admits(ONE, tag) == allowed


@given(_policies)
def test_a_port_that_is_forgotten_by_half_reaches_nobody(policy: VlanPolicy) -> None:
    """An untagged port without elements, on a switch that was not told of its VLANs, reaches no port with one."""
    if policy != UNTAGGED:
        rules = Rules(vlan_elements(PLAIN, _port(ONE, policy)), vlan_elements(PLAIN, _port(OTHER, UNTAGGED)))
        assert not rules.forwards(ONE, OTHER, None)
        assert not rules.forwards(OTHER, ONE, None)


def test_all_of_the_subnets_but_the_host_is_closed_to_what_comes_by_the_host() -> None:
    both = replace(SWITCH, subnet6="fd00:7::/64")
    ranges = {e.container: e.key[1] for e in vlan_elements(both, _port(ONE, UNTAGGED)) if "routed" in e.container}
    assert ranges["vlan_routed"] == "10.77.0.2-10.77.0.254"
    closed = [e.key[1] for e in vlan_elements(both, _port(ONE, UNTAGGED)) if e.container == "vlan_routed6"]
    assert both.gateway6 is not None
    bounds = [tuple(int(ipaddress.ip_address(bound)) for bound in text.split("-")) for text in closed]
    gateway, base = int(ipaddress.ip_address(both.gateway6)), int(ipaddress.ip_address("fd00:7::"))
    for address, expected in ((gateway, False), (base + 2, True), (base + 2**64 - 1, True), (base - 1, False)):
        assert any(low <= address <= high for low, high in bounds) == expected
    elsewhere = _port(ONE, VlanPolicy("access", 10))
    assert not any("routed" in e.container for e in vlan_elements(both, elsewhere))


def test_without_vlans_there_is_nothing_to_look_up() -> None:
    assert vlan_elements(PLAIN, _port(ONE, UNTAGGED)) == frozenset()


@given(_policies)
def test_elements_are_read_back_as_they_were_written(policy: VlanPolicy) -> None:
    written = vlan_elements(SWITCH, _port(ONE, policy))
    maps = [{"name": e.container, "elem": [[e.key[0], int(e.value[0])]]} for e in written if e.value]
    sets = [{"name": e.container, "elem": [_as_listed(e)]} for e in written if not e.value]
    listed = [{"map": one} for one in maps] + [{"set": one} for one in sets]
    assert read_elements("bridge", listed) == written


def _as_listed(element: Element) -> object:
    def field(text: str) -> object:
        if re.fullmatch(r"\d+-\d+", text):
            return {"range": [int(bound) for bound in text.split("-")]}
        if "." in text:
            return {"range": text.split("-")}
        return int(text) if text.isdigit() else text

    fields = [field(text) for text in element.key]
    return fields[0] if len(fields) == 1 else {"concat": fields}


def test_a_range_that_is_listed_as_a_prefix_is_the_same_range() -> None:
    assert vlans.listed("vlan_tagged", {"prefix": {"addr": 16, "len": 8}}) == "16-31"
    assert vlans.listed("vlan_takes_range", {"prefix": {"addr": 64, "len": 30}}) == "64-67"


@pytest.mark.parametrize("cut", [1, 3, 4, 5, 9])
def test_cutting_an_id_out_leaves_the_others(cut: int) -> None:
    ranges = ((1, 1), (3, 5), (9, 9))
    left = without(ranges, cut)
    assert [one for one in range(12) if within(left, one)] == [
        one for one in range(12) if within(ranges, one) and one != cut
    ]


@pytest.mark.parametrize(
    "policy",
    [
        ("access", None, ()),
        ("access", 5000, ()),
        ("access", 1, ((2, 2),)),
        ("isolated", 1, ()),
        ("community", 1, ((2, 3),)),
        ("promiscuous", 1, ()),
        ("trunk", 1, ((0, 3),)),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(policy: tuple) -> None:  # type: ignore[type-arg]
    with pytest.raises(Invalid):
        VlanPolicy(*policy)
