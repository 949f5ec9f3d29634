"""Frames of an attacker through the real rules in a real kernel: none arrives, none moves a forwarding entry."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import frames as f
import pytest
from attacks import ATTACKS, HONEST, KERNEL, SWITCH, VRRP, fragments6, port, udp4
from switch_lab import Guest, Lab, new_lab, run_in

from innkeeper.model.guards import GUARD_NAMES
from innkeeper.network.policy import GuardPolicy, PortPolicy

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab(SWITCH) as made:
        for number in (1, 2, 3):
            made.plug(port(number))
        yield made


@pytest.fixture
def attacker(lab: Lab) -> Iterator[Guest]:
    guest = lab.guests["intp-t3st1"]
    before = guest.port
    yield guest
    if guest.port != before:
        lab.set_port(guest, before)


@pytest.fixture
def victim(lab: Lab) -> Guest:
    return lab.guests["intp-t3st2"]


@pytest.fixture
def third(lab: Lab) -> Guest:
    return lab.guests["intp-t3st3"]


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_neither_arrives_nor_moves_an_entry(
    lab: Lab, attacker: Guest, victim: Guest, third: Guest, name: str
) -> None:
    guard, make = ATTACKS[name]
    for sender, receiver in ((victim, third), (third, victim), (attacker, third)):
        assert lab.deliver(sender, receiver) == []
    forwarding, dropped = lab.forwarding(), lab.dropped(attacker)
    third.drain()
    made = make(attacker, victim, third)
    attack = made if isinstance(made, list) else [made]

    assert lab.deliver(attacker, victim, *attack) == []
    assert set(_bare(third.drain())) & set(_bare(attack)) == set()

    assert lab.forwarding() == forwarding
    counted = {kind: packets - dropped[kind] for kind, packets in lab.dropped(attacker).items()}
    assert guard == KERNEL or counted[guard] >= 1, counted
    assert sum(counted.values()) == (0 if guard == KERNEL else len(attack)), counted


def _bare(arrived: list[bytes]) -> list[bytes]:
    """Without padding: where br_netfilter is active, the kernel cuts IP packets to their length."""
    return [frame.rstrip(b"\0") for frame in arrived]


@pytest.mark.parametrize("name", HONEST)
def test_honest_frames_arrive(lab: Lab, attacker: Guest, victim: Guest, third: Guest, name: str) -> None:
    made = HONEST[name](attacker, victim, third)
    sent = made if isinstance(made, list) else [made]
    before = lab.dropped(attacker)
    assert _bare(lab.deliver(attacker, victim, *sent)) == _bare(sent)
    assert lab.dropped(attacker) == before


def test_an_honest_ipv6_packet_in_fragments_arrives(lab: Lab, attacker: Guest, victim: Guest) -> None:
    echo = f.icmpv6(attacker.link_local, victim.link_local, 128, 0, bytes(20) + b"the end of it")
    parts = fragments6(attacker, victim, victim.link_local, echo[:24], echo[24:], 58, 64)
    arrived = lab.deliver(attacker, victim, *parts)
    assert any(b"end of it" in frame for frame in arrived)  # in one piece where br_netfilter is active


NO_GUARDS = GuardPolicy(**dict.fromkeys(GUARD_NAMES, False))
OFF = {
    "arp": ("arp reply for the gateway", "gratuitous arp reply for the gateway"),
    "nd": ("neighbour advert for another", "claim of another's address"),
    "frame": ("unknown ethertype", "priority tag"),
    "ip": ("third's address", "another's ipv6 address"),
    "dhcp": ("dhcp offer", "dhcpv6 advert"),
    "router": ("router advertisement", "icmp redirect", "redirect"),
    "mac": ("third's mac, honest otherwise",),
}


@pytest.mark.parametrize(("guard", "name"), [(guard, name) for guard, names in OFF.items() for name in names])
def test_with_its_guard_off_the_attack_passes(
    lab: Lab, attacker: Guest, victim: Guest, third: Guest, guard: str, name: str
) -> None:
    lab.set_port(attacker, replace(attacker.port, guards=replace(attacker.port.guards, **{guard: False})))
    made = ATTACKS[name][1](attacker, victim, third)
    assert lab.deliver(attacker, victim, *(made if isinstance(made, list) else [made])) != []
    third.send(lab.honest(third, victim, b"here"))
    assert lab.deliver(victim, third) == []  # the bridge knows again where each lives


def test_with_all_guards_off_anything_passes(lab: Lab, attacker: Guest, victim: Guest, third: Guest) -> None:
    lab.set_port(attacker, replace(attacker.port, guards=NO_GUARDS))
    frame = ATTACKS["unknown ethertype"][1](attacker, victim, third)
    assert lab.deliver(attacker, victim, *([frame] if isinstance(frame, bytes) else frame)) == [frame]


def test_without_a_known_address_only_the_other_guards_apply(
    lab: Lab, attacker: Guest, victim: Guest, third: Guest
) -> None:
    lab.set_port(attacker, replace(attacker.port, ipv4=()))
    elsewhere = "10.66.0.200"
    honest = [
        f.arp(attacker.mac, 2, attacker.mac, elsewhere, victim.mac, victim.ip),
        udp4(attacker, victim.mac, elsewhere, victim.ip, (1, 2), b"x"),
    ]
    victim.drain()
    offer = f.dhcp(2, 2, victim.mac)
    attacker.send(udp4(attacker, victim.mac, elsewhere, victim.ip, (67, 68), offer), *honest)
    assert _bare([victim.receive(10) or b"", victim.receive(10) or b""]) == _bare(honest)


def test_a_changed_address_is_let_through_at_once(lab: Lab, attacker: Guest, victim: Guest) -> None:
    lab.set_port(attacker, replace(attacker.port, ipv4=("10.66.0.77", *attacker.port.ipv4)))
    announced = f.arp(attacker.mac, 1, attacker.mac, "10.66.0.77", "00" * 6, "10.66.0.77")
    assert lab.deliver(attacker, victim, announced) == [announced]


def test_a_tap_without_a_policy_is_closed(lab: Lab, attacker: Guest, victim: Guest) -> None:
    lab.do(lab.runner.remove_port("intp-t3st9"))  # nothing there: nothing happens
    guest = lab.plug(PortPolicy("intp-t3st9", "52:54:00:00:00:09", ("10.66.0.19",), guards=GuardPolicy(mac=False)))
    text = "delete element bridge inn_t3st ports { intp-t3st9 }"
    run_in(lab.namespace, "nft", text)
    victim.drain()
    guest.send(lab.honest(guest, victim, b"closed"))
    assert lab.deliver(attacker, victim) == []
    lab.do(lab.runner.repair())
    assert lab.deliver(guest, victim) == []
    lab.unplug(guest)


def test_a_storm_is_cut_to_its_rate_and_nothing_else(lab: Lab, attacker: Guest, victim: Guest) -> None:
    for name, target in (("broadcast_per_s", f.BROADCAST), ("multicast_per_s", "01:00:5e:00:00:fb")):
        lab.set_port(attacker, replace(attacker.port, guards=GuardPolicy(**{name: 1})))
        before = lab.dropped(attacker)["storm"]
        storm = [udp4(attacker, target, attacker.ip, "10.66.0.255", (9, 9), b"%d" % number) for number in range(300)]
        arrived = [frame for frame in lab.deliver(attacker, victim, *storm) if frame[:6] == f.mac(target)]
        assert 15 <= len(arrived) < 100  # the burst, and what a slow machine takes longer for
        assert lab.dropped(attacker)["storm"] - before == 300 - len(arrived)
    lab.set_port(attacker, replace(attacker.port, guards=GuardPolicy(multicast_per_s=1, storm=False)))
    assert len(lab.deliver(attacker, victim, *storm[:60])) == 60


def test_an_allowed_ethertype_passes_and_no_other(lab: Lab, attacker: Guest, victim: Guest) -> None:
    allowed, other = (f.ethernet(victim.mac, attacker.mac, kind, bytes(50)) for kind in (0x88A4, 0x88A5))
    lab.set_port(attacker, replace(attacker.port, guards=GuardPolicy(ethertypes=(0x88A4,))))
    assert lab.deliver(attacker, victim, allowed, other) == [allowed]


def test_a_virtual_router_may_use_what_it_was_given(lab: Lab, attacker: Guest, victim: Guest, third: Guest) -> None:
    shared, mac = "10.66.0.200", VRRP
    frame = f.arp(mac, 1, mac, shared, "00" * 6, shared)
    assert lab.deliver(attacker, victim, frame) == []
    for guest in (attacker, third):  # it moves from one to the other
        before = guest.port
        lab.set_port(guest, replace(before, extra=(shared, "2001:db8::200"), extra_macs=(mac,)))
        assert lab.deliver(guest, victim, frame) == [frame]
        forged = f.arp(mac, 2, mac, victim.ip, victim.mac, victim.ip)
        assert lab.deliver(guest, victim, forged) == []
        lab.set_port(guest, before)
