"""``--vlan`` of cards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from pydantic import ValidationError

from innkeeper.model.vlan import NicVlan, parse_vlan

F = TypeVar("F", bound=Callable[..., Any])


class Vlan(click.ParamType[NicVlan]):
    """A mode and its VLANs, such as ``access:10``."""

    name = "vlan"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> NicVlan:
        if isinstance(value, NicVlan):
            return value
        try:
            return parse_vlan(str(value))
        except ValidationError as wrong:
            self.fail("; ".join(error["msg"].removeprefix("Value error, ") for error in wrong.errors()), param, ctx)
        except ValueError as wrong:
            self.fail(str(wrong), param, ctx)


VLAN = Vlan()


def vlan_option(function: F) -> F:
    """``--vlan``: one card's."""
    return click.option(
        "--vlan",
        type=VLAN,
        metavar="MODE:VLANS",
        help="untagged, access:10, trunk:10,20-30,native=1, isolated:100,101, community:100,102 "
        "or promiscuous:100,101-102.",
    )(function)
