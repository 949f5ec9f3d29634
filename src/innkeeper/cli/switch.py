"""``inn switch``: virtual switches and their port forwards."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref, dry_run_option, labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Switch
from innkeeper.model.views import Plan

SWITCH = Ref("switches")


@click.group(cls=VerbGroup, help="Virtual switches.")
def switch() -> None:
    """The noun."""


def changed(session: Session, result: Any, message: str) -> None:
    """Print what became of a network change, or its plan."""
    if isinstance(result, Plan):
        session.show(result)
    else:
        session.done(result, message)


def forward(text: str) -> dict[str, Any]:
    """A port forward written ``[tcp:|udp:][ADDRESS:]HOSTPORT=VM:PORT``."""
    outside, equals, inside = text.partition("=")
    guest, colon, guest_port = inside.rpartition(":")
    *front, host_port = outside.split(":")
    protocol = front.pop(0) if front and front[0] in ("tcp", "udp") else "tcp"
    if not equals or not colon or not host_port.isdigit() or not guest_port.isdigit() or len(front) > 1:
        raise click.BadParameter(f"{text!r} is not like 8080=web:80 or udp:192.0.2.1:53=dns:53", param_hint="--forward")
    made = {"protocol": protocol, "host_port": int(host_port), "vm": guest, "guest_port": int(guest_port)}
    return {**made, "host_address": front[0]} if front else made


@switch.command("create", cls=InnCommand)
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["nat", "internal", "private"]),
    default="nat",
    show_default=True,
    help="private: guests only; internal: and the host; nat: and out through the host.",
)
@click.option("--subnet", help="IPv4, such as 10.20.0.0/24; a free one is chosen.")
@click.option("--dhcp/--no-dhcp", default=True, show_default=True)
@click.option("--dns-domain", help="Guests are NAME.DOMAIN. [default: inn]")
@click.option("--mtu", type=click.IntRange(1280, 9216))
@labels_option
@dry_run_option
@pass_session
def create(session: Session, /, dry_run: bool, **options: Any) -> None:
    """Make a switch: inn switch create lan."""
    wish = request(ask.SwitchCreate, **options)
    changed(session, session.client.switches.create(wish, dry_run=dry_run), f"switch {wish.name} made")


def _columns(_session: Session) -> list[Column[Switch]]:
    return [
        Column("name", lambda one: one.name),
        Column("kind", lambda one: one.switch_kind.value),
        Column("subnet", lambda one: one.subnet),
        Column("gateway", lambda one: one.gateway),
        Column("dhcp", lambda one: one.dhcp),
        Column("forwards", lambda one: len(one.forwards), right=True),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(switch, "switches", _columns)
resources.add_show(switch, "switches")


@switch.command("set", cls=InnCommand)
@click.argument("ref", type=SWITCH)
@click.option("--name", help="A new name.")
@click.option("--dhcp/--no-dhcp", default=None)
@click.option("--dns-domain")
@click.option("--mtu", type=click.IntRange(1280, 9216))
@click.option(
    "--forward", "forwards", multiple=True, metavar="[udp:][ADDRESS:]PORT=VM:PORT", help="All forwards, anew."
)
@click.option("--no-forwards", is_flag=True, help="Take all forwards away.")
@labels_option
@dry_run_option
@pass_session
def change(
    session: Session,
    /,
    ref: str,
    forwards: tuple[str, ...],
    no_forwards: bool,
    labels: dict[str, str],
    dry_run: bool,
    **options: Any,
) -> None:
    """Change it: inn switch set lan --forward 8080=web:80."""
    wanted = [forward(text) for text in forwards] if forwards else [] if no_forwards else None
    wish = request(ask.SwitchSet, forwards=wanted, labels=labels or None, **options)
    if not wish.model_fields_set:
        raise click.UsageError("say what to change")
    changed(session, session.client.switches.set(ref, wish, dry_run=dry_run), f"switch {ref} changed")


@switch.command("rm", cls=InnCommand)
@click.argument("refs", type=SWITCH, nargs=-1, required=True)
@dry_run_option
@pass_session
def remove(session: Session, refs: tuple[str, ...], dry_run: bool) -> None:
    """Remove it; refused while it has cards."""
    for ref in refs:
        changed(session, session.client.switches.rm(ref, dry_run=dry_run), f"switch {ref} removed")
