"""The options of a card's bandwidth, mirroring, marks and meters, and how they become a request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from innkeeper.cli.options import SIZE
from innkeeper.model.traffic import NicTraffic

F = TypeVar("F", bound=Callable[..., Any])
_PATTERN = re.compile(r"(\d+(?:\.\d+)?)([kMG]?)(?:bit)?(?:/s)?")
_FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_NAMES = {
    "max_in": "max_in_bits_per_s",
    "max_out": "max_out_bits_per_s",
    "burst": "burst_bytes",
    "min_weight": "min_weight",
    "min_out": "min_out_bits_per_s",
}


class Rate(click.ParamType[int]):
    """A rate such as 64k, 100M or 1.5G, in bits a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _PATTERN.fullmatch(str(value))
        if match is None:
            self.fail(f"{value!r} is no rate; write for example 500k, 100M or 1.5G (bits a second)", param, ctx)
        return round(float(match[1]) * _FACTORS[match[2]])


RATE = Rate()


def format_rate(bits_per_s: int | None) -> str:
    """A rate for people: ``100 Mbit/s``."""
    if bits_per_s is None:
        return ""
    for unit, factor in (("Gbit/s", 10**9), ("Mbit/s", 10**6), ("kbit/s", 10**3)):
        if bits_per_s >= factor:
            return f"{bits_per_s / factor:g} {unit}"
    return f"{bits_per_s} bit/s"


def traffic_options(function: F) -> F:
    """``--max-in`` and its like."""
    options = (
        click.option(
            "--max-in", type=RATE, help="The most that reaches the vm, such as 100M bits a second; 0: no bound."
        ),
        click.option("--max-out", type=RATE, help="The most that it sends; 0: no bound."),
        click.option(
            "--burst", type=SIZE, help="What may pass at once before they hold, such as 256K; 0: 10 ms of them."
        ),
        click.option(
            "--min-weight",
            type=click.IntRange(0, 100),
            help="What it is sure of at an external switch's uplink, in hundredths of it; 0: nothing.",
        ),
        click.option("--min-out", type=RATE, help="The same as a rate; 0: nothing."),
        click.option(
            "--mirror",
            type=click.Choice(["none", "source", "destination"]),
            help="source: the switch's destinations get copies of all its frames.",
        ),
        click.option("--dscp", help="Set on what it sends: 0 to 63; trust: keep the vm's own."),
        click.option(
            "--pcp", help="802.1p priority of what leaves by an uplink with a tag: 0 to 7; trust: keep the vm's own."
        ),
        click.option(
            "--meter", "meters", multiple=True, metavar="PREFIX", help="Remote prefixes that are counted; all, anew."
        ),
        click.option("--no-meters", is_flag=True, help="Count no prefix any more."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _mark(text: str, most: int, option: str) -> int | None:
    if text == "trust":
        return None
    if not text.isdecimal() or int(text) > most:
        raise click.BadParameter(f"{text!r} is none of 0 to {most} or trust", param_hint=option)
    return int(text)


def take_traffic(options: dict[str, Any]) -> dict[str, Any] | None:
    """Take the traffic options out of ``options``: the members of a request; None when none was given."""
    members: dict[str, Any] = {}
    for option, name in _NAMES.items():
        value = options.pop(option)
        if value is not None:
            members[name] = value or None
    mirror = options.pop("mirror")
    if mirror is not None:
        members["mirror"] = mirror
    for name, most in (("dscp", 63), ("pcp", 7)):
        mark = options.pop(name)
        if mark is not None:
            members[name] = _mark(mark, most, f"--{name}")
    meters, no_meters = options.pop("meters"), options.pop("no_meters")
    if meters or no_meters:
        members["meters"] = list(meters)
    return members or None


def summary(traffic: NicTraffic) -> str:
    """The bounds of a card for a table."""
    return "/".join(format_rate(rate) or "-" for rate in (traffic.max_in_bits_per_s, traffic.max_out_bits_per_s))
