"""Counting what passes between ports and remote prefixes, and the DSCP of what vms send, as nftables text. Pure.

A counter is an object of the bridge table, named ``<tap>/<direction>/<prefix>``. Maps lead (tap, address) to it: of
overlapping prefixes the longest counts, so each address belongs to one counter, and what maps hold are the ranges
that are left of a prefix without the longer ones within it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any

from innkeeper.network.policy import PortPolicy
from innkeeper.network.ruleset import Element
from innkeeper.network.traffic import Direction, Meter

COUNTER = "counter"
"""The container of elements that are counter objects."""
DSCPS = range(64)

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Range = tuple[int, int]


def schema() -> str:
    """The part of the bridge table that counts and marks."""
    chains = "".join(
        f"  chain dscp_{dscp} {{\n"
        f'    ip dscp set {dscp} comment "ipv4 leaves with this dscp"\n'
        f'    ip6 dscp set {dscp} comment "ipv6 leaves with this dscp"\n'
        "  }\n"
        for dscp in DSCPS
    )
    return _SCHEMA + chains


_SCHEMA = """\
  set metered { type ifname; }
  map meter_out4 { type ifname . ipv4_addr : counter; flags interval; }
  map meter_out6 { type ifname . ipv6_addr : counter; flags interval; }
  map meter_in4 { type ifname . ipv4_addr : counter; flags interval; }
  map meter_in6 { type ifname . ipv6_addr : counter; flags interval; }
  map dscp_of { type ifname : verdict; }
  chain meter_from_ports {
    type filter hook prerouting priority -120; policy accept;
    iifname @metered counter name iifname . ip daddr map @meter_out4 comment "ipv4 from metered ports"
    iifname @metered counter name iifname . ip6 daddr map @meter_out6 comment "ipv6 from metered ports"
  }
  chain meter_between_ports {
    type filter hook forward priority -120; policy accept;
    oifname @metered jump meter_to_ports comment "to metered ports"
  }
  chain meter_from_host {
    type filter hook output priority -120; policy accept;
    oifname @metered jump meter_to_ports comment "from the host to metered ports"
  }
  chain meter_to_ports {
    counter name oifname . ip saddr map @meter_in4 comment "ipv4 to metered ports"
    counter name oifname . ip6 saddr map @meter_in6 comment "ipv6 to metered ports"
  }
  chain mark_from_ports {
    type filter hook prerouting priority -100; policy accept;
    iifname vmap @dscp_of comment "dscp of what a port sends"
  }
"""


def traffic_elements(port: PortPolicy) -> frozenset[Element]:
    """The elements of a port's meters and marks."""
    elements: list[Element] = []
    if port.traffic.dscp is not None:
        elements.append(Element("bridge", "dscp_of", (port.tap,), (f"goto dscp_{port.traffic.dscp}",)))
    if port.traffic.meters:
        elements.append(Element("bridge", "metered", (port.tap,)))
    for meter in port.traffic.meters:
        elements.append(Element("bridge", COUNTER, (counter_name(port.tap, meter),)))
    for direction in ("in", "out"):
        for version in (4, 6):
            networks = [
                network
                for meter in port.traffic.meters
                if meter.direction == direction and (network := ipaddress.ip_network(meter.remote)).version == version
            ]
            for (first, last), network in ranges(networks):
                name = counter_name(port.tap, Meter(direction, str(network)))
                key = (port.tap, range_text(first, last, version))
                elements.append(Element("bridge", f"meter_{direction}{version}", key, (name,)))
    return frozenset(elements)


def counter_name(tap: str, meter: Meter) -> str:
    """A name that nftables takes: it has no colons."""
    return f"{tap}/{meter.direction}/{meter.remote.replace(':', '_')}"


def read_name(name: str) -> tuple[str, Direction, str]:
    """(tap, direction, prefix) of a counter's name."""
    tap, direction, remote = name.split("/", 2)
    return tap, "in" if direction == "in" else "out", remote.replace("_", ":")


def ranges(networks: Iterable[Network]) -> list[tuple[Range, Network]]:
    """Ranges without overlap and the network that each belongs to: the longest that holds it. One IP version."""
    found: list[tuple[Range, Network]] = []
    open_: list[tuple[int, Network]] = []
    """(first address not yet given, network), the widest first."""

    def close_up_to(limit: int | None) -> None:
        while open_ and (limit is None or int(open_[-1][1].broadcast_address) < limit):
            start, network = open_.pop()
            end = int(network.broadcast_address)
            if start <= end:
                found.append(((start, end), network))
            if open_:
                open_[-1] = (end + 1, open_[-1][1])

    for network in sorted(set(networks), key=lambda one: (int(one.network_address), one.prefixlen)):
        first = int(network.network_address)
        close_up_to(first)
        if open_:
            start, outer = open_[-1]
            if start < first:
                found.append(((start, first - 1), outer))
        open_.append((first, network))
    close_up_to(None)
    return found


def range_text(first: int, last: int, version: int) -> str:
    """A range as elements write it, whichever way nftables lists it."""
    kind = ipaddress.IPv4Address if version == 4 else ipaddress.IPv6Address
    return f"{kind(first)}-{kind(last)}"


def listed_range(part: Any) -> str:
    """The same of a range in a JSON listing, which may be a single address, a prefix or a range."""
    if isinstance(part, Mapping) and "range" in part:
        low, high = (ipaddress.ip_address(text) for text in part["range"])
    elif isinstance(part, Mapping):
        network = ipaddress.ip_network(f"{part['prefix']['addr']}/{part['prefix']['len']}")
        low, high = network.network_address, network.broadcast_address
    else:
        low = high = ipaddress.ip_address(part)
    return range_text(int(low), int(high), low.version)
