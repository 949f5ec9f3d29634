"""Mutated frames through the real rules; what arrives is read by an independent parser and must be the attacker's own.

A seed reproduces a run: ``FRAMES_SEED=n pytest tests/network/test_guards_fuzz.py``.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator

import frames as f
import pytest
from attacks import ATTACKS, HONEST, SWITCH, port
from switch_lab import Guest, Lab, new_lab

pytestmark = pytest.mark.root

ROUNDS = 120
FRAMES_A_ROUND = 100
EXTENSIONS = {0, 43, 44, 60}
"""What a receiver reads past. Not an authentication header (51): without a key that it shares with the sender it ends
there, and so does nft."""
FORBIDDEN_ICMPV6 = {134, 137, 138, 139, 140}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with new_lab(SWITCH) as made:
        for number in (1, 2, 3):
            made.plug(port(number))
        yield made


def _seeds(guests: list[Guest]) -> list[bytes]:
    made = [make(*guests) for _, make in ATTACKS.values()] + [make(*guests) for make in HONEST.values()]
    return [frame for one in made for frame in (one if isinstance(one, list) else [one])]


def _mutate(chance: random.Random, frame: bytes) -> bytes:
    """A few bytes changed, a tag or an extension header put in, a piece cut off."""
    changed = bytearray(frame)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        place = chance.randrange(6, min(len(changed), 100))
        changed[place] = chance.choice((0, 1, 4, 6, 17, 44, 58, 60, 67, 68, 134, 136, 255, chance.randrange(256)))
    kind = chance.random()
    if kind < 0.1:
        changed[12:12] = struct.pack("!HH", chance.choice((0x8100, 0x88A8)), chance.choice((0, 1, 0x2000)))
    elif kind < 0.3 and changed[12:14] == b"\x86\xdd" and len(changed) >= 54:
        following, changed[20] = changed[20], chance.choice((0, 60, 43, 44))
        if changed[20] == 44:
            header = f.fragment_header(following, chance.choice((0, 0, 8, 64)), more=chance.random() < 0.5)
        else:
            header = f.padding_options(following, chance.choice((8, 16)))
        changed[54:54] = header
        changed[18:20] = struct.pack("!H", min(0xFFFF, struct.unpack("!H", changed[18:20])[0] + len(header)))
    elif kind < 0.4:
        changed = changed[: chance.randrange(20, len(changed) + 1)]
    return bytes(changed)


def _wrong(frame: bytes, sender: Guest) -> str | None:
    """Why an arrived frame should not have; None when it is the sender's own and harmless."""
    own_mac = f.mac(sender.mac)
    if frame[6:12] != own_mac:
        return "source mac"
    kind, body = frame[12:14], frame[14:]
    if kind == b"\x08\x06":
        return _wrong_arp(body, own_mac, f.ip(sender.ip))
    if kind == b"\x08\x00":
        return _wrong_ipv4(body, own_mac, f.ip(sender.ip))
    if kind == b"\x86\xdd":
        return _wrong_ipv6(body, own_mac, f.ip(sender.link_local))
    return "ethertype"


def _wrong_arp(body: bytes, own_mac: bytes, own_ip: bytes) -> str | None:
    if body[:6] != bytes.fromhex("000108000604") or body[6:8] not in (b"\0\1", b"\0\2"):
        return "arp form"
    if body[8:14] != own_mac:
        return "arp mac"
    probe = body[7] == 1 and body[14:18] == bytes(4) and body[24:28] == own_ip
    return None if probe or body[14:18] == own_ip else "arp address"


def _wrong_ipv4(body: bytes, own_mac: bytes, own_ip: bytes) -> str | None:
    words, protocol, source = body[0] & 15, body[9], body[12:16]
    payload = body[4 * words :]
    first = struct.unpack("!H", body[6:8])[0] & 0x1FFF == 0
    ports = struct.unpack("!HH", payload[:4]) if first and protocol == 17 and len(payload) >= 4 else None
    if source != own_ip and not (source == bytes(4) and ports == (68, 67)):
        return "ipv4 source"
    if ports and ports[1] == 68:
        return "dhcp"
    if ports == (68, 67) and struct.unpack("!H", body[6:8])[0] & 0x3FFF:
        return "dhcp in fragments"
    if ports == (68, 67) and len(payload) >= 42 and payload[36:42] != own_mac:
        return "dhcp in another's name"
    return "icmp router" if first and protocol == 1 and payload[:1] and payload[0] in (5, 9) else None


