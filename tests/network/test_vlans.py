"""Frames between ports of VLANs and private VLANs through the real rules: they arrive exactly where they belong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import frames as f
import pytest
from attacks import GATEWAY, GATEWAY_MAC, SWITCH, udp4
from switch_lab import PATIENCE_S, Guest, Lab, new_lab

from innkeeper.network.policy import GuardPolicy, PortPolicy
from innkeeper.network.vlan_policy import UNTAGGED, VlanPolicy, reaches

pytestmark = pytest.mark.root

POLICIES = {
    1: UNTAGGED,
    2: VlanPolicy("access", 1),
    3: VlanPolicy("access", 10),
    4: VlanPolicy("access", 10),
    5: VlanPolicy("isolated", 1, others=((101, 101),)),
    6: VlanPolicy("isolated", 1, others=((101, 101),)),
    7: VlanPolicy("community", 1, others=((102, 102),)),
    8: VlanPolicy("community", 1, others=((102, 102),)),
    9: VlanPolicy("promiscuous", 1, others=((64, 127),)),
    10: VlanPolicy("promiscuous", 2, others=((101, 101), (103, 105))),
    11: VlanPolicy("isolated", 2, others=((101, 101),)),
    12: VlanPolicy("access", 64),
}
MARK = b"honest packet of %d to %d;"


def port(number: int) -> PortPolicy:
    return PortPolicy(
        f"intp-t3st{number:x}", f"52:54:00:00:00:{number:02x}", (f"10.66.0.{10 + number}",), vlan=POLICIES[number]
    )


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab(replace(SWITCH, vlans=True)) as made:
        for number in POLICIES:
            made.plug(port(number))
        yield made


@pytest.fixture(scope="module")
def guests(lab: Lab) -> dict[int, Guest]:
    return {int(tap.removeprefix("intp-t3st"), 16): guest for tap, guest in lab.guests.items()}


def _forget(guests: dict[int, Guest]) -> None:
    for guest in guests.values():
        guest.drain()


def test_a_broadcast_arrives_where_it_belongs_and_nowhere_else(lab: Lab, guests: dict[int, Guest]) -> None:
    for number, sender in guests.items():
        _forget(guests)
        mark = b"to everybody from %d;" % number
        sender.send(udp4(sender, "ff:ff:ff:ff:ff:ff", sender.ip, "10.66.0.255", (4000, 4000), mark))
        expected = {one for one in guests if one != number and reaches(POLICIES[number], POLICIES[one])}
        arrived = set()
        for one in expected:
            guests[one].wait_for(mark)
            arrived.add(one)
        # The bridge gives copies out in one go: those who wait for none have theirs when the last of the others does.
        arrived |= {one for one in guests if one not in expected and any(mark in each for each in guests[one].drain())}
        assert arrived == expected, number


def test_a_unicast_arrives_exactly_where_the_policies_reach(lab: Lab, guests: dict[int, Guest]) -> None:
    for one, other in permutations(guests, 2):
        mark = MARK % (one, other)
        guests[one].send(lab.honest(guests[one], guests[other], mark))
    for one, other in permutations(guests, 2):
        expected = reaches(POLICIES[one], POLICIES[other])
        if expected:
            got = _collect(guests[other], MARK % (one, other))
            assert got, (one, other)
    for other, guest in guests.items():
        got = _seen.pop(other, []) + guest.drain()
        for one in guests:
            if one != other and not reaches(POLICIES[one], POLICIES[other]):
                assert not any(MARK % (one, other) in frame for frame in got), (one, other)


_seen: dict[int, list[bytes]] = {}


def _collect(guest: Guest, wanted: bytes) -> bool:
    number = int(guest.port.tap.removeprefix("intp-t3st"), 16)
    seen = _seen.setdefault(number, [])
    while not any(wanted in frame for frame in seen):
        frame = guest.receive(PATIENCE_S)
        if frame is None:
            return False
        seen.append(frame)
    return True


def _asks_gateway(guest: Guest) -> bytes:
    return f.arp(guest.mac, 1, guest.mac, guest.ip, "00" * 6, GATEWAY)


def test_the_host_answers_in_its_own_vlan_only(lab: Lab, guests: dict[int, Guest]) -> None:
    _forget(guests)
    for guest in guests.values():
        guest.send(_asks_gateway(guest))
    for number, guest in guests.items():
        if POLICIES[number].with_host:
            answered = _collect(guest, f.mac(GATEWAY_MAC) + f.ip(GATEWAY) + f.mac(guest.mac))
            assert answered, number
    for number, guest in guests.items():
        if not POLICIES[number].with_host:
            assert not any(f.mac(GATEWAY_MAC) == frame[6:12] for frame in guest.drain()), number
    _seen.clear()


@pytest.mark.parametrize(("one", "other"), [(5, 6), (5, 7), (7, 5), (1, 5), (5, 1), (9, 1)])
def test_the_gateway_is_no_way_around(lab: Lab, guests: dict[int, Guest], one: int, other: int) -> None:
    """A packet for a neighbour, sent to the gateway's mac: the host would route it back into the same switch."""
    sender, victim = guests[one], guests[other]
    assert victim.port.vlan.with_host
    _forget(guests)
    before = lab.dropped(sender)["vlan"]
    sender.send(_asks_gateway(sender))
    victim.send(_asks_gateway(victim))  # the host knows both now
    reply = f.mac(GATEWAY_MAC) + f.ip(GATEWAY) + f.mac(sender.mac)
    sender.wait_for(reply)
    sender.send(udp4(sender, GATEWAY_MAC, sender.ip, victim.ip, (4000, 4000), b"around;"))
    sender.send(_asks_gateway(sender))
    sender.wait_for(reply)
    assert not any(b"around;" in frame for frame in victim.drain())
    assert lab.dropped(sender)["vlan"] == before + 1


