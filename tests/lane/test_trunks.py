"""Trunks on a bridge that filters VLANs: tags come and go where they should, and guards hold behind a tag."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import frames as f
import pytest
from attacks import ATTACKS, HONEST, KERNEL
from switch_lab import PATIENCE_S, Guest, Lab, new_lab, run_in

from innkeeper.network.policy import GuardPolicy, PortPolicy, SwitchPolicy
from innkeeper.network.vlan_policy import UNTAGGED, VlanPolicy, within

SWITCH = SwitchPolicy("lan", "inbr-t3st1", kind="internal", subnet="10.66.0.0/24", dhcp=False, vlans=True)
POLICIES = {
    1: UNTAGGED,
    2: VlanPolicy("access", 10),
    3: VlanPolicy("access", 20),
    4: VlanPolicy("trunk", 1, ((10, 10), (20, 30))),
    5: VlanPolicy("trunk", 10, ((20, 20), (40, 40))),
    6: VlanPolicy("trunk", None, ((10, 10), (40, 40))),
    7: VlanPolicy("isolated", 10, ((101, 101),)),
    8: VlanPolicy("promiscuous", 10, ((101, 101),)),
}
NO_GUARDS = GuardPolicy(False, False, False, False, False)


def port(number: int) -> PortPolicy:
    return PortPolicy(f"intp-t3st{number}", f"52:54:00:00:00:0{number}", (f"10.66.0.1{number}",), vlan=POLICIES[number])


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    subprocess.run(["modprobe", "tun"], check=True)
    with new_lab(SWITCH) as made:
        for number in POLICIES:
            made.plug(port(number))
        yield made


@pytest.fixture(scope="module")
def guests(lab: Lab) -> dict[int, Guest]:
    return {int(tap.removeprefix("intp-t3st")): guest for tap, guest in lab.guests.items()}


def tagged(frame: bytes, *tags: tuple[int, int]) -> bytes:
    return frame[:12] + b"".join(kind.to_bytes(2, "big") + vlan.to_bytes(2, "big") for kind, vlan in tags) + frame[12:]


def _vlans(policy: VlanPolicy) -> dict[int, int | None]:
    """VLAN -> the tag that its frames carry at the port, of ports that are no private VLAN's."""
    found: dict[int, int | None] = {one: one for one in (1, 10, 20, 25, 40) if within(policy.tagged(), one)}
    return found if policy.vlan_id is None else {**found, policy.vlan_id: None}


def _collect(guest: Guest, seen: list[bytes], wanted: bytes) -> bytes:
    while True:
        for frame in seen:
            if wanted in frame:
                return frame
        frame = guest.receive(PATIENCE_S)
        assert frame is not None, wanted
        seen.append(frame)


def test_every_frame_arrives_in_its_vlan_with_the_tag_of_the_receiver(lab: Lab, guests: dict[int, Guest]) -> None:
    plain = {one for one in POLICIES if not POLICIES[one].is_private}
    wanted: dict[bytes, int | None] = {}
    unwanted: set[bytes] = set()
    to: dict[bytes, int] = {}
    for one, other in permutations(plain, 2):
        there = _vlans(POLICIES[other])
        for vlan, tag in _vlans(POLICIES[one]).items():
            mark = b"from %d to %d in %d;" % (one, other, vlan)
            to[mark] = other
            frame = lab.honest(guests[one], guests[other], mark)
            guests[one].send(frame if tag is None else tagged(frame, (0x8100, tag)))
            if vlan in there:
                wanted[mark] = there[vlan]
            else:
                unwanted.add(mark)
    seen: dict[int, list[bytes]] = {one: [] for one in guests}
    for mark, tag in wanted.items():
        arrived = _collect(guests[to[mark]], seen[to[mark]], mark)
        carried = int.from_bytes(arrived[14:16], "big") & 0xFFF if arrived[12:14] == b"\x81\x00" else None
        assert carried == tag, mark
    for one, guest in guests.items():
        arrived_there = seen[one] + guest.drain()
        here = {mark for mark in unwanted if to[mark] == one}
        assert not [mark for mark in here if any(mark in frame for frame in arrived_there)]


def test_private_vlans_stay_apart_from_trunks_and_reach_their_promiscuous(lab: Lab, guests: dict[int, Guest]) -> None:
    assert lab.deliver(guests[7], guests[8]) == []
    assert lab.deliver(guests[8], guests[7]) == []
    for other in (2, 4, 5, 6):
        guests[7].send(lab.honest(guests[7], guests[other], b"not private;"))
        guests[other].send(lab.honest(guests[other], guests[7], b"not private;"))
    lab.deliver(guests[7], guests[8])
    for other in (2, 4, 5, 6, 7, 8):
        assert not any(b"not private;" in frame for frame in guests[other].drain()), other


