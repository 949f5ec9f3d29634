"""VLANs and private VLANs as nftables text: fixed rules, and the elements that stand for one port. Pure.

Every port has a key that says where it belongs, and elements that say frames of which keys it takes. A frame passes
from one port to another if the target takes the source's key or the source the target's: so two ports reach each other
in both directions or in none. The key is the packet's mark while this is looked up, and no longer.

Ports of a switch on which no card has a VLAN have no elements: their frames cost one look-up in each hook. All frames
are filtered here, on a bridge that filters VLANs itself too; only trunks need such a bridge.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from innkeeper.network.meters import listed_range, range_text
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import TAP_PREFIX, Element
from innkeeper.network.vlan_policy import OUTSIDE, UNTAGGED, Ranges, VlanPolicy

_COMMUNITY, _ISOLATED, _PROMISCUOUS = 1 << 24, 2 << 24, 3 << 24
_PRIVATE_KEYS = f"{_COMMUNITY}-{_PROMISCUOUS + (1 << 24) - 1}"
_PRIMARY_BITS = 12
_MARKS, _IDS = ("vlan_takes_range",), ("vlan_tagged",)

SCHEMA = """\
  set vlan_ports { type ifname; }
  set vlan_untagged { type ifname; }
  set vlan_tagged { typeof iifname . vlan id; flags interval; }
  set vlan_hosts { type ifname; }
  set vlan_routed { type ifname . ipv4_addr; flags interval; }
  set vlan_routed6 { type ifname . ipv6_addr; flags interval; }
  map vlan_key { type ifname : mark; }
  set vlan_takes { typeof meta mark . oifname; }
  set vlan_takes_range { typeof meta mark . oifname; flags interval; }
  chain vlan_from_ports {
    type filter hook prerouting priority -280; policy accept;
    iifname @vlan_ports goto vlan_tags comment "a switch with vlans"
  }
  chain vlan_tags {
    ether type != { 8021q, 8021ad } iifname @vlan_untagged accept comment "no tag, where that belongs to a vlan"
    iifname . vlan id @vlan_tagged meta protocol != { 8021q, 8021ad } accept comment "one tag, of a vlan of the trunk"
    iifname @guard_vlan counter name drop_vlan drop comment "a tag that the port does not carry"
  }
  chain vlan_between_ports {
    type filter hook forward priority -150; policy accept;
    iifname @vlan_ports goto vlan_members comment "from a switch with vlans"
    oifname @vlan_ports goto vlan_members comment "to a switch with vlans"
  }
  chain vlan_members {
    meta mark set 0 comment "a port without a key is in no vlan"
    meta mark set iifname map @vlan_key comment "where it comes from"
    meta mark . oifname @vlan_takes goto vlan_reached comment "the same vlan or community"
    meta mark . oifname @vlan_takes_range goto vlan_reached comment "to a trunk or a promiscuous port"
    meta mark set 0 comment "likewise in the other direction"
    meta mark set oifname map @vlan_key comment "where it goes to"
    meta mark . iifname @vlan_takes_range goto vlan_reached comment "from a trunk or a promiscuous port"
    iifname . vlan id @vlan_tagged oifname . vlan id @vlan_tagged goto vlan_reached comment "between trunks"
    drop comment "another vlan"
  }
  chain vlan_reached {
    meta mark set 0 accept comment "leaves without a mark"
  }
  chain vlan_to_host {
    type filter hook input priority -150; policy accept;
    iifname @vlan_ports iifname != @vlan_hosts drop comment "the host is in the switch's own vlan"
    iifname . ip daddr @vlan_routed iifname @guard_vlan counter name drop_vlan drop \
comment "other cards are not reached by way of the host"
    iifname . ip6 daddr @vlan_routed6 iifname @guard_vlan counter name drop_vlan drop comment "nor by ipv6"
  }
  chain vlan_from_host {
    type filter hook output priority -150; policy accept;
    oifname @vlan_ports oifname != @vlan_hosts drop comment "the host speaks in the switch's own vlan"
  }
