"""Prefixes that packets come from as elements of sets of ranges, which must not overlap. Pure.

A set ``name4`` and a set ``name6`` belong together: their elements are the same fields and then a prefix.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from innkeeper.model.host_firewall import Network, Service, prefix_text
from innkeeper.network.ruleset import Element

EVERYWHERE: tuple[Network, Network] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))

_PORT_BITS = 16
_LAST_PORT = (1 << _PORT_BITS) - 1

Row = tuple[tuple[str, ...], Network | None]
"""The fields before the prefix, and the prefix; None: from everywhere, by both IP versions."""


def source_elements(container: str, rows: Iterable[Row]) -> frozenset[Element]:
    """The elements of ``<container>4`` and ``<container>6`` of table ``inet inn_<id>`` that stand for ``rows``."""
    four: dict[tuple[str, ...], list[ipaddress.IPv4Network]] = defaultdict(list)
    six: dict[tuple[str, ...], list[ipaddress.IPv6Network]] = defaultdict(list)
    for fields, prefix in rows:
        for network in EVERYWHERE if prefix is None else (prefix,):
            if isinstance(network, ipaddress.IPv4Network):
                four[fields].append(network)
            else:
                six[fields].append(network)
    elements = [
        Element("inet", f"{container}4", (*fields, prefix_text(network)))
        for fields, networks in four.items()
        for network in ipaddress.collapse_addresses(networks)
    ]
    elements += [
        Element("inet", f"{container}6", (*fields, prefix_text(network)))
        for fields, networks in six.items()
        for network in ipaddress.collapse_addresses(networks)
    ]
    return frozenset(elements)


def service_rows(services: Iterable[tuple[tuple[str, ...], Service]]) -> list[Row]:
    """The rows of services, each with the fields before its protocol: protocol and ports come after those.

    Ranges of ports that overlap are cut where one begins or ends, as elements must not overlap. Protocols without
    ports have all: what stands in the place of a port there is nothing.
    """
    alike: dict[tuple[str, ...], list[tuple[int, int, Network | None]]] = defaultdict(list)
    for fields, service in services:
        first, last = service.ports or (0, _LAST_PORT)
        prefix = service.source.prefix
        if prefix is None and service.version is not None:
            prefix = EVERYWHERE[service.version == 6]
        alike[*fields, str(service.number)].append((first, last, prefix))
    return [
        ((*fields, str(first) if first == last else f"{first}-{last}"), prefix)
        for fields, ranges in alike.items()
        for first, last, prefixes in _cut(ranges)
        for prefix in prefixes
    ]


def _cut(ranges: list[tuple[int, int, Network | None]]) -> list[tuple[int, int, frozenset[Network | None]]]:
    """The same as ranges that do not overlap, each with all that it is for."""
    edges = sorted({edge for first, last, _ in ranges for edge in (first, last + 1)})
    found: list[tuple[int, int, frozenset[Network | None]]] = []
    for low, high in pairwise(edges):
        inside = frozenset(prefix for first, last, prefix in ranges if first <= low and high - 1 <= last)
        if found and found[-1][1] == low - 1 and found[-1][2] == inside:
            found[-1] = (found[-1][0], high - 1, inside)
        elif inside:
            found.append((low, high - 1, inside))
    return found


def listed_ports(part: Any) -> str | None:
    """A range of ports in a JSON listing as elements write it; None for what is none."""
    if isinstance(part, dict) and "range" in part:
        first, last = part["range"]
    elif isinstance(part, dict) and isinstance(part.get("prefix", {}).get("addr"), int):
        first, bits = part["prefix"]["addr"], _PORT_BITS - part["prefix"]["len"]
        last = first | ((1 << bits) - 1)
    else:
        return None
    return f"{first}-{last}"


def listed_prefix(part: Any) -> str | None:
    """A prefix in a JSON listing as elements write it; None for what is none."""
    if isinstance(part, dict) and "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    return None
