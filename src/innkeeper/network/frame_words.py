"""What a frame is, in words: protocol, addresses, ports. Reads whatever it is given, and never raises. Pure."""

from __future__ import annotations

import ipaddress
import struct

from innkeeper.model.acl import ICMP, ICMPV6, PROTOCOLS, WITH_PORTS

_IPV4, _IPV6, _ARP = 0x0800, 0x86DD, 0x0806
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_MOST_EXTENSIONS = 8
_NAMES = {number: name for name, number in PROTOCOLS.items()}


def words_of(ethertype: int, packet: bytes) -> str:
    """``tcp 10.77.0.2:40000 -> 192.0.2.7:443``; of what cannot be read, as much as can be."""
    version = packet[0] >> 4 if packet else 0
    if ethertype == _IPV4 and version == 4 and len(packet) >= 20:
        return _ipv4(packet)
    if ethertype == _IPV6 and version == 6 and len(packet) >= 40:
        return _ipv6(packet)
    if ethertype in (_IPV4, _IPV6):
        return f"ipv{4 if ethertype == _IPV4 else 6} without a header that can be read"
    return "arp" if ethertype == _ARP else f"ethertype {ethertype:#06x}"


def _ipv4(packet: bytes) -> str:
    later = struct.unpack_from("!H", packet, 6)[0] & 0x1FFF != 0
    header_bytes = max(20, 4 * (packet[0] & 0xF))
    source, target = (str(ipaddress.IPv4Address(packet[start : start + 4])) for start in (12, 16))
    return _said(packet[9], source, target, packet[header_bytes:], later)


def _ipv6(packet: bytes) -> str:
    source, target = (str(ipaddress.IPv6Address(packet[start : start + 16])) for start in (8, 24))
    protocol, rest = packet[6], packet[40:]
    for _ in range(_MOST_EXTENSIONS):
        if protocol == _FRAGMENT and len(rest) >= 8:
            if struct.unpack_from("!H", rest, 2)[0] & 0xFFF8:
                return _said(rest[0], source, target, rest, later=True)
            protocol, rest = rest[0], rest[8:]
        elif protocol in (_HOP_BY_HOP, _ROUTING, _DESTINATION) and len(rest) >= 8:
            protocol, rest = rest[0], rest[8 * (1 + rest[1]) :]
        else:
            break
    return _said(protocol, source, target, rest, later=False)


def _said(protocol: int, source: str, target: str, body: bytes, later: bool) -> str:
    name = _NAMES.get(protocol, f"protocol {protocol}")
    if later:
        return f"a later fragment of {name} {source} -> {target}"
    if protocol in WITH_PORTS and len(body) >= 4:
        ports = struct.unpack_from("!HH", body)
        shown = (f"[{address}]" if ":" in address else address for address in (source, target))
        first, last = (f"{address}:{port}" for address, port in zip(shown, ports, strict=True))
        return f"{name} {first} -> {last}"
    if protocol in (ICMP, ICMPV6) and body:
        return f"{name} type {body[0]} {source} -> {target}"
    return f"{name} {source} -> {target}"
