"""Raw Ethernet frames, well formed unless told otherwise. Addresses are text, payloads bytes."""

from __future__ import annotations

import ipaddress
import struct

BROADCAST = "ff:ff:ff:ff:ff:ff"
ALL_NODES = "ff02::1"


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def ip(text: str) -> bytes:
    return ipaddress.ip_address(text).packed


def checksum(data: bytes) -> int:
    words = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while words >> 16:
        words = (words & 0xFFFF) + (words >> 16)
    return ~words & 0xFFFF


def ethernet(target: str, source: str, ethertype: int, payload: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    """``tags``: (tag protocol, tag control) from the outside in."""
    tagging = b"".join(struct.pack("!HH", protocol, control) for protocol, control in tags)
    return (mac(target) + mac(source) + tagging + struct.pack("!H", ethertype) + payload).ljust(60, b"\0")


def arp(
    source: str,
    operation: int,
    sender_mac: str,
    sender_ip: str,
    target_mac: str,
    target_ip: str,
    *,
    to: str | None = None,
    hardware: int = 1,
    protocol: int = 0x0800,
    lengths: tuple[int, int] = (6, 4),
    tags: tuple[tuple[int, int], ...] = (),
) -> bytes:
    """RFC 826; ``to`` is the Ethernet target: the ARP target of a reply, everybody of a request, when absent."""
    body = struct.pack("!HHBBH", hardware, protocol, *lengths, operation)
    body += mac(sender_mac) + ip(sender_ip) + mac(target_mac) + ip(target_ip)
    return ethernet(to or (target_mac if operation == 2 else BROADCAST), source, 0x0806, body, tags)


def ipv4(source: str, target: str, protocol: int, payload: bytes, *, fragment: int = 0, header_words: int = 5) -> bytes:
    """An IPv4 packet; ``fragment`` is the flags and offset field."""
    options = b"\x01" * (4 * (max(header_words, 5) - 5))
    length = 20 + len(options) + len(payload)
    head = struct.pack("!BBHHHBBH", 0x40 | header_words, 0, length, 7, fragment, 64, protocol, 0)
    head += ip(source) + ip(target) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def udp(source: str, target: str, source_port: int, target_port: int, payload: bytes) -> bytes:
    head = struct.pack("!HHHH", source_port, target_port, 8 + len(payload), 0)
    return head[:6] + struct.pack("!H", _transport_sum(source, target, 17, head + payload) or 0xFFFF) + payload


def tcp(source: str, target: str, source_port: int, target_port: int, flags: int, payload: bytes = b"") -> bytes:
    """A segment without options."""
    header = struct.pack("!HHIIBBHHH", source_port, target_port, 1, 1, 5 << 4, flags, 65535, 0, 0)
    total = _transport_sum(source, target, 6, header + payload)
    return header[:16] + struct.pack("!H", total) + header[18:] + payload


def icmp(kind: int, code: int, rest: bytes) -> bytes:
    body = struct.pack("!BBH", kind, code, 0) + rest
    return body[:2] + struct.pack("!H", checksum(body)) + body[4:]


def ipv6(source: str, target: str, next_header: int, payload: bytes, *, hop_limit: int = 64) -> bytes:
    return struct.pack("!IHBB", 6 << 28, len(payload), next_header, hop_limit) + ip(source) + ip(target) + payload


def icmpv6(source: str, target: str, kind: int, code: int, rest: bytes) -> bytes:
    body = struct.pack("!BBH", kind, code, 0) + rest
    return body[:2] + struct.pack("!H", _transport_sum(source, target, 58, body)) + body[4:]


def fragment_header(next_header: int, offset: int, *, more: bool) -> bytes:
    """RFC 8200; ``offset`` in bytes."""
    return struct.pack("!BBHI", next_header, 0, offset | int(more), 0xC0FFEE)


def padding_options(next_header: int, octets: int = 8) -> bytes:
    """A hop-by-hop or destination options header of that size that holds padding only."""
    return struct.pack("!BBBB", next_header, octets // 8 - 1, 1, octets - 4) + bytes(octets - 4)


def link_option(kind: int, address: str) -> bytes:
    """Source (1) or target (2) link-layer address, RFC 4861."""
    return struct.pack("!BB", kind, 1) + mac(address)


def dhcp(
    operation: int, kind: int, client: str, *, yours: str = "0.0.0.0", options: bytes = b"", xid: int = 7
) -> bytes:
    """A DHCP message (RFC 2131): ``operation`` 1 from clients, 2 from servers; ``kind`` is option 53."""
    body = struct.pack("!BBBBIHH", operation, 1, 6, 0, xid, 0, 0x8000) + ip("0.0.0.0") + ip(yours)
    body += bytes(8) + mac(client) + bytes(10 + 64 + 128) + bytes.fromhex("63825363")
    return body + bytes([53, 1, kind]) + options + b"\xff"


def multicast_mac(target: str) -> str:
    """The group mac of an IPv6 multicast address."""
    return "33:33:" + ":".join(f"{octet:02x}" for octet in ip(target)[-4:])


def solicited_node(target: str) -> str:
    return str(ipaddress.IPv6Address(bytes.fromhex("ff0200000000000000000001ff") + ip(target)[-3:]))


def _transport_sum(source: str, target: str, protocol: int, body: bytes) -> int:
    if ipaddress.ip_address(source).version == 4:
        pseudo = struct.pack("!BBH", 0, protocol, len(body))
    else:
        pseudo = struct.pack("!II", len(body), protocol)
    return checksum(ip(source) + ip(target) + pseudo + body)
