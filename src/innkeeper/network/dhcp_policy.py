"""What a switch's DHCP gives besides the cards' addresses: frozen values, and whether they can be. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from innkeeper.model.problems import Conflict, Invalid


@dataclass(frozen=True, slots=True)
class Reservation:
    """An address for a mac that is no port's."""

    mac: str
    address: str
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class DhcpPolicy:
    """``ranges`` are (first, last) IPv4 addresses that cards' are chosen from, all of the subnet when there is none.

    ``dns_servers`` and ``ntp_servers`` are of both IP versions; ``options`` are (number, value as dnsmasq reads it).
    """

    ranges: tuple[tuple[str, str], ...] = ()
    lease_s: int = 3600
    dns_servers: tuple[str, ...] = ()
    search_domains: tuple[str, ...] = ()
    ntp_servers: tuple[str, ...] = ()
    options: tuple[tuple[int, str], ...] = ()
    reservations: tuple[Reservation, ...] = ()

    def of_version(self, servers: Iterable[str], version: int) -> list[str]:
        """Those of ``servers`` that are addresses of that IP version."""
        return [text for text in servers if ipaddress.ip_address(text).version == version]


def check_dhcp(
    dhcp: DhcpPolicy,
    network: ipaddress.IPv4Network | None,
    gateway: str | None,
    addresses: Mapping[str, str],
    macs: Mapping[str, str],
) -> None:
    """Whether a switch with that subnet can give this; ``addresses`` and ``macs`` -> names of the cards that have them.

    Raises ``Invalid`` (``dhcp.range``, ``dhcp.reservation``, ``dhcp.option_twice``, ``switch.no_subnet``), ``Conflict``
    (``dhcp.reservation_taken``).
    """
    if network is None:
        if dhcp.ranges or dhcp.reservations:
            raise Invalid("switch.no_subnet", "a switch without a subnet gives no addresses", remedy="give it a subnet")
        return
    inside = f"{network.network_address + 1} to {network.broadcast_address - 1}"
    _check_ranges(dhcp, network, inside)
    numbers = [number for number, _ in dhcp.options]
    for number in numbers:
        if numbers.count(number) > 1:
            raise Invalid(
                "dhcp.option_twice", f"option {number} is given twice", remedy="write its values in one, with commas"
            )
    taken_addresses, taken_macs = dict(addresses), dict(macs)
    if gateway is not None:
        taken_addresses[gateway] = "the switch itself"
    for one in dhcp.reservations:
        if not _inside(one.address, network):
            raise Invalid(
                "dhcp.reservation",
                f"{one.address} cannot be reserved for {one.mac}",
                cause=f"the switch's subnet is {network}",
                remedy=f"choose one from {inside}",
            )
        for what, value, taken in (("address", one.address, taken_addresses), ("mac", one.mac, taken_macs)):
            if value in taken:
                raise Conflict(
                    "dhcp.reservation_taken",
                    f"{what} {value} is in use by {taken[value]}",
                    remedy="an address of a card is set with 'inn nic set NIC --address'; reservations are for others",
                )
            taken[value] = f"the reservation for {one.mac}"


def _check_ranges(dhcp: DhcpPolicy, network: ipaddress.IPv4Network, inside: str) -> None:
    known: list[tuple[int, int, str]] = []
    for first, last in dhcp.ranges:
        text, low, high = f"{first}-{last}", ipaddress.IPv4Address(first), ipaddress.IPv4Address(last)
        cause = None
        if low > high:
            cause = f"{first} comes after {last}"
        elif not _inside(first, network) or not _inside(last, network):
            cause = f"the switch's subnet is {network}"
        for other_low, other_high, other in known:
            if int(low) <= other_high and int(high) >= other_low:
                cause = f"it overlaps {other}"
        if cause is not None:
            remedy = f"give a range from {inside}, lower address first"
            raise Invalid("dhcp.range", f"addresses cannot be given from {text}", cause=cause, remedy=remedy)
        known.append((int(low), int(high), text))


def _inside(text: str, network: ipaddress.IPv4Network) -> bool:
    address = ipaddress.IPv4Address(text)
    return address in network and address not in (network.network_address, network.broadcast_address)


def in_ranges(dhcp: DhcpPolicy, network: ipaddress.IPv4Network) -> Iterable[str]:
    """The addresses that cards' are chosen from, in order, without network and broadcast address."""
    if not dhcp.ranges:
        yield from (str(host) for host in network.hosts())
        return
    for first, last in dhcp.ranges:
        for number in range(int(ipaddress.IPv4Address(first)), int(ipaddress.IPv4Address(last)) + 1):
            yield str(ipaddress.IPv4Address(number))


def dhcp_options(dhcp: DhcpPolicy, gateway: str, domain: str, mtu: int, *, routes: bool) -> list[tuple[str, str]]:
    """The lines of dnsmasq's configuration for the IPv4 options; ``routes``: the gateway is the way out."""
    given = dict(dhcp.options)
    dns = dhcp.of_version(dhcp.dns_servers, 4) or [gateway]
    ntp = dhcp.of_version(dhcp.ntp_servers, 4)
    lines = []
    if 3 not in given:
        lines.append(("dhcp-option", f"option:router,{gateway}" if routes else "option:router"))
    lines += [
        ("dhcp-option", f"option:dns-server,{','.join(dns)}"),
        ("dhcp-option", f"option:mtu,{mtu}"),
        ("dhcp-option", f"option:domain-search,{','.join(dhcp.search_domains or (domain,))}"),
    ]
    if ntp:
        lines.append(("dhcp-option", f"option:ntp-server,{','.join(ntp)}"))
    # Guests ask for the options that they know; what somebody set by number is meant to arrive.
    lines += [("dhcp-option-force", f"{number},{value}") for number, value in sorted(given.items())]
    return lines
