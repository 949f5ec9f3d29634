"""The guards as nftables text: the bridge table's fixed rules, and the set elements that stand for one port. Pure.

The rules never change with the ports. A port is a handful of elements in global sets keyed by its tap, so the cost of a
packet and of a change does not grow with the number of ports. Frames are judged in bridge prerouting at priority -300:
before the bridge learns where a mac lives, and before other hooks (br_netfilter is at 0) see the frame.

A ``guard_*`` set holds the taps that the guard is on for. It is looked up last in a rule, when a frame has broken the
guard, and counts on each hit: so the same element that makes a frame drop counts it, for that guard and port.
"""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from innkeeper.network.passed_leases import SCHEMA as PASSED_SCHEMA, is_learning
from innkeeper.network.policy import APART, PortPolicy, SwitchPolicy
from innkeeper.network.uplink_policy import trusted_ports, uplink_macs, uplink_schema


class Element(NamedTuple):
    """One element of a set or, with ``value``, of a map: table family, container, and the fields of key and value."""

    family: str
    container: str
    key: tuple[str, ...]
    value: tuple[str, ...] = ()


COUNTED: dict[str, tuple[str, ...]] = {
    "mac": ("guard_mac",),
    "ip": ("guard_ip4", "guard_ip6"),
    "arp": ("guard_arp",),
    "nd": ("guard_nd",),
    "dhcp": ("guard_dhcp",),
    "router": ("guard_router",),
    "frame": ("guard_frame",),
    "storm": ("guard_storm",),
    "acl": ("acl_denied_out", "acl_denied_in"),
    "flows": ("acl_flows_out", "acl_flows_in"),
    "vlan": ("guard_vlan",),
}
"""Guard -> the sets whose elements count what it dropped. ``frame``: a form of frame that no guard can read;
``flows``: more new flows a second than a port may begin under stateful rules; ``vlan``: a tag that the port does not
carry, or a way around by the host."""

RATES = ("storm_broadcast", "storm_multicast")
"""Sets whose elements have a rate of their own: the element's value, in frames a second."""

TAP_PREFIX = "intp-"
BRIDGE_PREFIX = "inbr-"


def bridge_schema(inn_id: str) -> str:
    """The body of table ``bridge inn_<id>``: counters, sets and rules, without elements."""
    return (
        "".join(f"  counter drop_{guard} {{ }}\n" for guard in (*COUNTED, "closed", "private"))
        + "".join(f"  set {name} {{ type ifname; counter; }}\n" for names in COUNTED.values() for name in names)
        + _SETS
        + _RULES.replace("TAPS", f'"{TAP_PREFIX}{inn_id}*"')
        + uplink_schema()
        + PASSED_SCHEMA
    )


def bridge_elements(switch: SwitchPolicy) -> frozenset[Element]:
    """The elements that stand for ``switch`` itself in the bridge table."""
    return frozenset(Element("bridge", name, key) for name, key in trusted_ports(switch.outside))


def port_elements(switch: SwitchPolicy, port: PortPolicy) -> frozenset[Element]:
    """The elements that stand for ``port`` in the bridge table."""
    tap, guards = port.tap, port.guards
    ipv4, ipv6 = port.known4, port.known6
    on = {
        "private_ports": switch.kind in APART,
        "guard_frame": guards.frame,
        "guard_mac": guards.mac,
        "guard_ip4": guards.ip and bool(port.ipv4),
        "guard_ip6": guards.ip,
        "guard_arp": guards.arp and bool(port.ipv4),
        "guard_nd": guards.nd,
        "guard_dhcp": guards.dhcp,
        "guard_router": guards.router,
        "guard_storm": guards.storm,
        "learning_ports": is_learning(switch, port),
    }
    keys: list[tuple[str, tuple[str, ...]]] = [(name, (tap,)) for name, wanted in on.items() if wanted]
    keys += [("macs", (tap, mac)) for mac in port.macs]
    keys += [("nd_link", (tap, hexadecimal(int(mac.replace(":", ""), 16)))) for mac in port.macs]
    keys += [("ethertypes", (tap, hexadecimal(ethertype))) for ethertype in guards.ethertypes]
    keys += [("addresses4", (tap, address)) for address in ipv4]
    keys += [("arp4", (tap, mac, address)) for mac in port.macs for address in ipv4]
    keys += [("addresses6", (tap, address)) for address in ipv6]
    keys += [("nd_target", (tap, hexadecimal(int(ipaddress.IPv6Address(address))))) for address in ipv6]
    keys += uplink_macs(switch.outside, port.mac)
    rates = (guards.broadcast_per_s, guards.multicast_per_s) if guards.storm else ()
    limits = {Element("bridge", name, (tap,), (str(rate),)) for name, rate in zip(RATES, rates, strict=False)}
    return frozenset(limits | {Element("bridge", name, key) for name, key in keys})


