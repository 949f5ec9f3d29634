"""Whether minimums of bandwidth can be kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from innkeeper.model.problems import Conflict, Invalid
from innkeeper.model.resources import Nic, Switch, SwitchKind
from innkeeper.model.traffic import NicTraffic


def check_minimums(switch: Switch, cards: Mapping[str, NicTraffic]) -> None:
    """``cards`` are all of the switch by name, running or not: a guest that starts must find its minimum free.

    Raises ``Invalid`` (``nic.minimum``), ``Conflict`` (``nic.minimum_kinds``, ``nic.minimum_exceeds``).
    """
    weights = {name: one.min_weight for name, one in cards.items() if one.min_weight is not None}
    rates = {name: one.min_out_bits_per_s for name, one in cards.items() if one.min_out_bits_per_s is not None}
    if not weights and not rates:
        return
    first = min([*weights, *rates])
    back = f"take it back: inn nic set {first} --min-weight 0 --min-out 0"
    if switch.switch_kind != SwitchKind.EXTERNAL:
        raise Invalid(
            "nic.minimum",
            f"nic {first!r} cannot have a minimum on switch {switch.name!r}",
            cause=f"it is {switch.switch_kind}: only an external switch has an uplink of its own that cards share",
            remedy=f"plug the card into an external switch, bound the others (--max-out), or {back}",
        )
    rate = switch.uplink_rate_bits_per_s
    if rate is None:
        raise Invalid(
            "nic.minimum",
            f"nic {first!r} cannot have a minimum: what the uplink of switch {switch.name!r} carries is not known",
            remedy=f"say it, a little below what the line carries: inn switch set {switch.name} --uplink-rate 950M",
        )
    if weights and rates:
        raise Conflict(
            "nic.minimum_kinds",
            f"switch {switch.name!r} would have minimums by weight and by rate",
            cause=f"{min(weights)} has a weight, {min(rates)} a rate",
            remedy="give all cards of a switch one or the other",
        )
    if (total := sum(rates.values())) > rate:
        named = ", ".join(f"{name} {each:,}" for name, each in sorted(rates.items())[:5])
        raise Conflict(
            "nic.minimum_exceeds",
            f"the minimums of switch {switch.name!r} come to {total:,} bit/s, its uplink carries {rate:,}",
            cause=named + (f" and {len(rates) - 5} more" if len(rates) > 5 else ""),
            remedy="lower one of them, or use weights, which share what there is",
        )


def check_rate(switch: Switch, nics: Iterable[Nic]) -> None:
    """Whether the rate of the switch's uplink, if one is told, carries its cards' minimums.

    Raises ``Invalid`` (``switch.not_external``), and what ``check_minimums`` does.
    """
    if switch.uplink_rate_bits_per_s is None:
        return
    if switch.switch_kind != SwitchKind.EXTERNAL:
        raise Invalid(
            "switch.not_external",
            f"switch {switch.name!r} is {switch.switch_kind}: it has no uplink whose rate could be told",
            remedy="leave --uplink-rate out",
        )
    check_minimums(switch, {nic.name: nic.traffic for nic in nics})
