"""Which way a port's frames take through guards and lists, as elements of verdict maps. Pure.

A port without lists has the verdict ``continue`` there, which leads on within the rule, to the guards alone: so the
kernel, which follows each element that leads to a chain at every change, has few to follow. A port with lists of what
it sends has its lists' own chains, which ask the guards first: so its frames cost neither a second base chain nor a
second look-up. Where a switch has VLANs those come in between, and lists are asked by a base chain after them.
"""

from __future__ import annotations

import ipaddress

from innkeeper.network.acl import directions_of
from innkeeper.network.acl_rules import MAPS, acl_elements, entrance
from innkeeper.network.policy import PortPolicy
from innkeeper.network.ruleset import Element, hexadecimal

_ONWARD = "continue"
_ETHERTYPE_BITS, _IPV4 = 16, 0x0800


def way_elements(port: PortPolicy, has_vlans: bool) -> frozenset[Element]:
    """What makes a port known, the short way of its own addresses, and its lists; ``has_vlans``: its switch has."""
    listed = "out" in directions_of(port.acl)
    ways = entrance(port.acl) if listed and not has_vlans else (_ONWARD, _ONWARD)
    found = {Element("bridge", "ports", (port.tap,), (ways[0],))}
    for mac in port.macs:
        source_and_type = hexadecimal(int(mac.replace(":", ""), 16) << _ETHERTYPE_BITS | _IPV4)
        for address in port.known4:
            key = (port.tap, source_and_type, hexadecimal(int(ipaddress.IPv4Address(address))))
            found.add(Element("bridge", "short_way", key, (ways[1],)))
    lists = acl_elements(port)
    return frozenset(found) | (lists if has_vlans else frozenset(one for one in lists if one.container != MAPS["out"]))
