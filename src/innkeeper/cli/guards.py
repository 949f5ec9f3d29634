"""The options of commands that change guards, and how guards look."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli.options import F
from innkeeper.model.guards import GUARD_NAMES, NicGuards

_CHOICE = click.Choice([*GUARD_NAMES, "all"])


def _number(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> list[int] | None:
    try:
        return [int(value, 0) for value in values] or None
    except ValueError as wrong:
        raise click.BadParameter(f"{wrong}; write for example 0x88cc") from wrong


def guard_options(function: F) -> F:
    """``--guard``, ``--no-guard``, ``--default-guard``, the ethertypes and the rates."""
    for decorate in (
        click.option("--multicast-rate", "multicast_per_s", type=click.IntRange(1), help="Frames a second to groups."),
        click.option("--broadcast-rate", "broadcast_per_s", type=click.IntRange(1), help="Frames a second to all."),
        click.option("--no-ethertypes", is_flag=True, help="Only ARP, IPv4 and IPv6."),
        click.option(
            "--ethertype",
            "ethertypes",
            multiple=True,
            callback=_number,
            metavar="0x88cc",
            help="It passes too; all, anew.",
        ),
        click.option("--default-guard", "default", type=_CHOICE, multiple=True, help="As the switch has it."),
        click.option("--no-guard", "off", type=_CHOICE, multiple=True, help="Switch a guard off."),
        click.option("--guard", "on", type=_CHOICE, multiple=True, help="Switch a guard on."),
    ):
        function = decorate(function)
    return function


def take_guards(options: dict[str, Any]) -> dict[str, Any] | None:
    """Take the guards' options out of ``options``: the members of a change, None when nothing was said."""
    wanted: dict[str, Any] = {}
    for name, value in (("default", None), ("on", True), ("off", False)):
        said = options.pop(name)
        wanted |= dict.fromkeys(GUARD_NAMES if "all" in said else said, value)
    ethertypes, none = options.pop("ethertypes"), options.pop("no_ethertypes")
    if ethertypes or none:
        wanted["ethertypes"] = ethertypes or []
    for name in ("broadcast_per_s", "multicast_per_s"):
        if (rate := options.pop(name)) is not None:
            wanted[name] = rate
    return wanted or None


def guards_summary(guards: NicGuards) -> str:
    """What a card has otherwise than its switch."""
    said = guards.model_dump(exclude_none=True)
    off = [name for name in GUARD_NAMES if said.get(name) is False]
    on = [name for name in GUARD_NAMES if said.get(name) is True]
    parts = [f"{word}: {', '.join(names)}" for word, names in (("off", off), ("on", on)) if names]
    return "; ".join(parts) or "as the switch"
