"""Prefixes that packets come from as elements of sets of ranges, which must not overlap. Pure.

A set ``name4`` and a set ``name6`` belong together: their elements are the same fields and then a prefix.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from innkeeper.model.host_firewall import Network, prefix_text
from innkeeper.network.ruleset import Element

EVERYWHERE: tuple[Network, Network] = (ipaddress.IPv4Network("0.0.0.0/0"), ipaddress.IPv6Network("::/0"))

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


def listed_prefix(part: Any) -> str | None:
    """A prefix in a JSON listing as elements write it; None for what is none."""
    if isinstance(part, dict) and "prefix" in part:
        return f"{part['prefix']['addr']}/{part['prefix']['len']}"
    return None
