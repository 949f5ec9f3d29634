"""802.1p priorities of what leaves by a switch's uplink with a tag: which card's, in which VLAN, has which. Pure.

A card that is trusted keeps the priority that its vm gives its tagged frames. For others a filter at the uplink sets
it, one for each mac and VLAN: traffic control changes a tag only together with its VLAN.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.vlan_policy import carried_outside

PREFERENCE = 18766
"""Of the inn's filters among others' at the same card ("IN")."""


@dataclass(frozen=True, slots=True, order=True)
class Priority:
    """What leaves from ``mac`` in a VLAN has this priority code point."""

    mac: str
    vlan_id: int
    pcp: int


def priorities(switch: SwitchPolicy, ports: Iterable[PortPolicy]) -> frozenset[Priority]:
    """The priorities at the switch's uplink; none without one, or where every card is trusted."""
    if switch.outside is None:
        return frozenset()
    return frozenset(
        Priority(mac, vlan_id, port.traffic.pcp)
        for port in ports
        if port.traffic.pcp is not None
        for first, last in carried_outside([port.vlan])
        for vlan_id in range(first, last + 1)
        for mac in port.macs
    )


def commands(device: str, wanted: Iterable[Priority]) -> list[str]:
    """The lines for ``tc -batch`` that add the filters; others' that come after them are asked too."""
    return [
        f"filter add dev {device} egress pref {PREFERENCE} protocol 802.1Q handle {number:#x} flower "
        f"src_mac {one.mac} vlan_id {one.vlan_id} "
        f"action vlan modify id {one.vlan_id} priority {one.pcp} continue"
        for number, one in enumerate(sorted(wanted), 1)
    ]


def listed(text: bytes) -> frozenset[Priority]:
    """The inn's filters, of what ``tc -j filter show dev DEVICE egress`` prints."""
    entries: list[Mapping[str, Any]] = json.loads(text or b"[]")
    own = [each["options"] for each in entries if each.get("pref") == PREFERENCE and "options" in each]
    return frozenset(one for options in own if (one := _listed(options)) is not None)


def _listed(options: Mapping[str, Any]) -> Priority | None:
    keys = options.get("keys", {})
    for action in options.get("actions", ()):
        if action.get("vlan_action") == "modify" and {"src_mac", "vlan_id"} <= keys.keys():
            return Priority(keys["src_mac"], keys["vlan_id"], action.get("priority", 0))
    return None
