"""Attacks on a switch, and honest traffic, as raw frames: name -> how a guest makes them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import frames as f
from switch_lab import Guest

from innkeeper.network.policy import PortPolicy, SwitchPolicy

SWITCH = SwitchPolicy("lan", "inbr-t3st1", kind="nat", subnet="10.66.0.0/24")
GATEWAY = "10.66.0.1"
GATEWAY_MAC = SWITCH.mac
STRANGER_MAC = "52:54:aa:aa:aa:aa"
ROUTERS = "ff02::2"


def port(number: int) -> PortPolicy:
    return PortPolicy(
        f"intp-t3st{number}", f"52:54:00:00:00:0{number}", (f"10.66.0.1{number}",), hostname=f"guest{number}"
    )


def in_ipv6(a: Guest, v: Guest, source: str, payload: bytes, *, to: str | None = None, next_header: int = 58) -> bytes:
    target = to or v.link_local
    packet = f.ipv6(source, target, next_header, payload, hop_limit=255)
    return f.ethernet(v.mac if to is None else f.multicast_mac(to), a.mac, 0x86DD, packet)


def nd(
    a: Guest, v: Guest, kind: int, rest: bytes, *, source: str | None = None, to: str | None = None, code: int = 0
) -> bytes:
    source = source or a.link_local
    return in_ipv6(a, v, source, f.icmpv6(source, to or v.link_local, kind, code, rest), to=to)


def advert(a: Guest, v: Guest, target: str, link: str | None, *, flags: int = 0x60000000, **more: str) -> bytes:
    rest = struct.pack("!I", flags) + f.ip(target) + (f.link_option(2, link) if link else b"")
    return nd(a, v, 136, rest, **more)


def router_advert(source: str, target: str) -> bytes:
    prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xC0, 86400, 14400, 0) + f.ip("2001:db8:bad::")
    return f.icmpv6(source, target, 134, 0, struct.pack("!BBHII", 64, 0, 1800, 0, 0) + prefix)


def own_datagram(a: Guest, v: Guest) -> bytes:
    """What takes the short way through the guards, unless a tag is before it."""
    return f.ipv4(a.ip, v.ip, 17, f.udp(a.ip, v.ip, 40_000, 9, b"its own"))


def udp4(a: Guest, to: str, source: str, target: str, ports: tuple[int, int], payload: bytes) -> bytes:
    return f.ethernet(to, a.mac, 0x0800, f.ipv4(source, target, 17, f.udp(source, target, *ports, payload)))


def fragments6(
    a: Guest, v: Guest, target: str, first: bytes, second: bytes, next_header: int, hops: int
) -> list[bytes]:
    to = f.multicast_mac(target) if target.startswith("ff") else v.mac
    return [
        f.ethernet(to, a.mac, 0x86DD, f.ipv6(a.link_local, target, 44, header + part, hop_limit=hops))
        for header, part in (
            (f.fragment_header(next_header, 0, more=True), first),
            (f.fragment_header(next_header, len(first), more=False), second),
        )
    ]


VRRP = "00:00:5e:00:01:07"
KERNEL = "kernel"
"""Dropped or kept by the bridge itself, before any rule."""

Attack = Callable[[Guest, Guest, Guest], bytes | list[bytes]]

OFFER_OPTIONS = bytes([54, 4]) + f.ip("10.66.0.11") + bytes([3, 4]) + f.ip("10.66.0.11")
DISCOVER_FOR_ANOTHER = f.udp("0.0.0.0", "255.255.255.255", 68, 67, f.dhcp(1, 1, STRANGER_MAC))
DHCPV6_ADVERT = bytes([2, 1, 2, 3]) + bytes([0, 2, 0, 4]) + b"evil"

ATTACKS: dict[str, tuple[str, Attack]] = {
    # --- arp ---
    "arp reply for the gateway": ("arp", lambda a, v, t: f.arp(a.mac, 2, a.mac, GATEWAY, v.mac, v.ip)),
    "arp reply for another guest": ("arp", lambda a, v, t: f.arp(a.mac, 2, a.mac, t.ip, v.mac, v.ip)),
    "arp reply with a mac of nobody": ("arp", lambda a, v, t: f.arp(a.mac, 2, STRANGER_MAC, GATEWAY, v.mac, v.ip)),
    "arp reply to everybody": ("arp", lambda a, v, t: f.arp(a.mac, 2, a.mac, GATEWAY, v.mac, v.ip, to=f.BROADCAST)),
    "arp request in the gateway's name": ("arp", lambda a, v, t: f.arp(a.mac, 1, a.mac, GATEWAY, "00" * 6, v.ip)),
    "gratuitous arp request for the gateway": (
        "arp",
        lambda a, v, t: f.arp(a.mac, 1, a.mac, GATEWAY, "00" * 6, GATEWAY),
    ),
    "gratuitous arp reply for the gateway": (
        "arp",
        lambda a, v, t: f.arp(a.mac, 2, a.mac, GATEWAY, f.BROADCAST, GATEWAY),
    ),
    "own address at another's mac": ("arp", lambda a, v, t: f.arp(a.mac, 2, t.mac, a.ip, v.mac, v.ip)),
    "probe for another's address": ("arp", lambda a, v, t: f.arp(a.mac, 1, a.mac, "0.0.0.0", "00" * 6, v.ip)),
    "probe answered from nowhere": ("arp", lambda a, v, t: f.arp(a.mac, 2, a.mac, "0.0.0.0", v.mac, v.ip)),
    "arp operation unknown": ("arp", lambda a, v, t: f.arp(a.mac, 9, a.mac, a.ip, v.mac, v.ip, to=v.mac)),
    "arp of other hardware": ("arp", lambda a, v, t: f.arp(a.mac, 2, a.mac, a.ip, v.mac, v.ip, hardware=6)),
    "arp of another protocol": ("arp", lambda a, v, t: f.arp(a.mac, 2, a.mac, a.ip, v.mac, v.ip, protocol=0x86DD)),
    "arp of other lengths": ("arp", lambda a, v, t: f.arp(a.mac, 2, a.mac, a.ip, v.mac, v.ip, lengths=(6, 16))),
    "arp cut short": ("arp", lambda a, v, t: f.arp(a.mac, 2, a.mac, GATEWAY, v.mac, v.ip)[:30]),
    # --- mac ---
    "gateway's mac in the frame": ("mac", lambda a, v, t: f.arp(GATEWAY_MAC, 2, a.mac, a.ip, v.mac, v.ip)),
    "victim's mac in the frame": ("mac", lambda a, v, t: f.arp(v.mac, 1, a.mac, a.ip, "00" * 6, t.ip)),
    "third's mac, honest otherwise": (
        "mac",
        lambda a, v, t: f.ethernet(v.mac, t.mac, 0x0800, f.ipv4(a.ip, v.ip, 17, f.udp(a.ip, v.ip, 1, 2, b"x"))),
    ),
    "macs that flap": (
        "mac",
        lambda a, v, t: [f.arp(mac, 2, mac, a.ip, v.mac, v.ip) for mac in (v.mac, t.mac) * 4],
    ),
    "a virtual router's mac": ("mac", lambda a, v, t: f.arp(VRRP, 2, VRRP, a.ip, v.mac, v.ip)),
    "a group as the source": (
        KERNEL,
        lambda a, v, t: f.ethernet(
            v.mac, "01:00:5e:00:00:01", 0x0800, f.ipv4(a.ip, v.ip, 17, f.udp(a.ip, v.ip, 1, 2, b"x"))
        ),
    ),
    # --- ipv4 ---
    "gateway's address": ("ip", lambda a, v, t: udp4(a, v.mac, GATEWAY, v.ip, (53, 4000), b"forged answer")),
    "third's address": ("ip", lambda a, v, t: udp4(a, v.mac, t.ip, v.ip, (1, 2), b"forged")),
    "an address of nobody": ("ip", lambda a, v, t: udp4(a, v.mac, "192.0.2.1", v.ip, (1, 2), b"forged")),
    "no address, not dhcp": ("ip", lambda a, v, t: udp4(a, v.mac, "0.0.0.0", v.ip, (1, 2), b"forged")),
    "third's address in a later fragment": (
        "ip",
        lambda a, v, t: f.ethernet(v.mac, a.mac, 0x0800, f.ipv4(t.ip, v.ip, 17, b"rest", fragment=0x0010)),
    ),
    "third's address with options": (
        "ip",
        lambda a, v, t: f.ethernet(v.mac, a.mac, 0x0800, f.ipv4(t.ip, v.ip, 17, bytes(8), header_words=7)),
    ),
    "impossible ipv4 header length": (
        "frame",
        lambda a, v, t: f.ethernet(v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 17, bytes(16), header_words=3)),
    ),
    # --- dhcp ---
    "dhcp discover in another's name": (
        "mac",
        lambda a, v, t: udp4(a, f.BROADCAST, "0.0.0.0", "255.255.255.255", (68, 67), f.dhcp(1, 1, t.mac)),
    ),
    "dhcp release in another's name": (
        "mac",
        lambda a, v, t: udp4(a, v.mac, a.ip, v.ip, (68, 67), f.dhcp(1, 7, t.mac)),
    ),
    "dhcp discover in another's name in fragments": (
        "mac",
        lambda a, v, t: f.ethernet(
            f.BROADCAST,
            a.mac,
            0x0800,
            f.ipv4("0.0.0.0", "255.255.255.255", 17, DISCOVER_FOR_ANOTHER[:32], fragment=0x2000),
        ),
    ),
    "dhcp release in another's name in fragments": (
        "mac",
        lambda a, v, t: f.ethernet(
            v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 17, DISCOVER_FOR_ANOTHER[:8], fragment=0x2000)
        ),
    ),
    "dhcp offer": (
        "dhcp",
        lambda a, v, t: udp4(a, v.mac, a.ip, "255.255.255.255", (67, 68), f.dhcp(2, 2, v.mac, options=OFFER_OPTIONS)),
    ),
    "dhcp ack to everybody": (
        "dhcp",
        lambda a, v, t: udp4(
            a, f.BROADCAST, a.ip, "255.255.255.255", (67, 68), f.dhcp(2, 5, v.mac, options=OFFER_OPTIONS)
        ),
    ),
    "dhcp offer from another port": (
        "dhcp",
        lambda a, v, t: udp4(a, v.mac, a.ip, v.ip, (1067, 68), f.dhcp(2, 2, v.mac, options=OFFER_OPTIONS)),
    ),
    "dhcp offer in the gateway's name": (
        "ip",
        lambda a, v, t: udp4(a, v.mac, GATEWAY, v.ip, (67, 68), f.dhcp(2, 2, v.mac, options=OFFER_OPTIONS)),
    ),
    "dhcp offer in fragments": (
        "dhcp",
        lambda a, v, t: [
            f.ethernet(
                v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 17, bytes([0, 67, 0, 68, 1, 0, 0, 0]), fragment=0x2000)
            ),
        ],
    ),
    "dhcpv6 advert": (
        "dhcp",
        lambda a, v, t: f.ethernet(
            v.mac,
            a.mac,
            0x86DD,
            f.ipv6(a.link_local, v.link_local, 17, f.udp(a.link_local, v.link_local, 547, 546, DHCPV6_ADVERT)),
        ),
    ),
    "dhcpv6 advert behind options": (
        "dhcp",
        lambda a, v, t: f.ethernet(
            v.mac,
            a.mac,
            0x86DD,
            f.ipv6(
                a.link_local,
                v.link_local,
                60,
                f.padding_options(17) + f.udp(a.link_local, v.link_local, 547, 546, DHCPV6_ADVERT),
            ),
        ),
    ),
    "dhcpv6 advert, its header in the second fragment": (
        "frame",
        lambda a, v, t: fragments6(
            a,
            v,
            v.link_local,
            f.padding_options(17),
            f.udp(a.link_local, v.link_local, 547, 546, DHCPV6_ADVERT),
            60,
            64,
        )[:1],
    ),
    # --- routers ---
    "icmp redirect": (
        "router",
        lambda a, v, t: f.ethernet(
            v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 1, f.icmp(5, 1, f.ip(a.ip) + f.ipv4(v.ip, t.ip, 17, bytes(8))))
        ),
    ),
    "icmp router advertisement": (
        "router",
        lambda a, v, t: f.ethernet(
            v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 1, f.icmp(9, 0, struct.pack("!BBH", 1, 2, 1800) + f.ip(a.ip)))
        ),
    ),
    "router advertisement": (
        "router",
        lambda a, v, t: in_ipv6(a, v, a.link_local, router_advert(a.link_local, f.ALL_NODES), to=f.ALL_NODES),
    ),
    "router advertisement to one": (
        "router",
        lambda a, v, t: in_ipv6(a, v, a.link_local, router_advert(a.link_local, v.link_local)),
    ),
    "router advertisement behind hop-by-hop options": (
        "router",
        lambda a, v, t: in_ipv6(
            a,
            v,
            a.link_local,
            f.padding_options(58) + router_advert(a.link_local, f.ALL_NODES),
            to=f.ALL_NODES,
            next_header=0,
        ),
    ),
    "router advertisement behind three headers": (
        "router",
        lambda a, v, t: in_ipv6(
            a,
            v,
            a.link_local,
            f.padding_options(60)
            + f.padding_options(60, 16)
            + f.padding_options(58)
            + router_advert(a.link_local, f.ALL_NODES),
            to=f.ALL_NODES,
            next_header=0,
        ),
    ),
    "router advertisement in fragments": (
        "frame",
        lambda a, v, t: fragments6(
            a,
            v,
            f.ALL_NODES,
            f.padding_options(58, 16),
            router_advert(a.link_local, f.ALL_NODES),
            60,
            255,
        ),
    ),
    "router advertisement in fragments to one": (
        "frame",
        lambda a, v, t: fragments6(
            a, v, v.link_local, f.padding_options(58), router_advert(a.link_local, v.link_local), 60, 255
        )[:1],
    ),
    "redirect": (
        "router",
        lambda a, v, t: nd(a, v, 137, bytes(4) + f.ip(a.link_local) + f.ip(t.link_local)),
    ),
    # --- neighbours ---
    "neighbour advert for another": ("nd", lambda a, v, t: advert(a, v, t.link_local, a.mac)),
    "neighbour advert for another without a mac": ("nd", lambda a, v, t: advert(a, v, t.link_local, None)),
    "neighbour advert for another to all": (
        "nd",
        lambda a, v, t: advert(a, v, t.link_local, a.mac, to=f.ALL_NODES, flags=0x20000000),
    ),
    "own address at another's mac (ipv6)": ("nd", lambda a, v, t: advert(a, v, a.link_local, t.mac)),
    "neighbour advert in another's name": (
        "ip",
        lambda a, v, t: advert(a, v, t.link_local, a.mac, source=t.link_local),
    ),
    "neighbour advert with a second option": (
        "nd",
        lambda a, v, t: nd(
            a,
            v,
            136,
            struct.pack("!I", 0x60000000) + f.ip(a.link_local) + f.link_option(2, a.mac) + f.link_option(2, t.mac),
        ),
    ),
    "neighbour advert behind options": (
        "nd",
        lambda a, v, t: in_ipv6(
            a,
            v,
            a.link_local,
            f.padding_options(58)
            + f.icmpv6(
                a.link_local,
                v.link_local,
                136,
                0,
                struct.pack("!I", 0x60000000) + f.ip(t.link_local) + f.link_option(2, a.mac),
            ),
            next_header=60,
        ),
    ),
    "neighbour solicitation with another's mac": (
        "nd",
        lambda a, v, t: nd(a, v, 135, bytes(4) + f.ip(v.link_local) + f.link_option(1, t.mac)),
    ),
    "neighbour solicitation in another's name": (
        "ip",
        lambda a, v, t: nd(a, v, 135, bytes(4) + f.ip(v.link_local) + f.link_option(1, a.mac), source=t.link_local),
    ),
    "claim of another's address": (
        "nd",
        lambda a, v, t: nd(a, v, 135, bytes(4) + f.ip(v.link_local), source="::", to=f.solicited_node(v.link_local)),
    ),
    "router solicitation with another's mac": (
        "nd",
        lambda a, v, t: nd(a, v, 133, bytes(4) + f.link_option(1, t.mac), to=f.ALL_NODES),
    ),
    "another's ipv6 address": (
        "ip",
        lambda a, v, t: f.ethernet(
            v.mac,
            a.mac,
            0x86DD,
            f.ipv6(t.link_local, v.link_local, 17, f.udp(t.link_local, v.link_local, 1, 2, b"forged")),
        ),
    ),
    "a global ipv6 address of nobody": (
        "ip",
        lambda a, v, t: f.ethernet(
            v.mac,
            a.mac,
            0x86DD,
            f.ipv6("2001:db8::1", v.link_local, 17, f.udp("2001:db8::1", v.link_local, 1, 2, b"x")),
        ),
    ),
    "no ipv6 address, not discovery": (
        "ip",
        lambda a, v, t: f.ethernet(v.mac, a.mac, 0x86DD, f.ipv6("::", v.link_local, 17, bytes(16))),
    ),
    "ipv6 header chain that ends nowhere": (
        "frame",
        lambda a, v, t: f.ethernet(v.mac, a.mac, 0x86DD, f.ipv6(a.link_local, v.link_local, 60, b"")),
    ),
    # --- forms of frames ---
    "priority tag": ("frame", lambda a, v, t: f.arp(a.mac, 2, a.mac, GATEWAY, v.mac, v.ip, tags=((0x8100, 0),))),
    "two priority tags": (
        "frame",
        lambda a, v, t: f.arp(a.mac, 2, a.mac, GATEWAY, v.mac, v.ip, tags=((0x8100, 0), (0x8100, 0))),
    ),
    "vlan tag": ("frame", lambda a, v, t: f.arp(a.mac, 2, a.mac, a.ip, v.mac, v.ip, tags=((0x8100, 7),))),
    "vlan tag before ipv4 that is its own": (
        "frame",
        lambda a, v, t: f.ethernet(v.mac, a.mac, 0x0800, own_datagram(a, v), tags=((0x8100, 7),)),
    ),
    "priority tag before ipv4 that is its own": (
        "frame",
        lambda a, v, t: f.ethernet(v.mac, a.mac, 0x0800, own_datagram(a, v), tags=((0x8100, 0),)),
    ),
    "provider tag": (
        "frame",
        lambda a, v, t: f.arp(a.mac, 2, a.mac, GATEWAY, v.mac, v.ip, tags=((0x88A8, 0), (0x8100, 0))),
    ),
    "priority tag before a router advertisement": (
        "frame",
        lambda a, v, t: f.ethernet(
            f.multicast_mac(f.ALL_NODES),
            a.mac,
            0x86DD,
            f.ipv6(a.link_local, f.ALL_NODES, 58, router_advert(a.link_local, f.ALL_NODES), hop_limit=255),
            ((0x8100, 0),),
        ),
    ),
    "802.3 length with snap": (
        "frame",
        lambda a, v, t: f.ethernet(v.mac, a.mac, 36, bytes.fromhex("aaaa030000000806") + bytes(28)),
    ),
    "802.3 length that lies": ("frame", lambda a, v, t: f.ethernet(v.mac, a.mac, 1400, bytes(46))),
    "unknown ethertype": ("frame", lambda a, v, t: f.ethernet(v.mac, a.mac, 0x88B5, bytes(46))),
    "reverse arp": ("frame", lambda a, v, t: f.ethernet(f.BROADCAST, a.mac, 0x8035, bytes(46))),
    "lldp": (KERNEL, lambda a, v, t: f.ethernet("01:80:c2:00:00:0e", a.mac, 0x88CC, bytes(46))),
    "the victim's mac in lldp": (KERNEL, lambda a, v, t: f.ethernet("01:80:c2:00:00:0e", v.mac, 0x88CC, bytes(46))),
    "spanning tree": (
        "frame",
        lambda a, v, t: f.ethernet("01:80:c2:00:00:00", a.mac, 38, bytes.fromhex("424203") + bytes(35)),
    ),
    "the victim's mac to a link-local group": (
        "frame",
        lambda a, v, t: f.ethernet("01:80:c2:00:00:02", v.mac, 0x8809, bytes(46)),
    ),
}


HONEST: dict[str, Attack] = {
    "arp request": lambda a, v, t: f.arp(a.mac, 1, a.mac, a.ip, "00" * 6, v.ip),
    "arp reply": lambda a, v, t: f.arp(a.mac, 2, a.mac, a.ip, v.mac, v.ip),
    "arp probe of its own address": lambda a, v, t: f.arp(a.mac, 1, a.mac, "0.0.0.0", "00" * 6, a.ip),
    "arp announcement": lambda a, v, t: f.arp(a.mac, 1, a.mac, a.ip, "00" * 6, a.ip),
    "gratuitous arp reply": lambda a, v, t: f.arp(a.mac, 2, a.mac, a.ip, f.BROADCAST, a.ip),
    "dhcp discover": lambda a, v, t: udp4(a, f.BROADCAST, "0.0.0.0", "255.255.255.255", (68, 67), f.dhcp(1, 1, a.mac)),
    "dhcp renewal": lambda a, v, t: udp4(a, v.mac, a.ip, v.ip, (68, 67), f.dhcp(1, 3, a.mac)),
    "ping": lambda a, v, t: f.ethernet(v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 1, f.icmp(8, 0, bytes(8)))),
    "ping in fragments": lambda a, v, t: [
        f.ethernet(v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 1, f.icmp(8, 0, bytes(20)), fragment=0x2000)),
        f.ethernet(v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 1, bytes(8), fragment=3)),
    ],
    "multicast dns": lambda a, v, t: udp4(a, "01:00:5e:00:00:fb", a.ip, "224.0.0.251", (5353, 5353), b"query"),
    "igmp report": lambda a, v, t: f.ethernet(
        "01:00:5e:00:00:16", a.mac, 0x0800, f.ipv4(a.ip, "224.0.0.22", 2, bytes(16))
    ),
    "is its own ipv6 address free": lambda a, v, t: nd(
        a, v, 135, bytes(4) + f.ip(a.link_local), source="::", to=f.solicited_node(a.link_local)
    ),
    "the same with a nonce": lambda a, v, t: nd(
        a,
        v,
        135,
        bytes(4) + f.ip(a.link_local) + bytes([14, 1]) + b"nonce!",
        source="::",
        to=f.solicited_node(a.link_local),
    ),
    "neighbour solicitation": lambda a, v, t: nd(
        a, v, 135, bytes(4) + f.ip(v.link_local) + f.link_option(1, a.mac), to=f.solicited_node(v.link_local)
    ),
    "neighbour solicitation to one": lambda a, v, t: nd(a, v, 135, bytes(4) + f.ip(v.link_local)),
    "neighbour advert": lambda a, v, t: advert(a, v, a.link_local, a.mac),
    "neighbour advert without a mac": lambda a, v, t: advert(a, v, a.link_local, None),
    "neighbour advert to all": lambda a, v, t: advert(a, v, a.link_local, a.mac, to=f.ALL_NODES, flags=0x20000000),
    "router solicitation": lambda a, v, t: nd(a, v, 133, bytes(4) + f.link_option(1, a.mac), to=ROUTERS),
    "router solicitation without an address": lambda a, v, t: nd(a, v, 133, bytes(4), source="::", to=ROUTERS),
    "multicast listener report": lambda a, v, t: in_ipv6(
        a,
        v,
        "::",
        f.padding_options(58) + f.icmpv6("::", "ff02::16", 143, 0, bytes(24)),
        to="ff02::16",
        next_header=0,
    ),
    "ping6": lambda a, v, t: f.ethernet(
        v.mac,
        a.mac,
        0x86DD,
        f.ipv6(a.link_local, v.link_local, 58, f.icmpv6(a.link_local, v.link_local, 128, 0, bytes(8))),
    ),
    "tcp": lambda a, v, t: f.ethernet(v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 6, bytes(20))),
    "another ip protocol": lambda a, v, t: f.ethernet(v.mac, a.mac, 0x0800, f.ipv4(a.ip, v.ip, 132, bytes(12))),
}