def hexadecimal(number: int) -> str:
    """A raw payload field as elements write it."""
    return f"{number:#x}"


_SETS = """\
  map ports { type ifname : verdict; }
  map short_way { typeof iifname . @ll,48,64 . @nh,96,32 : verdict; }
  set private_ports { type ifname; }
  set macs { type ifname . ether_addr; }
  set arp4 { type ifname . ether_addr . ipv4_addr; }
  set addresses4 { type ifname . ipv4_addr; }
  set addresses6 { type ifname . ipv6_addr; }
  set nd_target { typeof iifname . @th,64,128; }
  set nd_link { typeof iifname . @th,208,48; }
  set ethertypes { type ifname . ether_type; }
  set storm_broadcast { type ifname; limit rate over 1000/second; }
  set storm_multicast { type ifname; limit rate over 10000/second; }
"""

# A missing field makes a rule not match: "meta l4proto 0-255" and "th dport 0-65535" ask whether headers can be read.
# nft 1.0.6 has no field for the ND target and options: they are raw bits behind the ICMPv6 header, hence fixed lengths.
# "meta protocol" finds what is behind a VLAN tag too, where "arp", "icmp", "icmpv6" and "frag" alone do not.
# Link-layer fields cost most: the short way reads one, source and type at once, and the kernel knows whom it is for.
_RULES = """\
  chain prerouting {
    type filter hook prerouting priority -300; policy accept;
    meta pkttype other iifname . @ll,48,64 . @nh,96,32 vmap @short_way goto own_ipv4 \
comment "the short way: unicast ipv4 from a port's own mac and address"
    meta pkttype host iifname . @ll,48,64 . @nh,96,32 vmap @short_way goto own_ipv4 \
comment "the same to the host; what is for all or for a group is neither"
    iifname vmap @ports goto from_port comment "frames of a known port"
    iifname TAPS counter name drop_closed drop comment "a tap without a policy is closed"
  }
  chain input {
    type filter hook input priority -300; policy accept;
    ether daddr & ff:ff:ff:ff:ff:f0 == 01:80:c2:00:00:00 iifname @guard_frame counter name drop_frame drop \
comment "the bridge would learn from link-local groups without prerouting"
    iifname @private_ports counter name drop_private drop comment "the host is no part of a private switch"
  }
  chain from_port {
    iifname . ether saddr != @macs iifname @guard_mac counter name drop_mac drop comment "mac is not the port's"
    ether daddr & 01:00:00:00:00:00 == 01:00:00:00:00:00 jump storm comment "to all or to a group"
    iifname . vlan id @vlan_tagged \
meta protocol vmap { arp : goto from_arp, ip : goto from_ipv4, ip6 : goto from_ipv6 } comment "behind a trunk's tag"
    ether type vmap { arp : goto from_arp, ip : goto from_ipv4, ip6 : goto from_ipv6 } comment "what passes a port"
    iifname . ether type @ethertypes return comment "an ethertype that is allowed"
    iifname @guard_frame counter name drop_frame drop comment "tagged, 802.3 or unknown ethertype"
  }
  chain storm {
    ether daddr ff:ff:ff:ff:ff:ff iifname @storm_broadcast iifname @guard_storm counter name drop_storm drop \
comment "too many broadcasts"
    ether daddr != ff:ff:ff:ff:ff:ff iifname @storm_multicast iifname @guard_storm counter name drop_storm drop \
comment "too many multicasts"
  }
  chain from_arp {
    meta protocol arp arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 arp operation { request, reply } \
iifname . arp saddr ether . arp saddr ip @arp4 return comment "its own mac and address"
    meta protocol arp arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 arp operation request arp saddr ip 0.0.0.0 \
iifname . arp saddr ether . arp daddr ip @arp4 return comment "a probe for its own address"
    meta protocol arp arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 arp operation { request, reply } \
iifname . arp saddr ether @macs iifname . @nh,112,32 @passed_leases return comment "an address that it was just given"
    meta protocol arp arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 arp operation request arp saddr ip 0.0.0.0 \
iifname . arp saddr ether @macs iifname . @nh,192,32 @passed_leases return comment "a probe for one"
    iifname @guard_arp counter name drop_arp drop comment "an arp binding that is not the port's"
  }
  chain own_ipv4 {
    @nh,72,8 17 @th,16,16 & 0xfff8 != 64 accept comment "no guard looks into udp but at ports near dhcp's"
    meta l4proto tcp accept comment "nor into tcp"
    goto from_ipv4 comment "what else there is is looked at"
  }
  chain from_ipv4 {
    meta l4proto 0-255 goto ipv4_read comment "ipv4 header can be read"
    iifname @guard_frame counter name drop_frame drop comment "malformed ipv4"
  }
  chain ipv4_read {
    udp sport 68 udp dport 67 ip frag-off & 0x3fff != 0 iifname @guard_mac counter name drop_mac drop \
comment "asks dhcp in fragments, whose first may end before the name"
    udp sport 68 udp dport 67 iifname . @th,288,48 != @nd_link iifname @guard_mac counter name drop_mac drop \
comment "asks dhcp in another's name"
    ip saddr 0.0.0.0 udp sport 68 udp dport 67 return comment "dhcp from a client without an address"
    iifname . ip saddr != @addresses4 jump ipv4_source comment "source is none of the port's"
    udp dport 68 iifname @guard_dhcp counter name drop_dhcp drop comment "to dhcp clients"
    meta protocol ip icmp type { redirect, router-advertisement } iifname @guard_router counter name drop_router drop \
comment "icmp redirect or router advertisement"
  }
  chain ipv4_source {
    iifname . @nh,96,32 @passed_leases return comment "but it was just given to it"
    iifname @guard_ip4 counter name drop_ip drop comment "source is not the port's"
  }
  chain from_ipv6 {
    meta l4proto 0-255 goto ipv6_read comment "ipv6 header chain can be read"
    iifname @guard_frame counter name drop_frame drop comment "malformed ipv6"
  }
  chain ipv6_read {
    meta protocol ip6 exthdr frag exists jump ipv6_fragment comment "fragments"
    iifname . ip6 saddr != @addresses6 jump ipv6_source comment "ipv6 source is not the port's"
    udp dport 546 iifname @guard_dhcp counter name drop_dhcp drop comment "to dhcpv6 clients"
    meta protocol ip6 icmpv6 type { 134, 137, 138, 139, 140 } iifname @guard_router counter name drop_router drop \
comment "router advertisement, redirect, renumbering, node information"
    meta protocol ip6 icmpv6 type { 133, 135, 136 } goto nd comment "neighbour discovery"
  }
  chain ipv6_fragment {
    ip6 hoplimit 255 iifname @guard_frame counter name drop_frame drop comment "fragmented neighbour discovery"
    ip6 daddr ff02::/16 iifname @guard_frame counter name drop_frame drop comment "fragments to link-local groups"
    meta protocol ip6 frag frag-off 0 th dport 0-65535 return comment "first fragment with its headers"
    meta protocol ip6 frag frag-off 0 iifname @guard_frame counter name drop_frame drop \
comment "first fragment that hides its headers"
  }
  chain ipv6_source {
    ip6 saddr :: icmpv6 type { 131, 132, 133, 135, 143 } return comment "before an address is known to be free"
    iifname @guard_ip6 counter name drop_ip drop comment "ipv6 source is not the port's"
  }
  chain nd {
    ip6 nexthdr 58 ip6 hoplimit 255 icmpv6 type 133 ip6 length 8 return comment "solicits routers"
    ip6 nexthdr 58 ip6 hoplimit 255 icmpv6 type 133 ip6 length 16 @th,64,16 0x0101 \
iifname . @th,80,48 @nd_link return comment "solicits routers, with its mac"
    ip6 nexthdr 58 ip6 hoplimit 255 icmpv6 type 135 goto nd_solicit comment "solicits a neighbour"
    ip6 nexthdr 58 ip6 hoplimit 255 icmpv6 type 136 iifname . @th,64,128 @nd_target goto nd_advert \
comment "advertises its own address"
    goto not_its_own comment "what cannot be told to be its own"
  }
  chain nd_solicit {
    ip6 saddr :: ip6 length 24 iifname . @th,64,128 @nd_target return comment "is its own address free"
    ip6 saddr :: ip6 length 32 @th,192,16 0x0e01 iifname . @th,64,128 @nd_target return comment "the same, with a nonce"
    ip6 saddr :: goto not_its_own comment "claims another's address"
    ip6 length 24 return comment "solicits without its mac"
    ip6 length 32 @th,192,16 0x0101 iifname . @th,208,48 @nd_link return comment "solicits with its mac"
    ip6 length 32 @th,192,16 0x0e01 return comment "solicits with a nonce"
    goto not_its_own comment "solicits in another form, or with another's mac"
  }
  chain nd_advert {
    ip6 length 24 return comment "advertises without its mac"
    ip6 length 32 @th,192,16 0x0201 iifname . @th,208,48 @nd_link return comment "advertises with its mac"
    goto not_its_own comment "advertises in another form, or another's mac"
  }
  chain not_its_own {
    iifname @guard_nd counter name drop_nd drop comment "a neighbour binding that is not the port's"
  }
"""
