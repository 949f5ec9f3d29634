"""What is read of DHCP: real messages, and noise, from which nothing is learned and nothing fails."""

from __future__ import annotations

import struct
from typing import Any

import frames as f
import pytest
from hypothesis import given, settings, strategies as st

from innkeeper.network.dhcp_listener import FILTER, taken_off
from innkeeper.network.dhcp_messages import Message, read

GUEST, SERVER = "52:54:00:00:00:01", "02:00:00:00:00:20"
LEASE = bytes([51, 4]) + struct.pack("!I", 3600)


def in_ipv4(message: bytes, ports: tuple[int, int], **changes: Any) -> bytes:
    source, target = "192.0.2.1", "192.0.2.100"
    return f.ethernet(
        GUEST, SERVER, 0x0800, f.ipv4(source, target, 17, f.udp(source, target, *ports, message), **changes)
    )


def in_ipv6(message: bytes, ports: tuple[int, int] = (547, 546), *, to: str = GUEST) -> bytes:
    source, target = "fe80::1", "fe80::2"
    return f.ethernet(to, SERVER, 0x86DD, f.ipv6(source, target, 17, f.udp(source, target, *ports, message)))


def answer(kind: int, options: bytes = LEASE, *, yours: str = "192.0.2.100", **changes: Any) -> bytes:
    return in_ipv4(f.dhcp(2, kind, GUEST, yours=yours, options=options, xid=0xABCD), (67, 68), **changes)


def option6(code: int, value: bytes) -> bytes:
    return struct.pack("!HH", code, len(value)) + value


def reply6(*addresses: tuple[str, int], inner: bytes = b"", behind: bytes = b"", kind: int = 7) -> bytes:
    held = b"".join(
        option6(5, f.ip(address) + struct.pack("!II", valid, valid) + inner) for address, valid in addresses
    )
    association = option6(3, struct.pack("!III", 1, 0, 0) + held + behind)
    return bytes([kind]) + (0x010203).to_bytes(3) + option6(1, b"\0\1client") + association


def test_an_acknowledgement_gives_an_address() -> None:
    assert read(answer(5)) == Message(4, "give", GUEST, 0xABCD, given=(("192.0.2.100", 3600),))
    assert read(answer(5, bytes([51, 4]) + b"\xff" * 4)) == Message(
        4, "give", GUEST, 0xABCD, given=(("192.0.2.100", None),)
    )
    assert read(answer(5, bytes([0, 0, 51, 2, 0, 0, 51, 2, 0, 9]))).given == (("192.0.2.100", 9),)  # type: ignore[union-attr]


def test_a_refusal_and_what_is_asked_are_read() -> None:
    assert read(answer(6, b"")) == Message(4, "refuse", GUEST, 0xABCD)
    for kind in (1, 3):
        asked = in_ipv4(f.dhcp(1, kind, GUEST, options=bytes([61, 3, 1, 2, 3]), xid=9), (68, 67))
        assert read(asked) == Message(4, "ask", GUEST, 9, client="010203")


@pytest.mark.parametrize(
    "frame",
    [
        answer(2),
        answer(5, b""),
        answer(5, yours="0.0.0.0"),
        answer(5, yours="224.0.0.1"),
        answer(5, yours="255.255.255.255"),
        answer(5, yours="127.0.0.1"),
        answer(5, fragment=0x2000),
        answer(5, fragment=1),
        in_ipv4(f.dhcp(1, 5, GUEST, yours="192.0.2.100", options=LEASE), (67, 68)),
        in_ipv4(f.dhcp(2, 5, GUEST, yours="192.0.2.100", options=LEASE), (67, 69)),
        in_ipv4(f.dhcp(1, 8, GUEST), (68, 67)),
        f.ethernet(GUEST, SERVER, 0x0800, answer(5)[14:], tags=((0x8100, 5),)),
        in_ipv6(reply6(("2001:db8::7", 600)), (547, 545)),
        in_ipv6(reply6(("2001:db8::7", 600), kind=2)),
        in_ipv6(reply6()),
        in_ipv6(reply6(("ff02::1", 600))),
        in_ipv6(reply6(("2001:db8::7", 600), behind=option6(13, b"\0\2no"))),
        in_ipv6(reply6(("2001:db8::7", 600), inner=option6(13, b"\0\2no"))),
    ],
)
def test_nothing_else_gives_one(frame: bytes) -> None:
    assert read(frame) is None


