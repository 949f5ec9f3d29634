"""VLANs of cards as they are typed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.vlan import NicVlan, parse_vlan, vlan_list, vlan_ranges


@pytest.mark.parametrize(
    "text",
    [
        "untagged",
        "access:10",
        "trunk:10,20-30",
        "trunk:10,native=1",
        "isolated:100,101",
        "community:100,102",
        "promiscuous:100,101-102,200",
    ],
)
def test_what_is_typed_is_what_is_shown(text: str) -> None:
    assert str(parse_vlan(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("private:1", "is no mode"),
        ("access", "needs vlan_id"),
        ("access:0", "greater than or equal to 1"),
        ("access:4095", "less than or equal to 4094"),
        ("access:ten", "valid integer"),
        ("access:10,11", "too much"),
        ("untagged:1", "too much"),
        ("trunk:native=1", "needs allowed_vlan_ids"),
        ("trunk:10,native=x", "valid integer"),
        ("access:10,native=1", "has no native_vlan_id"),
        ("isolated:100", "needs secondary_vlan_id"),
        ("isolated:100,100", "cannot be the primary"),
        ("promiscuous:100", "needs secondary_vlan_ids"),
        ("promiscuous:100,99-101", "cannot be the primary"),
        ("promiscuous:1,20-10", "low to high"),
        ("promiscuous:1,a", "no range"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_vlan(text)


def test_what_another_mode_has_is_refused() -> None:
    with pytest.raises(ValueError, match="mode access has no secondary_vlan_id"):
        NicVlan(mode="access", vlan_id=1, secondary_vlan_id=2)


@given(st.sets(st.integers(1, 4094), min_size=1, max_size=40))
def test_a_list_holds_the_ids_that_were_given_and_is_shortest(ids: set[int]) -> None:
    ranges = vlan_ranges(",".join(map(str, sorted(ids, reverse=True))))
    assert {one for first, last in ranges for one in range(first, last + 1)} == ids
    assert all(before[1] + 1 < after[0] for before, after in pairwise(ranges))
    assert vlan_ranges(vlan_list(ranges)) == ranges