def _through_the_trunk(lab: Lab, sender: Guest, receiver: Guest, made: bytes | list[bytes]) -> list[bytes]:
    """What arrives of frames that are sent with the tag of the receiver's VLAN, without what the host says."""
    sent = [made] if isinstance(made, bytes) else made
    receiver.drain()
    mark = lab.honest(sender, receiver, b"after it;")
    sender.send(*(tagged(frame, (0x8100, 10)) for frame in [*sent, mark]))
    host = f.mac(SWITCH.mac)
    return [frame.rstrip(b"\0") for frame in receiver.wait_for(b"after it;") if frame[6:12] != host]


def test_no_attack_arrives_behind_a_tag_or_moves_an_entry(lab: Lab, guests: dict[int, Guest]) -> None:
    attacker, victim, third = guests[4], guests[2], guests[5]
    for sender, receiver in ((victim, third), (third, victim)):
        lab.deliver(sender, receiver)
    wrong = []
    for name, (guard, make) in ATTACKS.items():
        made = make(attacker, victim, third)
        count = 1 if isinstance(made, bytes) else len(made)
        _through_the_trunk(lab, attacker, victim, [])
        before, known = lab.dropped(attacker), lab.forwarding()
        third.drain()
        arrived = _through_the_trunk(lab, attacker, victim, made)
        counted = {kind: packets - before[kind] for kind, packets in lab.dropped(attacker).items()}
        dropped = sum(counted.values())
        if arrived or lab.forwarding() != known or dropped != (0 if guard == KERNEL else count):
            wrong.append((name, arrived, counted))
        for mark in third.drain():
            assert b"after it;" in mark or mark[6:12] == f.mac(SWITCH.mac), name
    assert wrong == []


def test_honest_frames_arrive_behind_a_tag(lab: Lab, guests: dict[int, Guest]) -> None:
    attacker, victim, third = guests[4], guests[2], guests[5]
    before = lab.dropped(attacker)
    for name, make in HONEST.items():
        made = make(attacker, victim, third)
        sent = [frame.rstrip(b"\0") for frame in ([made] if isinstance(made, bytes) else made)]
        assert _through_the_trunk(lab, attacker, victim, made) == sent, name
    assert lab.dropped(attacker) == before


@pytest.mark.parametrize("guards", [GuardPolicy(), NO_GUARDS], ids=["on", "off"])
def test_tags_that_hop_are_dropped(lab: Lab, guests: dict[int, Guest], guards: GuardPolicy) -> None:
    trunk = guests[4]
    lab.set_port(trunk, replace(trunk.port, guards=guards))
    datagram = f.udp(trunk.ip, "10.66.0.255", 4000, 4000, b"attack")
    packet = f.ipv4(trunk.ip, "10.66.0.255", 17, datagram)
    plain = f.ethernet("ff:ff:ff:ff:ff:ff", trunk.mac, 0x0800, packet)
    for guest in guests.values():
        guest.drain()
    for tags in ([(0x8100, 0)], [(0x8100, 40)], [(0x8100, 1)], [(0x8100, 10), (0x8100, 40)], [(0x88A8, 10)]):
        before = sum(lab.dropped(trunk).values())
        trunk.send(tagged(plain, *tags))
        assert sum(lab.dropped(trunk).values()) == before + 1, tags
    mark = lab.honest(trunk, guests[2], b"the end;")
    trunk.send(tagged(mark, (0x8100, 10)))
    assert guests[2].wait_for(b"the end;") == []
    for number, guest in guests.items():
        assert not any(b"attack" in frame for frame in guest.drain()), number
    lab.set_port(trunk, port(4))


def test_what_was_changed_behind_the_inns_back_is_put_right(lab: Lab, guests: dict[int, Guest]) -> None:
    assert lab.do(lab.runner.repair()).done == []
    run_in(lab.namespace, "bridge", "vlan", "add", "dev", "intp-t3st2", "vid", "20", "pvid", "untagged")
    run_in(lab.namespace, "ip", "link", "set", "dev", SWITCH.bridge, "type", "bridge", "vlan_filtering", "0")
    done = lab.do(lab.runner.repair()).done
    assert done == ["put intp-t3st2 into its VLANs", f"let bridge {SWITCH.bridge} filter VLANs"]
    assert lab.do(lab.runner.repair()).done == []


def test_without_a_trunk_the_bridge_filters_nothing(lab: Lab, guests: dict[int, Guest]) -> None:
    for number in (4, 5, 6):
        lab.set_port(guests[number], replace(guests[number].port, vlan=VlanPolicy("access", 10)))
    assert "vlan_filtering 0" in run_in(lab.namespace, "ip", "-d", "link", "show", "dev", SWITCH.bridge)
    assert lab.deliver(guests[4], guests[2]) == []
    for number in (4, 5, 6):
        lab.set_port(guests[number], port(number))
    assert "vlan_filtering 1" in run_in(lab.namespace, "ip", "-d", "link", "show", "dev", SWITCH.bridge)
