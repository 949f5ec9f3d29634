"""The options of a switch's DHCP, and how they become a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from innkeeper.cli.options import DURATION

F = TypeVar("F", bound=Callable[..., Any])


def address_range(text: str) -> dict[str, str]:
    """A range written ``FIRST-LAST``."""
    first, dash, last = text.partition("-")
    if not dash:
        raise click.BadParameter(f"{text!r} is not like 10.77.0.100-10.77.0.199", param_hint="--range")
    return {"first": first.strip(), "last": last.strip()}


def reservation(text: str) -> dict[str, str]:
    """A reservation written ``MAC=ADDRESS[,NAME]``."""
    mac, equals, rest = text.partition("=")
    address, comma, name = rest.partition(",")
    if not equals or not address:
        raise click.BadParameter(f"{text!r} is not like 52:54:00:00:00:01=10.77.0.9,printer", param_hint="--reserve")
    made = {"mac": mac.lower(), "address": address}
    return {**made, "hostname": name.lower()} if comma else made


def numbered(text: str) -> dict[str, Any]:
    """An option written ``NUMBER=VALUE``."""
    number, equals, value = text.partition("=")
    if not equals or not number.isdigit():
        raise click.BadParameter(f"{text!r} is not like 66=boot.example", param_hint="--option")
    return {"number": int(number), "value": value}


_LISTS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "ranges": ("ranges", address_range),
    "dns": ("dns_servers", str),
    "search": ("search_domains", str),
    "ntp": ("ntp_servers", str),
    "numbered": ("options", numbered),
    "reserve": ("reservations", reservation),
}


def dhcp_options(function: F) -> F:
    """``--range`` and its like; each that is given replaces all of its kind, ``none`` takes them away."""
    options = (
        click.option(
            "--range",
            "ranges",
            multiple=True,
            metavar="FIRST-LAST",
            help="Where cards' addresses are chosen from; repeatable; none: the whole subnet.",
        ),
        click.option("--lease", type=DURATION, help="How long an address is lent, such as 12h. [default: 1h]"),
        click.option("--dns", multiple=True, metavar="ADDRESS", help="Guests' DNS servers; none: the switch itself."),
        click.option("--search", multiple=True, metavar="DOMAIN", help="Guests' search domains; none: the switch's."),
        click.option("--ntp", multiple=True, metavar="ADDRESS", help="Guests' time servers."),
        click.option(
            "--option", "numbered", multiple=True, metavar="NUMBER=VALUE", help="Any other DHCP option by its number."
        ),
        click.option(
            "--reserve", multiple=True, metavar="MAC=ADDRESS[,NAME]", help="An address for a mac that is no card's."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def take_dhcp(options: dict[str, Any]) -> dict[str, Any] | None:
    """Take the DHCP options out of ``options``: the members of a request; None when none was given."""
    members: dict[str, Any] = {}
    lease = options.pop("lease")
    if lease is not None:
        members["lease_s"] = round(lease)
    for option, (name, parse) in _LISTS.items():
        given = options.pop(option)
        if given:
            members[name] = [] if given == ("none",) else [parse(text) for text in given]
    return members or None
