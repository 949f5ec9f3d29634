"""What is new gets what nobody has, and exhaustion is said."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from innkeeper.daemon.allocate import check_mac_free, free_mac, free_name, free_number, free_uid
from innkeeper.model.problems import Conflict, NoSpace


@given(st.sets(st.integers(1, 40)))
def test_a_free_number_is_the_smallest_that_is_not_taken(taken: set[int]) -> None:
    number = free_number(taken)
    assert number not in taken
    assert set(range(1, number)) <= taken


@given(st.sets(st.integers(1, 300), max_size=200))
def test_a_free_mac_is_in_the_pool_and_not_taken(taken: set[int]) -> None:
    used = {f"52:54:ab:cd:{n >> 8:02x}:{n & 255:02x}" for n in taken}
    mac = free_mac("52:54:ab:cd", used)
    assert mac not in used
    assert mac.startswith("52:54:ab:cd:")
    assert check_mac_free(mac, used) == mac


def test_a_mac_in_use_is_refused() -> None:
    with pytest.raises(Conflict) as refused:
        check_mac_free("52:54:00:00:00:01", ["52:54:00:00:00:01"])
    assert refused.value.code == "nic.mac_in_use"


def test_an_exhausted_pool_is_said() -> None:
    everything = {f"52:54:ab:cd:{n >> 8:02x}:{n & 255:02x}" for n in range(1 << 16)}
    with pytest.raises(NoSpace) as full:
        free_mac("52:54:ab:cd", everything)
    assert full.value.code == "nic.mac_pool_exhausted"
    with pytest.raises(NoSpace) as full:
        free_uid(1000, 3, [1000, 1001, 1002])
    assert full.value.code == "vm.uids_exhausted"
    assert free_uid(1000, 3, [1000, None, 1002]) == 1001


def test_a_taken_name_is_varied() -> None:
    assert free_name("web-disk", []) == "web-disk"
    assert free_name("web-disk", ["web-disk", "web-disk-2"]) == "web-disk-3"
