"""DHCP and DHCPv6 as they pass a wire: who asks, and what a server gives.

Pure, and total: whatever the bytes are, there is a message or None.

What came in fragments, through extension headers or behind a VLAN tag that was not taken off is no message:
clients and servers send none so.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

MessageKind = Literal["ask", "give", "refuse"]

FOREVER_S = 0xFFFFFFFF
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17
_MAGIC = b"\x63\x82\x53\x63"
_DISCOVER, _REQUEST, _ACK, _NAK = 1, 3, 5, 6
_TYPE, _LEASE_S, _CLIENT_ID, _PAD, _END = 53, 51, 61, 0, 255
_REPLY6 = 7
_ASKS6 = (1, 3, 5, 6)
"""Solicit, request, renew, rebind."""
_IA_NA, _IA_TA, _IA_ADDRESS, _STATUS = 3, 4, 5, 13
_HEADER = {_IA_NA: 12, _IA_TA: 4}
_MOST_OPTIONS = 256


@dataclass(frozen=True, slots=True)
class Message:
    """``ask`` of a client, ``give`` (with addresses) or ``refuse`` of a server; ``number`` is of their transaction.

    ``mac`` is the client's card. ``client``: the identifier that it asks by, hexadecimal, empty for none. ``given``:
    (address, seconds; None for ever, 0 no longer).
    """

    version: Literal[4, 6]
    kind: MessageKind
    mac: str
    number: int
    client: str = ""
    given: tuple[tuple[str, int | None], ...] = ()
    vlan_id: int | None = None
    """The VLAN whose tag the frame carried."""


def read(frame: bytes) -> Message | None:
    """The message in an Ethernet frame."""
    try:
        (ethertype,) = struct.unpack_from("!H", frame, 12)
        if ethertype == _IPV4:
            return _read4(_payload4(frame[14:]))
        if ethertype == _IPV6:
            return _read6(frame[:12], _payload6(frame[14:]))
    except (struct.error, IndexError):  # cut short
        pass
    return None


# --- IPv4 -------------------------------------------------------------------------------------------------------------


def _payload4(packet: bytes) -> tuple[int, bytes]:
    """The port that a datagram is for, and what is in it."""
    header = 4 * (packet[0] & 15)
    length, _, offset = struct.unpack_from("!HHH", packet, 2)
    if packet[0] >> 4 != 4 or header < 20 or packet[9] != _UDP or offset & 0x3FFF or length < header:
        return 0, b""
    return _datagram(packet[header:length])


def _datagram(datagram: bytes) -> tuple[int, bytes]:
    target, length = struct.unpack_from("!HH", datagram, 2)
    return target, datagram[8:length]


def _read4(payload: tuple[int, bytes]) -> Message | None:
    target, message = payload
    if len(message) < 240 or message[1:3] != b"\x01\x06" or message[236:240] != _MAGIC:
        return None
    options = dict[int, bytes]()
    for code, value in _options4(message[240:]):
        options[code] = options.get(code, b"") + value  # RFC 3396
    kind, number, mac = options.get(_TYPE, b""), int.from_bytes(message[4:8]), message[28:34].hex(":")
    if (target, message[0]) == (67, 1) and kind in (bytes((_DISCOVER,)), bytes((_REQUEST,))):
        return Message(4, "ask", mac, number, client=options.get(_CLIENT_ID, b"").hex())
    if (target, message[0]) != (68, 2):
        return None
    if kind == bytes((_NAK,)):
        return Message(4, "refuse", mac, number)
    seconds = options.get(_LEASE_S, b"")
    if kind != bytes((_ACK,)) or len(seconds) != 4:  # without a time it answers one that has an address (DHCPINFORM)
        return None
    address = ipaddress.IPv4Address(message[16:20])
    return Message(4, "give", mac, number, given=((str(address), _seconds(seconds)),)) if _usable(address) else None


def _options4(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    while place + 1 < len(data) and data[place] != _END:
        if data[place] == _PAD:
            place += 1
            continue
        length = data[place + 1]
        yield data[place], data[place + 2 : place + 2 + length]
        place += 2 + length


# --- IPv6 -------------------------------------------------------------------------------------------------------------


def _payload6(packet: bytes) -> tuple[int, bytes]:
    (length,) = struct.unpack_from("!H", packet, 4)
    if packet[0] >> 4 != 6 or packet[6] != _UDP or len(packet) < 40:
        return 0, b""
    return _datagram(packet[40 : 40 + length])


def _read6(macs: bytes, payload: tuple[int, bytes]) -> Message | None:
    target, message = payload
    if len(message) < 4:
        return None
    number = int.from_bytes(message[1:4])
    if target == 547 and message[0] in _ASKS6:
        return Message(6, "ask", macs[6:12].hex(":"), number)
    if target != 546 or message[0] != _REPLY6:
        return None
    given = tuple(
        one
        for code, association in _options6(message[4:])
        if code in _HEADER and not _fails(association[_HEADER[code] :])
        for one in _given6(association[_HEADER[code] :])
    )
    return Message(6, "give", macs[:6].hex(":"), number, given=given) if given else None


def _given6(options: bytes) -> Iterator[tuple[str, int | None]]:
    for code, value in _options6(options):
        if code == _IA_ADDRESS and len(value) >= 24 and not _fails(value[24:]):
            address = ipaddress.IPv6Address(value[:16])
            if _usable(address):
                yield str(address), _seconds(value[20:24])


def _fails(options: bytes) -> bool:
    return any(code == _STATUS and value[:2] != bytes(2) for code, value in _options6(options))


def _options6(data: bytes) -> Iterator[tuple[int, bytes]]:
    place = 0
    for _ in range(_MOST_OPTIONS):
        if place + 4 > len(data):
            return
        code, length = struct.unpack_from("!HH", data, place)
        yield code, data[place + 4 : place + 4 + length]
        place += 4 + length


# --- both -------------------------------------------------------------------------------------------------------------


def _seconds(data: bytes) -> int | None:
    seconds = int.from_bytes(data)
    return None if seconds == FOREVER_S else seconds


def _usable(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether it can be a card's."""
    if address.is_multicast or address.is_unspecified or address.is_loopback:
        return False
    if isinstance(address, ipaddress.IPv4Address):
        return 0 < int(address) >> 24 < 240
    return address.ipv4_mapped is None