def test_a_dhcpv6_reply_gives_addresses() -> None:
    given = (("2001:db8::7", 600), ("2001:db8::8", 0), ("2001:db8::9", None))
    sent = in_ipv6(reply6(("2001:db8::7", 600), ("2001:db8::8", 0), ("2001:db8::9", 0xFFFFFFFF)))
    assert read(sent) == Message(6, "give", GUEST, 0x010203, given=given)
    asked = in_ipv6(reply6(kind=5), (546, 547), to="33:33:00:01:00:02")
    assert read(asked) == Message(6, "ask", SERVER, 0x010203)


GOOD = [answer(5), answer(6, b""), in_ipv6(reply6(("2001:db8::7", 600))), in_ipv4(f.dhcp(1, 3, GUEST), (68, 67))]


@given(
    st.sampled_from(GOOD),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=12),
    st.integers(0, 400),
)
@settings(max_examples=400)
def test_noise_never_fails(frame: bytes, changes: list[tuple[int, int]], length: int) -> None:
    noisy = bytearray(frame)
    for place, octet in changes:
        if place < len(noisy):
            noisy[place] = octet
    for piece in (bytes(noisy), bytes(noisy[:length])):
        message = read(piece)
        assert message is None or kept_by_filter(piece)


@given(st.binary(max_size=700), st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06\x00"]))
@settings(max_examples=400)
def test_bytes_never_fail(noise: bytes, kind: bytes) -> None:
    assert read(noise) is None or kept_by_filter(noise)
    read(bytes(12) + kind + noise)


def kept_by_filter(frame: bytes) -> bool:
    """The listener's filter, run as the kernel runs it: a load beyond the frame drops it."""
    accumulator = behind = place = 0
    while True:
        code, true, false, value = FILTER[place]
        place += 1
        try:
            match code:
                case 0x20:
                    accumulator = 0  # no VLAN tag is kept beside it
                case 0x28:
                    (accumulator,) = struct.unpack_from("!H", frame, value)
                case 0x30:
                    accumulator = frame[value]
                case 0x48:
                    (accumulator,) = struct.unpack_from("!H", frame, behind + value)
                case 0xB1:
                    behind = 4 * (frame[value] & 15)
                case 0x15:
                    place += true if accumulator == value else false
                case 0x45:
                    place += true if accumulator & value else false
                case _:
                    return value > 0
        except (IndexError, struct.error):
            return False


def test_the_filter_keeps_messages_and_nothing_else() -> None:
    assert all(kept_by_filter(frame) for frame in GOOD)
    assert kept_by_filter(answer(5, header_words=7))
    assert all(kept_by_filter(tagged(frame)) for frame in [*GOOD, answer(5, header_words=7)])
    others = [answer(5, fragment=0x2000), answer(5, fragment=1), in_ipv4(b"", (68, 53)), in_ipv6(b"", (1, 53))]
    others += [f.arp(GUEST, 1, GUEST, "192.0.2.1", GUEST, "192.0.2.2"), b"", bytes(60)]
    others.append(f.ethernet(GUEST, SERVER, 0x0800, f.ipv4("192.0.2.1", "192.0.2.2", 6, bytes(20))))
    others += [tagged(frame) for frame in others]
    others += [tagged(tagged(GOOD[0])), tagged(GOOD[0], 0x88A8)]
    assert not any(kept_by_filter(frame) for frame in others)


def tagged(frame: bytes, ethertype: int = 0x8100) -> bytes:
    return frame[:12] + struct.pack("!HH", ethertype, 5 << 13 | 10) + frame[12:]


@given(st.sampled_from(GOOD), st.none() | st.sampled_from([(0x8100, 20), (0x88A8, 30)]))
def test_a_tag_in_the_frame_is_its_vlan_unless_one_is_beside_it(frame: bytes, beside: tuple[int, int] | None) -> None:
    assert taken_off(frame, beside) == (frame, beside)
    inside = tagged(frame)
    expected = (frame, (0x8100, 5 << 13 | 10)) if beside is None else (inside, beside)
    assert taken_off(inside, beside) == expected
    assert read(inside) is None
