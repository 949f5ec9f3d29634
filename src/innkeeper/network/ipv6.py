"""IPv6 of a switch: its /64, the addresses of cards in it, and what its router advertisements say. Pure."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping
from typing import Literal

from innkeeper.model.problems import Conflict, Invalid, NoSpace
from innkeeper.network.dhcp_policy import DhcpPolicy

RaMode = Literal["managed", "slaac"]
"""managed: guests get their addresses by DHCPv6. slaac: they make them of the prefix and their macs (EUI-64)."""
_USABLE = (ipaddress.IPv6Network("2000::/3"), ipaddress.IPv6Network("fc00::/7"))
"""Global unicast and unique local addresses (RFC 4291, RFC 4193)."""
LINK_LOCAL = ipaddress.IPv6Network("fe80::/64")
_ROUTER_LIFETIME_S = 1800
_ADVERTISE_EVERY_S = 600


def parse_subnet6(text: str) -> ipaddress.IPv6Network:
    """The IPv6 network ``text``: a /64, as guests that make their own addresses need (RFC 4862).

    Raises ``Invalid`` (``switch.subnet6``).
    """
    try:
        network = ipaddress.IPv6Network(text)
    except ValueError as wrong:
        raise Invalid(
            "switch.subnet6", f"{text!r} is not an IPv6 subnet", cause=str(wrong), remedy="write it like fd00:77::/64"
        ) from wrong
    if network.prefixlen != 64 or not any(network.subnet_of(usable) for usable in _USABLE):
        raise Invalid(
            "switch.subnet6",
            f"{text} cannot be a switch's IPv6 subnet",
            remedy="take a /64 of private addresses, such as fd00:77::/64, or auto",
        )
    return network


def check_subnet6(wanted: str, switches: Mapping[str, str], routes: Mapping[str, str]) -> str:
    """``wanted`` in its usual form, when neither another switch nor the host's networks overlap it.

    ``switches``: name -> IPv6 subnet of the others; ``routes``: network that the host reaches -> device. Raises
    ``Invalid`` (``switch.subnet6``), ``Conflict`` (``switch.subnet_in_use``).
    """
    network = parse_subnet6(wanted)
    users = {subnet: f"switch {name} has {subnet}" for name, subnet in switches.items()}
    users = {route: f"the host reaches {route} through {device}" for route, device in routes.items()} | users
    for used, cause in sorted(users.items()):
        if network.overlaps(ipaddress.IPv6Network(used)):
            raise Conflict(
                "switch.subnet_in_use",
                f"{wanted} overlaps a network in use",
                cause=cause,
                remedy="choose another subnet, or auto to have a free one chosen",
            )
    return str(network)


def choose_subnet6(inn_uuid: str, switches: Mapping[str, str], routes: Mapping[str, str]) -> str:
    """The first free /64 of the inn's own unique local prefix (RFC 4193), made of its uuid.

    Raises ``NoSpace`` (``switch.subnets_exhausted``).
    """
    prefix = b"\xfd" + hashlib.sha256(inn_uuid.encode()).digest()[:5]
    whole = ipaddress.IPv6Network((prefix + bytes(10), 48))
    taken = [ipaddress.IPv6Network(text) for text in (*switches.values(), *routes)]
    taken = [network for network in taken if network.overlaps(whole)]
    for candidate in whole.subnets(new_prefix=64):
        if not any(candidate.overlaps(network) for network in taken):
            return str(candidate)
    raise NoSpace("switch.subnets_exhausted", f"no subnet of {whole} is free", remedy="give the switch a subnet6")


def gateway6(network: ipaddress.IPv6Network) -> str:
    """The host's address there: the first."""
    return str(network.network_address + 1)


def interface_address(network: ipaddress.IPv6Network, mac: str) -> str:
    """The address that is made of the prefix and the mac (modified EUI-64, RFC 4291)."""
    octets = bytes.fromhex(mac.replace(":", ""))
    interface = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
    return str(ipaddress.IPv6Address(network.network_address.packed[:8] + interface))


def check_address6(switch: str, network: ipaddress.IPv6Network | None, wanted: str, taken: Mapping[str, str]) -> str:
    """``wanted`` when a card on ``switch`` may have it; ``taken``: address -> name of the card that has it.

    Raises ``Invalid`` (``switch.no_subnet``, ``nic.address``, ``nic.address_outside``), ``Conflict``
    (``nic.address_in_use``).
    """
    if network is None:
        remedy = f"give it one: inn switch set {switch} --subnet6 auto"
        raise Invalid("switch.no_subnet", f"switch {switch} has no IPv6 subnet", remedy=remedy)
    try:
        address = ipaddress.IPv6Address(wanted)
    except ValueError as wrong:
        remedy = f"write one of {network}"
        raise Invalid("nic.address", f"{wanted!r} is not an IPv6 address", cause=str(wrong), remedy=remedy) from wrong
    if address not in network or address == network.network_address:
        raise Invalid(
            "nic.address_outside",
            f"{wanted} is not an address for cards of switch {switch}",
            cause=f"its IPv6 subnet is {network}",
            remedy=f"choose one of {network} from {network.network_address + 2} on, or none to have one made",
        )
    text = str(address)
    holder = f"switch {switch} itself" if text == gateway6(network) else taken.get(text)
    if holder is not None:
        remedy = "choose another, or none to have one made"
        raise Conflict("nic.address_in_use", f"{wanted} is in use by {holder}", remedy=remedy)
    return text


def advertising(
    bridge: str, network: ipaddress.IPv6Network, mode: RaMode, dhcp: DhcpPolicy, domain: str, mtu: int, *, routes: bool
) -> list[tuple[str, str | None]]:
    """The lines of dnsmasq's configuration for DHCPv6 and router advertisements.

    ``routes``: the host is the way out; else it is no default router (lifetime 0).
    """
    given = "static" if mode == "managed" else "ra-stateless"
    dns = dhcp.of_version(dhcp.dns_servers, 6) or [gateway6(network)]
    ntp = dhcp.of_version(dhcp.ntp_servers, 6)
    search = ",".join(dhcp.search_domains or (domain,))
    lifetime_s = _ROUTER_LIFETIME_S if routes else 0
    lines: list[tuple[str, str | None]] = [
        ("enable-ra", None),
        ("dhcp-range", f"{network.network_address},{given},64,{dhcp.lease_s}"),
        ("ra-param", f"{bridge},mtu:{mtu},{_ADVERTISE_EVERY_S},{lifetime_s}"),
        ("dhcp-option", f"option6:dns-server,{_bracketed(dns)}"),
        ("dhcp-option", f"option6:domain-search,{search}"),
    ]
    if ntp:
        lines.append(("dhcp-option", f"option6:ntp-server,{_bracketed(ntp)}"))
    return lines


def _bracketed(addresses: Iterable[str]) -> str:
    return ",".join(f"[{address}]" for address in addresses)
