"""Which subnet a switch gets and which address a card gets. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from innkeeper.model.problems import Conflict, Invalid, NoSpace
from innkeeper.network.dhcp_policy import in_ranges
from innkeeper.network.links import Route
from innkeeper.network.policy import SwitchPolicy, parse_subnet

POOL = ipaddress.IPv4Network("10.77.0.0/16")
"""Where subnets are taken from when none is asked for."""
PREFIX_LENGTH = 24


def check_subnet(
    wanted: str, switches: Mapping[str, str], routes: Iterable[Route], own_bridge: str | None = None
) -> str:
    """``wanted`` in its usual form, when neither another switch nor the host's networks overlap it.

    ``switches``: name -> subnet of the others. Routes through ``own_bridge`` are the switch's own.
    Raises ``Invalid`` (``switch.subnet``), ``Conflict`` (``switch.subnet_in_use``).
    """
    network = parse_subnet(wanted)
    for name, subnet in sorted(switches.items()):
        if network.overlaps(ipaddress.IPv4Network(subnet)):
            raise _in_use(wanted, f"switch {name} has {subnet}")
    for route in routes:
        if route.device != own_bridge and network.overlaps(ipaddress.IPv4Network(route.network)):
            raise _in_use(wanted, f"the host reaches {route.network} through {route.device}")
    return str(network)


def choose_subnet(switches: Mapping[str, str], routes: Iterable[Route]) -> str:
    """The first /24 of 10.77.0.0/16 that nothing overlaps. Raises ``NoSpace`` (``switch.subnets_exhausted``)."""
    taken = [ipaddress.IPv4Network(text) for text in (*switches.values(), *(route.network for route in routes))]
    for candidate in POOL.subnets(new_prefix=PREFIX_LENGTH):
        if not any(candidate.overlaps(network) for network in taken):
            return str(candidate)
    raise NoSpace("switch.subnets_exhausted", f"no subnet of {POOL} is free", remedy="give the switch a subnet")


def choose_address(switch: SwitchPolicy, taken: Iterable[str]) -> str:
    """The first address of the switch's ranges, else of its subnet, that is neither the host's, reserved nor taken.

    Raises ``Invalid`` (``switch.no_subnet``), ``NoSpace`` (``switch.addresses_exhausted``).
    """
    network = _network(switch)
    used = {*taken, str(network.network_address + 1), *(one.address for one in switch.dhcp_policy.reservations)}
    for text in in_ranges(switch.dhcp_policy, network):
        if text not in used:
            return text
    if switch.dhcp_policy.ranges:
        raise NoSpace(
            "switch.addresses_exhausted",
            f"every address of the ranges of switch {switch.name} is taken",
            remedy=f"name one of {network} with --address, or widen the ranges: inn switch set {switch.name} --range",
        )
    raise NoSpace(
        "switch.addresses_exhausted",
        f"every address of {network} on switch {switch.name} is taken",
        remedy="remove cards that are no longer needed, or make a switch with a larger subnet",
    )


def check_address(switch: SwitchPolicy, wanted: str, taken: Mapping[str, str]) -> str:
    """``wanted`` when a card on ``switch`` may have it; ``taken``: address -> name of the card that has it.

    Raises ``Invalid`` (``nic.address``, ``nic.address_outside``), ``Conflict`` (``nic.address_in_use``).
    """
    network = _network(switch)
    try:
        address = ipaddress.IPv4Address(wanted)
    except ValueError as wrong:
        raise Invalid("nic.address", f"{wanted!r} is not an IPv4 address", cause=str(wrong)) from wrong
    if address not in network or address in (network.network_address, network.broadcast_address):
        raise Invalid(
            "nic.address_outside",
            f"{wanted} is not an address for cards of switch {switch.name}",
            cause=f"its subnet is {network}",
            remedy=f"choose one from {network.network_address + 2} to {network.broadcast_address - 1}",
        )
    reserved = {one.address: f"the reservation for {one.mac}" for one in switch.dhcp_policy.reservations}
    holder = f"switch {switch.name} itself" if wanted == switch.gateway else {**reserved, **taken}.get(wanted)
    if holder is not None:
        raise Conflict(
            "nic.address_in_use", f"{wanted} is in use by {holder}", remedy="choose another, or none to have one chosen"
        )
    return wanted


def check_next_hop(switch_name: str, subnet: str | None, next_hop: str) -> None:
    """Whether a customer route of a switch may lead there. Raises ``Invalid`` (``switch.route``)."""
    network = ipaddress.IPv4Network(subnet) if subnet is not None else None
    address = ipaddress.IPv4Address(next_hop)
    if network is None or address not in network or address == network.network_address + 1:
        raise Invalid(
            "switch.route",
            f"{next_hop} cannot be the next hop of a customer route of switch {switch_name!r}",
            cause=f"its subnet is {network}, whose first address is the gateway's own",
            remedy="name a guest of the switch that routes",
        )


def check_record(switch_name: str, subnet: str | None, customer: str) -> None:
    """Whether a lookup record of a switch may name that address. Raises ``Invalid`` (``switch.record``).

    IPv6 addresses are not bound to a subnet.
    """
    address = ipaddress.ip_address(customer)
    network = ipaddress.ip_network(subnet) if subnet is not None else None
    if network is None or address.version != network.version:
        return
    kept = (network.network_address, network.network_address + 1, network.broadcast_address)
    if address not in network or address in kept:
        raise Invalid(
            "switch.record",
            f"{customer} is not the address of a guest on switch {switch_name!r}",
            cause=f"its subnet is {network}, whose first address is the gateway's",
            remedy=f"name one from {network.network_address + 2} to {network.broadcast_address - 1}",
        )


def _network(switch: SwitchPolicy) -> ipaddress.IPv4Network:
    if switch.network is None:
        raise Invalid(
            "switch.no_subnet", f"switch {switch.name} has no subnet", remedy="leave the address out on this switch"
        )
    return switch.network


def _in_use(subnet: str, cause: str) -> Conflict:
    return Conflict(
        "switch.subnet_in_use",
        f"{subnet} overlaps a network in use",
        cause=cause,
        remedy="choose another subnet, or none to have a free one chosen",
    )
