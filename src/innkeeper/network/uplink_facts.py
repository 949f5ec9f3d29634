"""What the kernel says of a network card: its link, and what of the host's network is on it. Blocking, reads only."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from innkeeper.model.problems import Failed
from innkeeper.model.uplink import HostAddress, HostHop, HostNeighbour, HostNetwork, HostRoute, HostRule
from innkeeper.network.uplink_plan import NicFacts

_FOREVER = 0xFFFFFFFF
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_DADFAILED, _MANAGETEMPADDR, _NOPREFIXROUTE = 0x8, 0x100, 0x200
_UNICAST, _KERNEL, _LOCAL_TABLE, _ONLINK = 1, 2, 255, 0x4
_PERMANENT = 0x80
_LINK_SCOPE = 253
_TO_TABLE, _INVERT = 1, 0x2
_USER_HZ = 100
_FAMILIES = {2: 4, 10: 6}
_ROUTE_PARTS = {
    *("RTA_TABLE", "RTA_DST", "RTA_PRIORITY", "RTA_GATEWAY", "RTA_VIA", "RTA_PREFSRC", "RTA_OIF", "RTA_METRICS"),
    *("RTA_MULTIPATH", "RTA_CACHEINFO", "RTA_PREF"),
}
_RULE_PARTS = {
    *("FRA_TABLE", "FRA_PRIORITY", "FRA_IIFNAME", "FRA_OIFNAME", "FRA_SRC", "FRA_DST", "FRA_FWMARK", "FRA_FWMASK"),
    *("FRA_PROTOCOL", "FRA_SUPPRESS_PREFIXLEN"),
}
SETTINGS = {
    "ipv4": ("forwarding", "rp_filter", "arp_filter", "arp_ignore", "arp_announce", "accept_local", "proxy_arp"),
    "ipv6": (
        *("disable_ipv6", "forwarding", "accept_ra", "autoconf", "use_tempaddr", "addr_gen_mode"),
        *("accept_ra_defrtr", "accept_ra_pinfo", "accept_ra_rtr_pref"),
    ),
}
"""Sysctls of a device that its bridge must have too."""
_TAKERS = ("macvlan", "macvtap", "ipvlan", "ipvtap")


@dataclass(frozen=True, slots=True)
class Brief:
    """``versions``: the IP versions that it has addresses of, link-local ones apart."""

    master: str | None
    carrier: bool
    mtu: int
    versions: frozenset[int]


def read_nic(netlink: IPRoute, name: str) -> NicFacts | None:
    """The card ``name`` with the host's network on it; None when there is none.

    Raises ``Failed`` (``link.refused``).
    """
    try:
        link = _link(netlink, name)
        if link is None:
            return None
        network, unmovable = _read_network(netlink, link["index"], name)
        users = _users(netlink, link["index"])
    except (NetlinkError, OSError) as refused:
        if getattr(refused, "code", None) == errno.ENODEV:
            return None
        raise Failed(
            "link.refused", f"{name} cannot be read", cause=str(refused), remedy="see 'inn doctor'"
        ) from refused
    return NicFacts(
        name=name,
        index=link["index"],
        mac=link.get("address") or "",
        mtu=link.get("mtu") or 0,
        kind=_kind(link),
        up=bool(link["flags"] & _IFF_UP),
        carrier=bool(link.get("carrier")),
        master=_name(link.get("master")),
        loopback=bool(link["flags"] & _IFF_LOOPBACK),
        wireless=_is_wireless(name),
        users=users,
        network=network,
        unmovable=unmovable,
    )


def read_brief(netlink: IPRoute, name: str) -> Brief | None:
    """What is cheap to know of a card, for looking often. Raises ``Failed`` (``link.refused``)."""
    try:
        link = _link(netlink, name)
        if link is None:
            return None
        versions = frozenset(
            _FAMILIES[message["family"]]
            for message in netlink.get_addr(index=link["index"])
            if message["index"] == link["index"] and message["scope"] != _LINK_SCOPE
        )
    except (NetlinkError, OSError) as refused:
        raise Failed(
            "link.refused", f"{name} cannot be read", cause=str(refused), remedy="see 'inn doctor'"
        ) from refused
    carrier = bool(link["flags"] & _IFF_UP) and bool(link.get("carrier"))
    return Brief(_name(link.get("master")), carrier, link.get("mtu") or 0, versions)


def _link(netlink: IPRoute, name: str) -> Any:
    try:
        return next(iter(netlink.link("get", ifname=name)), None)
    except NetlinkError as refused:
        if refused.code == errno.ENODEV:
            return None
        raise


def _name(index: int | None) -> str | None:
    try:
        return socket.if_indextoname(index) if index else None
    except OSError:
        return None


def _users(netlink: IPRoute, index: int) -> tuple[str, ...]:
    return tuple(
        str(other.get("ifname"))
        for other in netlink.get_links()
        if other.get("link") == index and _kind(other) in _TAKERS
    )


def _kind(link: Any) -> str:
    info = link.get("linkinfo")
    return (info.get("kind") if info is not None else None) or ""


def _is_wireless(name: str) -> bool:
    return any(Path("/sys/class/net", name, mark).exists() for mark in ("wireless", "phy80211"))


def _read_network(netlink: IPRoute, index: int, name: str) -> tuple[HostNetwork, tuple[str, ...]]:
    addresses = tuple(
        _address(message, name)
        for message in netlink.get_addr()
        if message["index"] == index and message["family"] in _FAMILIES and not _flags(message) & _DADFAILED
    )
    unmovable: list[str] = []
    routes = []
    for message in netlink.get_routes():
        if message["family"] not in _FAMILIES or not _is_through(message, index) or not _is_moved(message):
            continue
        route = _route(message, index)
        if strange := _strange(message, _ROUTE_PARTS) or (["RTA_SRC"] if message["src_len"] else []):
            unmovable.append(f"route {route} has {', '.join(strange)}")
        elif not _is_brought(route, addresses):
            routes.append(route)
    rules = []
    for message in [*netlink.get_rules(family=2), *netlink.get_rules(family=10)]:
        if name not in (message.get("FRA_IIFNAME"), message.get("FRA_OIFNAME")):
            continue
        if (strange := _strange(message, _RULE_PARTS)) or message["action"] != _TO_TABLE:
            unmovable.append(f"rule {message.get('FRA_PRIORITY')} has {', '.join(strange) or 'another action'}")
        else:
            rules.append(_rule(message, name))
    neighbours = tuple(
        HostNeighbour(address=message.get("NDA_DST"), mac=message.get("NDA_LLADDR"))
        for message in netlink.get_neighbours()
        if message["ifindex"] == index and message["state"] & _PERMANENT and message["family"] in _FAMILIES
    )
    network = HostNetwork(
        addresses=addresses,
        routes=tuple(routes),
        rules=tuple(rules),
        neighbours=neighbours,
        settings=tuple(sorted(read_settings(name).items())),
    )
    return network, tuple(unmovable)


def read_settings(name: str) -> dict[str, str]:
    """The sysctls of a device that matter, ``<family>/<name>`` -> value; those that this kernel has."""
    found = {}
    for family, keys in SETTINGS.items():
        for key in keys:
            path = Path("/proc/sys/net", family, "conf", name, key)
            if os.access(path, os.R_OK):
                found[f"{family}/{key}"] = path.read_text().strip()
    return found


def _flags(message: Any) -> int:
    return int(message.get("IFA_FLAGS") or message["flags"])


def _address(message: Any, device: str) -> HostAddress:
    label = message.get("IFA_LABEL")
    local, other = message.get("IFA_LOCAL"), message.get("IFA_ADDRESS")
    flags, cache = _flags(message), message.get("IFA_CACHEINFO") or {}
    valid, preferred = cache.get("ifa_valid", _FOREVER), cache.get("ifa_preferred", _FOREVER)
    return HostAddress(
        address=local or other,
        prefix_length=message["prefixlen"],
        peer=other if local and other and local != other else None,
        broadcast=message.get("IFA_BROADCAST"),
        scope=message["scope"],
        prefix_route=not flags & _NOPREFIXROUTE,
        autoconf=bool(flags & _MANAGETEMPADDR) and message["family"] == 10,
        metric=message.get("IFA_RT_PRIORITY") or None,
        label=label if label and label != device else None,
        lifetime_s=None if valid == _FOREVER else valid,
        preferred_s=None if preferred == _FOREVER else preferred,
    )


def _is_through(message: Any, index: int) -> bool:
    hops = message.get("RTA_MULTIPATH") or ()
    return message.get("RTA_OIF") == index or any(hop["oif"] == index for hop in hops)


def _is_moved(message: Any) -> bool:
    """Not what the kernel makes of addresses by itself, and not a copy that it remembers."""
    cloned = message["flags"] & 0x200
    return message["type"] == _UNICAST and (message.get("RTA_TABLE") or message["table"]) != _LOCAL_TABLE and not cloned


def _is_brought(route: HostRoute, addresses: tuple[HostAddress, ...]) -> bool:
    """Whether the route came with an address, and so moves with it."""
    if route.protocol != _KERNEL or route.gateway or route.hops:
        return False
    for address in addresses:
        if not address.prefix_route or address.network != route.destination:
            continue
        if route.version == 6 or (route.source == address.address and route.metric == (address.metric or 0)):
            return True
    return False


def _route(message: Any, index: int) -> HostRoute:
    version = _FAMILIES[message["family"]]
    anything = "0.0.0.0" if version == 4 else "::"
    cache = message.get("RTA_CACHEINFO") or {}
    via = message.get("RTA_VIA")
    metrics = message.get("RTA_METRICS")
    hops = tuple(
        HostHop(
            device=None if hop["oif"] == index else _name(hop["oif"]),
            gateway=_gateway(hop),
            weight=hop["hops"] + 1,
            onlink=bool(hop["flags"] & _ONLINK),
        )
        for hop in message.get("RTA_MULTIPATH") or ()
    )
    return HostRoute(
        destination=f"{message.get('RTA_DST') or anything}/{message['dst_len']}",
        table=message.get("RTA_TABLE") or message["table"],
        protocol=message["proto"],
        scope=message["scope"],
        route_type=message["type"],
        tos=message["tos"],
        metric=message.get("RTA_PRIORITY") or 0,
        gateway=message.get("RTA_GATEWAY") or (via["addr"] if via else None),
        source=message.get("RTA_PREFSRC"),
        onlink=bool(message["flags"] & _ONLINK),
        preference=message.get("RTA_PREF") or None,
        expires_s=(cache.get("rta_expires") or 0) // _USER_HZ or None,
        metrics=tuple((name, int(value)) for name, value in (metrics["attrs"] if metrics else ())),
        hops=hops,
    )


def _gateway(hop: Any) -> str | None:
    attributes = dict(hop.get("attrs") or ())
    via = attributes.get("RTA_VIA")
    return attributes.get("RTA_GATEWAY") or (via["addr"] if via else None)


def _rule(message: Any, name: str) -> HostRule:
    def prefix(key: str, length: str) -> str | None:
        return f"{message.get(key)}/{message[length]}" if message.get(key) else None

    return HostRule(
        version=_FAMILIES[message["family"]],
        priority=message.get("FRA_PRIORITY") or 0,
        table=message.get("FRA_TABLE") or message["table"],
        is_in=message.get("FRA_IIFNAME") == name,
        is_out=message.get("FRA_OIFNAME") == name,
        source=prefix("FRA_SRC", "src_len"),
        destination=prefix("FRA_DST", "dst_len"),
        mark=message.get("FRA_FWMARK"),
        mask=message.get("FRA_FWMASK"),
        invert=bool(message["flags"] & _INVERT),
    )


def _strange(message: Any, known: set[str]) -> list[str]:
    found = []
    for name, value in message["attrs"]:
        if name in known:
            continue
        found.append(name if name != "UNKNOWN" else f"attribute {value['header']['type']}")
    return found
