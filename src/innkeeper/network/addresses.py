"""Which subnet a switch gets and which address a card gets. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from innkeeper.model.problems import Conflict, Invalid, NoSpace
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
    """The lowest address of the switch's subnet that is neither the host's nor taken.

    Raises ``Invalid`` (``switch.no_subnet``), ``NoSpace`` (``switch.addresses_exhausted``).
    """
    network = _network(switch)
    used = {*taken, str(network.network_address + 1)}
    for host in network.hosts():
        if (text := str(host)) not in used:
            return text
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
    holder = f"switch {switch.name} itself" if wanted == switch.gateway else taken.get(wanted)
    if holder is not None:
        raise Conflict(
            "nic.address_in_use", f"{wanted} is in use by {holder}", remedy="choose another, or none to have one chosen"
        )
    return wanted


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