@pytest.mark.parametrize("guards", [GuardPolicy(), GuardPolicy(False, False, False, False, False)], ids=["on", "off"])
def test_no_tag_gets_a_frame_into_another_vlan(lab: Lab, guests: dict[int, Guest], guards: GuardPolicy) -> None:
    sender, peer = guests[3], guests[4]
    before = lab.dropped(sender)
    lab.set_port(sender, replace(sender.port, guards=guards))
    plain = udp4(sender, "ff:ff:ff:ff:ff:ff", sender.ip, "10.66.0.255", (4000, 4000), b"hops;")
    for tags in ([(0x8100, 1)], [(0x8100, 0)], [(0x8100, 10), (0x8100, 1)], [(0x88A8, 10)], [(0x8100, 0), (0x8100, 0)]):
        _forget(guests)
        assert lab.deliver(sender, peer, _tagged(plain, *tags)) == [], tags
        assert not any(b"hops;" in frame for guest in guests.values() for frame in guest.drain()), tags
    kind = "frame" if guards.any else "vlan"
    assert lab.dropped(sender)[kind] == (before[kind] if guards.any else 0) + 5
    lab.set_port(sender, port(3))


def _tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    return frame[:12] + b"".join(kind.to_bytes(2) + vlan.to_bytes(2) for kind, vlan in tags) + frame[12:]


def test_what_stands_is_what_was_compiled(lab: Lab) -> None:
    assert lab.do(lab.runner.repair()).done == []


def test_a_change_of_vlan_holds_at_once(lab: Lab, guests: dict[int, Guest]) -> None:
    sender, old, new = guests[3], guests[4], guests[12]
    lab.set_port(sender, replace(sender.port, vlan=POLICIES[12]))
    assert lab.deliver(sender, new) == []
    old.drain()
    sender.send(lab.honest(sender, old, b"from yesterday;"))
    lab.deliver(sender, new)
    assert not any(b"from yesterday;" in frame for frame in old.drain())
    lab.set_port(sender, port(3))
    assert lab.deliver(sender, old) == []


@pytest.mark.parametrize("number", POLICIES)
def test_every_port_can_leave_its_vlan_and_come_back(lab: Lab, guests: dict[int, Guest], number: int) -> None:
    lab.set_port(guests[number], replace(port(number), vlan=VlanPolicy("access", 77)))
    lab.set_port(guests[number], port(number))
    assert lab.do(lab.runner.repair()).done == []
