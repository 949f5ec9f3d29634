"""Meters and marks: ranges of prefixes, what the kernel counts, and reading it."""

from __future__ import annotations

import ipaddress
from dataclasses import replace

import frames as f
import pytest
from hypothesis import given, strategies as st
from switch_lab import Guest, Lab, in_namespace
from switch_world import port_of, until

from innkeeper.model.problems import Invalid
from innkeeper.network.meter_dump import read_counters
from innkeeper.network.meters import (
    Network,
    counter_name,
    listed_range,
    range_text,
    ranges,
    read_name,
    traffic_elements,
)
from innkeeper.network.traffic import Direction, Meter, TrafficPolicy

_V4 = st.integers(0, 2**32 - 1)


def _network(address: int, length: int) -> Network:
    return ipaddress.IPv4Network((address & 0xFFFFFFFF << 32 - length, length))


# Few top bits, so that prefixes are often within each other.
_NETWORKS = st.lists(st.builds(_network, st.sampled_from([n << 27 for n in range(8)]) | _V4, st.integers(0, 32)))


@given(_NETWORKS, st.lists(_V4))
def test_every_address_is_counted_by_the_longest_prefix_that_holds_it(networks: list[Network], more: list[int]) -> None:
    found = ranges(networks)
    edges = [int(edge) for one in networks for edge in (one.network_address, one.broadcast_address)]
    for address in {*more, *edges, *(edge + 1 for edge in edges if edge < 2**32 - 1)}:
        holding = [one for one in networks if ipaddress.IPv4Address(address) in one]
        counting = [network for (first, last), network in found if first <= address <= last]
        assert counting == ([max(holding, key=lambda one: one.prefixlen)] if holding else [])


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.sampled_from(("in", "out")))
def test_names_and_listed_ranges_are_read_back(address: int, length: int, direction: Direction) -> None:
    network = _network(address, length)
    meter = Meter(direction, str(network))
    assert read_name(counter_name("intp-k3f91", meter)) == ("intp-k3f91", direction, meter.remote)
    text = range_text(int(network.network_address), int(network.broadcast_address), 4)
    low, high = text.split("-")
    assert listed_range({"range": [low, high]}) == text
    assert listed_range({"prefix": {"addr": str(network.network_address), "len": length}}) == text
    if length == 32:
        assert listed_range(low) == text


@pytest.mark.parametrize("text", ["10.0.0.1/8", "10/8", "::/129", "web"])
def test_a_meter_is_a_prefix_in_its_shortest_form(text: str) -> None:
    with pytest.raises(Invalid, match="prefix"):
        Meter("in", text)


def metered(number: int, *remotes: str, dscp: int | None = None) -> TrafficPolicy:
    meters = tuple(Meter(direction, remote) for remote in remotes for direction in ("in", "out"))  # type: ignore[arg-type]
    return TrafficPolicy(meters=meters, dscp=dscp)


def test_a_port_without_meters_and_marks_has_no_elements() -> None:
    assert traffic_elements(port_of(1)) == frozenset()


WIDE, NARROW, SIX = "10.0.0.0/8", "10.66.0.12/32", "fe80::/10"


def count(lab: Lab, guest: Guest) -> dict[tuple[str, str], tuple[int, int]]:
    found = lab.do(lab.runner.meters()).get(guest.port.tap, {})
    return {(meter.direction, meter.remote): counted for meter, counted in found.items()}


@pytest.mark.root
def test_both_directions_are_counted_by_the_longest_prefix(lab: Lab) -> None:
    one = lab.plug(replace(port_of(1), traffic=metered(1, WIDE, NARROW, SIX)))
    two, three = lab.plug(port_of(2)), lab.plug(port_of(3))
    assert lab.do(lab.runner.repair()).done == [], "the kernel lists them as they were given"
    assert set(count(lab, one).values()) == {(0, 0)}
    for other, times in ((two, 3), (three, 2)):
        for number in range(times):
            word = b"%d" % number + bytes(99)
            one.send(lab.honest(one, other, word))
            other.wait_for(word)
            other.send(lab.honest(other, one, word))
            one.wait_for(word)
    size = 20 + 8 + 100
    assert count(lab, one)["out", NARROW] == count(lab, one)["in", NARROW] == (3, 3 * size)
    assert count(lab, one)["out", WIDE] == count(lab, one)["in", WIDE] == (2, 2 * size)
    echo = f.ipv6(one.link_local, two.link_local, 58, f.icmpv6(one.link_local, two.link_local, 128, 0, b"echo"))
    one.send(f.ethernet(two.mac, one.mac, 0x86DD, echo))
    two.wait_for(b"echo")
    assert count(lab, one)["out", SIX][0] == 1
    # a meter more or less leaves the others counting
    lab.set_port(one, replace(one.port, traffic=metered(1, WIDE, NARROW, "10.66.0.0/24")))
    assert count(lab, one)["out", NARROW] == (3, 3 * size)
    assert ("out", SIX) not in count(lab, one)
    one.send(lab.honest(one, three, b"in the new one"))
    three.wait_for(b"in the new one")
    assert count(lab, one)["out", "10.66.0.0/24"][0] == 1 and count(lab, one)["out", WIDE][0] == 2
    assert lab.do(lab.runner.repair()).done == []
    lab.unplug(one)
    names = in_namespace(lab.namespace, lambda: read_counters("inn_t3st"))
    assert not any("/" in name for name in names)


@pytest.mark.root
def test_the_dscp_of_what_a_vm_sends_is_set_or_kept(lab: Lab) -> None:
    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    sent = lab.honest(one, two, b"marked")
    own = bytearray(sent)
    own[15] = 10 << 2
    own[24:26] = b"\0\0"
    total = sum(int.from_bytes(own[at : at + 2], "big") for at in range(14, 34, 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    own[24:26] = (~total & 0xFFFF).to_bytes(2, "big")
    for dscp, expected in ((None, 10), (46, 46), (0, 0)):
        lab.set_port(one, replace(port_of(1), traffic=TrafficPolicy(dscp=dscp)))
        two.drain()
        one.send(bytes(own))
        arrived = two.receive(10.0)
        assert arrived is not None and arrived[15] >> 2 == expected
        total = sum(int.from_bytes(arrived[at : at + 2], "big") for at in range(14, 34, 2))
        assert (total & 0xFFFF) + (total >> 16) == 0xFFFF, "the header's checksum is right"
    assert lab.do(lab.runner.repair()).done == []


@pytest.mark.root
def test_statistics_are_the_vms_directions(lab: Lab) -> None:
    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    before = lab.do(lab.runner.statistics())[one.port.tap]
    frame = lab.honest(one, two, bytes(500))
    one.send(*[frame] * 5)

    def sent() -> tuple[int, int]:
        now = lab.do(lab.runner.statistics())[one.port.tap]
        return now[0] - before[0], now[1] - before[1]

    assert until(lambda: sent()[1] >= 5)
    assert sent() == (5 * len(frame), 5)
