"""What the kernel tells of logged frames: its messages are read whatever is in them, and frames are put into words."""

from __future__ import annotations

import struct
from collections.abc import Callable

import frames as f
import pytest
from hypothesis import given, strategies as st
from switch_lab import in_namespace, new_namespace

from innkeeper.model.problems import Conflict
from innkeeper.network.frame_words import words_of
from innkeeper.network.nflog import Logged, link_names, open_group, parse, received

IPV4, IPV6 = 0x0800, 0x86DD
ONE, TWO = "10.0.0.1", "10.0.0.2"
ONE6, TWO6 = "2001:db8::1", "2001:db8::2"


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(*attributes: bytes, kind: int = 4 << 8) -> bytes:
    body = b"\7\0\0\0" + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


FULL = message(
    attribute(1, struct.pack("!HBB", IPV4, 0, 0)),
    attribute(4, struct.pack("!I", 3)),
    attribute(6, struct.pack("!I", 7)),
    attribute(0x8000 | 20, attribute(1, struct.pack("!H", 0x8100)) + attribute(2, struct.pack("!H", 0x600A))),
    attribute(10, b"acl out/1 deny\0"),
    attribute(9, b"packet"),
)


def test_a_message_is_read() -> None:
    assert list(parse(FULL + FULL)) == [Logged("acl out/1 deny", 7, 0, IPV4, 10, b"packet")] * 2
    assert list(parse(message(attribute(5, struct.pack("!I", 9))))) == [Logged("", 0, 9, 0, None, b"")]
    assert list(parse(message(kind=3))) == []


@given(st.binary(max_size=200) | st.builds(lambda at, noise: FULL[:at] + noise, st.integers(0, 200), st.binary()))
def test_noise_is_no_trouble(noise: bytes) -> None:
    for logged in parse(noise):
        words_of(logged.ethertype, logged.packet)


@pytest.mark.parametrize(
    ("ethertype", "packet", "words"),
    [
        (IPV4, f.ipv4(ONE, TWO, 6, struct.pack("!HH", 40_000, 443)), f"tcp {ONE}:40000 -> {TWO}:443"),
        (IPV4, f.ipv4(ONE, TWO, 17, f.udp(ONE, TWO, 1, 2, b"")), f"udp {ONE}:1 -> {TWO}:2"),
        (IPV4, f.ipv4(ONE, TWO, 17, b"1234", fragment=185), f"a later fragment of udp {ONE} -> {TWO}"),
        (IPV4, f.ipv4(ONE, TWO, 1, f.icmp(8, 0, b"")), f"icmp type 8 {ONE} -> {TWO}"),
        (IPV4, f.ipv4(ONE, TWO, 47, b""), f"protocol 47 {ONE} -> {TWO}"),
        (IPV4, f.ipv4(ONE, TWO, 6, b"12"), f"tcp {ONE} -> {TWO}"),
        (IPV4, b"\x45" * 19, "ipv4 without a header that can be read"),
        (IPV6, b"", "ipv6 without a header that can be read"),
        (IPV6, f.ipv6(ONE6, TWO6, 6, struct.pack("!HH", 1, 22)), f"tcp [{ONE6}]:1 -> [{TWO6}]:22"),
        (
            IPV6,
            f.ipv6(ONE6, TWO6, 0, f.padding_options(60) + f.padding_options(6) + struct.pack("!HH", 1, 22)),
            f"tcp [{ONE6}]:1 -> [{TWO6}]:22",
        ),
        (
            IPV6,
            f.ipv6(ONE6, TWO6, 44, f.fragment_header(17, 1480, more=False) + b"1234"),
            f"a later fragment of udp {ONE6} -> {TWO6}",
        ),
        (IPV6, f.ipv6(ONE6, TWO6, 58, f.icmpv6(ONE6, TWO6, 128, 0, b"")), f"icmpv6 type 128 {ONE6} -> {TWO6}"),
        (0x0806, b"", "arp"),
        (0x88CC, b"", "ethertype 0x88cc"),
    ],
)
def test_a_frame_in_words(ethertype: int, packet: bytes, words: str) -> None:
    assert words_of(ethertype, packet) == words


@given(st.sampled_from([IPV4, IPV6, 0x0806]), st.binary(max_size=120), st.sampled_from([b"\x45", b"\x4f", b"\x60"]))
def test_no_frame_is_without_words(ethertype: int, packet: bytes, first: bytes) -> None:
    assert words_of(ethertype, first + packet)


@pytest.mark.root
def test_a_group_has_one_listener() -> None:
    with new_namespace("log") as namespace:
        inside: Callable[[], list[dict[int, str]]] = lambda: [link_names([0, 1, 99, 1 << 40])]  # noqa: E731
        assert in_namespace(namespace, inside) == [{1: "lo"}]
        with in_namespace(namespace, lambda: open_group(4711)) as listening:
            assert list(received(listening, 5)) == []
            with pytest.raises(Conflict) as refused:
                in_namespace(namespace, lambda: open_group(4711))
            assert refused.value.code == "network.log_group"
            in_namespace(namespace, lambda: open_group(4712)).close()
        in_namespace(namespace, lambda: open_group(4711)).close()
