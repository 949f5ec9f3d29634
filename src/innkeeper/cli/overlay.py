"""``inn switch record`` and ``route``: what a virtual switch knows of other hosts; and the options of its overlay."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref, dry_run_option
from innkeeper.cli.output import Column
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.overlay import CustomerRoute, LookupRecord, Overlay, OverlaySet
from innkeeper.model.problems import Invalid, NotFound
from innkeeper.model.views import Plan, SwitchDetail

SWITCH = Ref("switches")
_MEMBERS = {
    "vni": "vni",
    "provider": "provider_address",
    "encapsulation": "encapsulation",
    "routing_domain": "routing_domain",
    "gateway": "gateway",
}
"""Option -> member of the overlay."""
_provider = click.option("--provider", metavar="ADDRESS", help="This host's address, by which other hosts reach it.")
_gateway = click.option("--gateway/--no-gateway", default=None, help="Guests of a virtual switch have a way out.")
C = TypeVar("C", bound=Callable[..., Any])


def create_options(command: C) -> C:
    """The options of ``inn switch create`` that describe an overlay."""
    for option in reversed(
        [
            click.option("--vni", type=click.IntRange(4096, 16_777_214), help="The virtual network's identifier."),
            _provider,
            click.option("--encapsulation", type=click.Choice(["vxlan", "nvgre"]), help="[default: vxlan]"),
            click.option("--routing-domain", help="The tenant it belongs to. [default: one of its own]"),
            _gateway,
        ]
    ):
        command = option(command)
    return command


def set_options(command: C) -> C:
    """The options of ``inn switch set`` that change an overlay."""
    return _provider(_gateway(command))


def gathered(options: dict[str, Any]) -> dict[str, Any]:
    """``options`` with those of the overlay in a member of their own, when one was given."""
    members = {_MEMBERS[name]: value for name, value in options.items() if name in _MEMBERS and value is not None}
    rest = {name: value for name, value in options.items() if name not in _MEMBERS}
    return {**rest, "overlay": members} if members else rest


def overlay_of(session: Session, ref: str) -> tuple[SwitchDetail, Overlay]:
    """The switch and its overlay. Raises ``Invalid`` (``switch.overlay``) when it has none."""
    found = session.client.switches.show(ref)
    if found.overlay is None:
        raise Invalid(
            "switch.overlay",
            f"switch {found.name!r} is {found.switch_kind}: it has no other hosts",
            remedy="make a switch with --kind virtual --vni N --provider ADDRESS",
        )
    return found, found.overlay


def replace(session: Session, found: SwitchDetail, change: OverlaySet, message: str, *, dry_run: bool) -> None:
    """Send ``change``, refused when somebody else changed the switch since it was read."""
    wish = request(ask.SwitchSet, overlay=change)
    result = session.client.switches.set(found.id, wish, revision=found.revision, dry_run=dry_run)
    if isinstance(result, Plan):
        session.show(result)
    else:
        session.done(result, message)


@click.group("record", cls=VerbGroup, help="Lookup records: which guests are on other hosts.")
def record() -> None:
    """The noun."""


@record.command("add", cls=InnCommand)
@click.argument("ref", metavar="SWITCH", type=SWITCH)
@click.argument("customer_address")
@click.argument("mac")
@click.argument("provider_address")
@dry_run_option
@pass_session
def add(session: Session, /, ref: str, dry_run: bool, **members: str) -> None:
    """Say where a guest is; one with that address is replaced: inn switch record add red 10.5.0.7 52:54:00:00:00:07
    192.0.2.8."""
    wish = request(LookupRecord, **members)
    found, overlay = overlay_of(session, ref)
    others = [one for one in overlay.records if one.customer_address != wish.customer_address]
    message = f"{wish.customer_address} is behind {wish.provider_address}"
    replace(session, found, OverlaySet(records=[*others, wish]), message, dry_run=dry_run)


@record.command("rm", cls=InnCommand)
@click.argument("ref", metavar="SWITCH", type=SWITCH)
@click.argument("customer_addresses", nargs=-1, required=True)
@dry_run_option
@pass_session
def remove(session: Session, ref: str, customer_addresses: tuple[str, ...], dry_run: bool) -> None:
    """Forget where guests are."""
    found, overlay = overlay_of(session, ref)
    for address in customer_addresses:
        if address not in (one.customer_address for one in overlay.records):
            raise NotFound(
                "switch.record_not_found",
                f"switch {found.name!r} has no lookup record of {address}",
                remedy=f"inn switch record ls {found.name} shows those it has",
            )
    rest = [one for one in overlay.records if one.customer_address not in customer_addresses]
    replace(session, found, OverlaySet(records=rest), f"{len(customer_addresses)} records removed", dry_run=dry_run)


@record.command("ls", cls=InnCommand)
@click.argument("ref", metavar="SWITCH", type=SWITCH)
@click.option("--own", is_flag=True, help="Those of this host's cards, for the other hosts.")
@pass_session
def ls(session: Session, ref: str, own: bool) -> None:
    """List what it knows of guests on other hosts."""
    found, overlay = overlay_of(session, ref)
    rows: Iterable[LookupRecord] = found.own_records if own else overlay.records
    columns: list[Column[LookupRecord]] = [
        Column("customer address", lambda one: one.customer_address),
        Column("mac", lambda one: one.mac),
        Column("provider address", lambda one: one.provider_address),
    ]
    session.table(columns, sorted(rows, key=lambda one: one.customer_address))


@click.group("route", cls=VerbGroup, help="Customer routes: what a virtual switch's gateway sends on to a guest.")
def route() -> None:
    """The noun."""


@route.command("add", cls=InnCommand)
@click.argument("ref", metavar="SWITCH", type=SWITCH)
@click.argument("prefix")
@click.argument("next_hop")
@click.option("--metric", type=click.IntRange(0, 999_999), help="The least wins. [default: 0]")
@dry_run_option
@pass_session
def add_route(session: Session, /, ref: str, dry_run: bool, **members: Any) -> None:
    """Send a prefix to a guest that routes: inn switch route add red 10.9.0.0/16 10.5.0.7."""
    wish = request(CustomerRoute, **members)
    found, overlay = overlay_of(session, ref)
    others = [one for one in overlay.routes if (one.prefix, one.metric) != (wish.prefix, wish.metric)]
    message = f"{wish.prefix} goes to {wish.next_hop}"
    replace(session, found, OverlaySet(routes=[*others, wish]), message, dry_run=dry_run)


@route.command("rm", cls=InnCommand)
@click.argument("ref", metavar="SWITCH", type=SWITCH)
@click.argument("prefix")
@click.option("--metric", type=click.IntRange(0, 999_999), help="Only the route with this one.")
@dry_run_option
@pass_session
def remove_route(session: Session, /, ref: str, prefix: str, metric: int | None, dry_run: bool) -> None:
    """Forget the routes of a prefix."""
    found, overlay = overlay_of(session, ref)
    rest = [one for one in overlay.routes if one.prefix != prefix or metric not in (None, one.metric)]
    if len(rest) == len(overlay.routes):
        raise NotFound(
            "switch.route_not_found",
            f"switch {found.name!r} has no such customer route of {prefix}",
            remedy=f"inn switch route ls {found.name} shows those it has",
        )
    replace(session, found, OverlaySet(routes=rest), f"{prefix} has no route", dry_run=dry_run)


@route.command("ls", cls=InnCommand)
@click.argument("ref", metavar="SWITCH", type=SWITCH)
@pass_session
def ls_routes(session: Session, ref: str) -> None:
    """List its customer routes."""
    columns: list[Column[CustomerRoute]] = [
        Column("prefix", lambda one: one.prefix),
        Column("next hop", lambda one: one.next_hop),
        Column("metric", lambda one: one.metric, right=True),
    ]
    session.table(columns, sorted(overlay_of(session, ref)[1].routes, key=lambda one: (one.prefix, one.metric)))