"""


def vlan_elements(switch: SwitchPolicy, port: PortPolicy) -> frozenset[Element]:
    """The elements of a port's VLAN; none where nobody has one."""
    policy, tap = port.vlan, port.tap
    if not switch.vlans and policy == UNTAGGED:
        return frozenset()
    exact, ranged = taken(policy)
    sets: list[tuple[str, tuple[str, ...]]] = [("vlan_ports", (tap,)), ("guard_vlan", (tap,))]
    sets += [("vlan_untagged", (tap,))] if policy.takes_untagged else []
    sets += [("vlan_tagged", (tap, ranges_text(first, last))) for first, last in policy.tagged()]
    sets += [("vlan_takes", (str(key), tap)) for key in exact]
    sets += [("vlan_takes_range", (f"{first}-{last}", tap)) for first, last in ranged]
    if policy.with_host:
        sets.append(("vlan_hosts", (tap,)))
        if switch.network is not None and switch.gateway is not None:
            first, last = int(switch.network.network_address) + 2, int(switch.network.broadcast_address) - 1
            sets.append(("vlan_routed", (tap, range_text(first, last, 4))))
        if switch.network6 is not None and switch.gateway6 is not None:
            gateway = int(ipaddress.IPv6Address(switch.gateway6))
            first, last = int(switch.network6.network_address), int(switch.network6.broadcast_address)
            parts = [(first, gateway - 1), (gateway + 1, last)]
            sets += [("vlan_routed6", (tap, range_text(low, high, 6))) for low, high in parts if low <= high]
    elements = [Element("bridge", container, fields) for container, fields in sets]
    return frozenset([*elements, Element("bridge", "vlan_key", (tap,), (str(key_of(policy)),))])


def outside_elements(switch: SwitchPolicy) -> frozenset[Element]:
    """The elements of the port that leads outside, a trunk of all VLANs to the rules; none where no card has one.

    The bridge, which sees all its ports, carries there only what they need, and keeps the private ones of one primary
    from those of another.
    """
    port = switch.outside
    if port is None or not switch.vlans:
        return frozenset()
    sets: list[tuple[str, tuple[str, ...]]] = [
        (name, (port,)) for name in ("vlan_ports", "vlan_untagged", "vlan_hosts")
    ]
    sets += [("vlan_tagged", (port, ranges_text(first, last))) for first, last in OUTSIDE.tagged()]
    sets += [("vlan_takes_range", (f"{first}-{last}", port)) for first, last in taken(OUTSIDE)[1]]
    sets.append(("vlan_takes_range", (_PRIVATE_KEYS, port)))
    elements = [Element("bridge", container, fields) for container, fields in sets]
    return frozenset([*elements, Element("bridge", "vlan_key", (port,), (str(key_of(OUTSIDE)),))])


def key_of(policy: VlanPolicy) -> int:
    """Where a port's untagged frames belong. Nobody takes 0."""
    primary = (policy.vlan_id or 0) << _PRIMARY_BITS
    match policy.mode:
        case "community":
            return _COMMUNITY | primary | policy.secondary
        case "isolated":
            return _ISOLATED | primary | policy.secondary
        case "promiscuous":
            return _PROMISCUOUS | primary
        case _:
            return policy.vlan_id or 0


def taken(policy: VlanPolicy) -> tuple[tuple[int, ...], Ranges]:
    """The keys, and the ranges of them, that a port takes frames of; the other direction is looked up as well."""
    match policy.mode:
        case "access" | "community":
            return (key_of(policy),), ()
        case "isolated":
            return (), ()
        case "promiscuous":
            primary = (policy.vlan_id or 0) << _PRIMARY_BITS
            kinds = (_COMMUNITY | primary, _ISOLATED | primary)
            return (key_of(policy),), tuple((kind | low, kind | high) for kind in kinds for low, high in policy.others)
        case _:
            tagged = policy.tagged()
            return (), tagged if policy.vlan_id is None else (*tagged, (policy.vlan_id, policy.vlan_id))


def ranges_text(first: int, last: int) -> str:
    """A range of numbers as elements write it."""
    return f"{first}-{last}" if last > first else f"{first}"


def listed(container: str, part: Any) -> str | None:
    """The field of a range in a JSON listing as elements write it; None for other fields and containers."""
    if container in ("vlan_routed", "vlan_routed6") and (isinstance(part, Mapping) or not part.startswith(TAP_PREFIX)):
        return listed_range(part)
    if container not in (*_MARKS, *_IDS) or isinstance(part, str):
        return None
    if isinstance(part, int):
        first = last = part
    elif "range" in part:
        first, last = part["range"]
    else:
        bits = (32 if container in _MARKS else 12) - part["prefix"]["len"]
        first, last = part["prefix"]["addr"], part["prefix"]["addr"] | ((1 << bits) - 1)
    # nft 1.0.6 takes a single mark into such a set, but takes it out only as a range.
    return f"{first}-{last}" if container in _MARKS else ranges_text(first, last)