def _wrong_ipv6(body: bytes, own_mac: bytes, own_ip: bytes) -> str | None:
    length, kind, hops, source = struct.unpack("!H", body[4:6])[0], body[6], body[7], body[8:24]
    payload, fragment, later = body[40 : 40 + length], False, False
    while kind in EXTENSIONS and len(payload) >= 8:
        size = 8 if kind == 44 else 8 + 8 * payload[1]
        if kind == 44:
            fragment, later = True, later or bool(struct.unpack("!H", payload[2:4])[0] & 0xFFF8)
        kind, payload = payload[0], payload[size:]
    if fragment and (hops == 255 or body[24:26] == b"\xff\x02"):
        return "fragmented discovery"
    if later:
        return None if source == own_ip else "ipv6 source"
    if source == bytes(16) and (kind in EXTENSIONS or not payload):
        return None  # what nft read lies behind the packet's end: no receiver reads it, so it says nothing
    icmp = payload[0] if kind == 58 and payload else None
    if source != own_ip and not (source == bytes(16) and icmp in (131, 132, 133, 135, 143)):
        return "ipv6 source"
    if kind == 17 and len(payload) >= 4 and struct.unpack("!H", payload[2:4])[0] == 546:
        return "dhcpv6"
    if icmp in FORBIDDEN_ICMPV6:
        return f"icmpv6 {icmp}"
    if icmp in (133, 135, 136):
        return _wrong_discovery(icmp, payload, source, own_mac, own_ip)
    return None


def _wrong_discovery(icmp: int, payload: bytes, source: bytes, own_mac: bytes, own_ip: bytes) -> str | None:
    options = payload[8:] if icmp == 133 else payload[24:]
    if icmp != 133 and (icmp == 136 or source == bytes(16)) and payload[8:24] != own_ip:
        return "neighbour target"
    while len(options) >= 8 and options[1]:
        if options[0] in (1, 2) and options[2:8] != own_mac:
            return "neighbour mac"
        options = options[8 * options[1] :]
    return None


def test_mutated_frames_never_speak_for_another(lab: Lab) -> None:
    seed = int(os.environ.get("FRAMES_SEED") or random.SystemRandom().randrange(2**32))
    chance = random.Random(seed)
    guests = attacker, victim, third = [lab.guests[f"intp-t3st{number}"] for number in (1, 2, 3)]
    seeds = _seeds(guests)
    for sender, receiver in ((victim, third), (third, victim), (attacker, third)):
        lab.deliver(sender, receiver)
    forwarding, sent, arrived = lab.forwarding(), 0, 0
    for _ in range(ROUNDS):
        mutants = [_mutate(chance, chance.choice(seeds)) for _ in range(FRAMES_A_ROUND)]
        received = [*lab.deliver(attacker, victim, *mutants), *third.drain()]
        host = f.mac(SWITCH.mac)
        for frame in received:
            if frame[6:12] != host:
                assert _wrong(frame, attacker) is None, f"seed {seed}: {_wrong(frame, attacker)}: {frame.hex()}"
        sent, arrived = sent + len(mutants), arrived + len(received)
    assert lab.forwarding() == forwarding, f"seed {seed}"
    dropped = sum(lab.dropped(attacker).values())
    print(f"seed {seed}: {sent} frames sent, {arrived} arrived, {dropped} dropped by guards")
    assert arrived > sent // 50, "too few frames passed for the test to mean anything"
    assert dropped > sent // 4, "too few frames met a guard"


def test_the_parser_knows_an_attack_when_it_sees_one(lab: Lab) -> None:
    guests = [lab.guests[f"intp-t3st{number}"] for number in (1, 2, 3)]
    unseen = []
    for name, (_, make) in ATTACKS.items():
        made = make(*guests)
        frames = made if isinstance(made, list) else [made]
        if all(len(frame) >= 60 and _wrong(frame, guests[0]) is None for frame in frames):
            unseen.append(name)
    # What only a strict reading of the form refuses: nothing in these frames speaks for another.
    assert set(unseen) <= {
        "impossible ipv4 header length",
        "ipv6 header chain that ends nowhere",
        "dhcpv6 advert, its header in the second fragment",
        "neighbour advert behind options",
        "neighbour advert with a second option",
        "arp cut short",
    }, unseen
