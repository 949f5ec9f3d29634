"""``inn switch``: virtual switches and their port forwards."""

from __future__ import annotations

import re
from typing import Any, get_args

import click

from innkeeper.cli import overlay, resources
from innkeeper.cli.devices import CARDS
from innkeeper.cli.dhcp import dhcp_options, take_dhcp
from innkeeper.cli.guards import guard_options, take_guards
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import DURATION, F, InnCommand, Ref, dry_run_option, labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.tracing import simulate
from innkeeper.cli.traffic import RATE
from innkeeper.model import requests as ask
from innkeeper.model.resources import Switch
from innkeeper.model.uplink import TeamMode
from innkeeper.model.views import Plan

SWITCH = Ref("switches")


@click.group(cls=VerbGroup, help="Virtual switches.")
def switch() -> None:
    """The noun."""


switch.add_command(simulate)


def changed(session: Session, result: Any, message: str) -> None:
    """Print what became of a network change, or its plan."""
    if isinstance(result, Plan):
        session.show(result)
    else:
        session.done(result, message)


def uplink_options(function: F) -> F:
    """``--uplink`` and what goes with it."""
    for decorate in (
        click.option(
            "--confirm-within",
            "confirm_within_s",
            type=DURATION,
            metavar="TIME",
            help="Give the host's network back unless 'inn switch confirm' comes within it. [default: 30s]",
        ),
        click.option(
            "--uplink-rate",
            "uplink_rate_bits_per_s",
            type=RATE,
            help="What it carries, such as 1G bits a second: minimums of cards are parts of it.",
        ),
        click.option("--team", type=click.Choice(get_args(TeamMode)), help="How several uplinks work together."),
        click.option(
            "--uplink", "uplinks", type=CARDS, multiple=True, metavar="CARD[,CARD]", help="The host's card it takes."
        ),
    ):
        function = decorate(function)
    return function


host_services_option = click.option(
    "--host-service",
    "host_services",
    multiple=True,
    metavar="PROTOCOL[/PORT[-PORT]][@PREFIX]",
    help="What guests may use of the host beside DHCP and DNS: tcp/3142, tcp/22@10.77.0.0/28, icmp; all of them, anew.",
)


def cards(texts: tuple[str, ...]) -> list[str] | None:
    """The cards of ``--uplink eth0,eth1``, also given one by one."""
    return [name for text in texts for name in text.split(",")] or None


def ask_to_confirm(session: Session, result: Any) -> None:
    """Say what has to be done soon where the host's network has moved."""
    if isinstance(result, Switch) and result.uplink is not None and result.uplink.state == "pending":
        session.say(
            f"the host's network has moved to it and comes back in {result.uplink.confirm_within_s:g} s, "
            f"unless you confirm that the host is reached: inn switch confirm {result.name}"
        )


_FORWARD = re.compile(r"(?:(tcp|udp):)?(?:(\[[0-9A-Fa-f:]+\]|[0-9.]+):)?(\d+)=([^:=]+):(\d+)")


def forward(text: str) -> dict[str, Any]:
    """A port forward written ``[tcp:|udp:][ADDRESS:]HOSTPORT=VM:PORT``; an IPv6 address is in brackets."""
    match = _FORWARD.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not like 8080=web:80 or udp:192.0.2.1:53=dns:53", param_hint="--forward")
    protocol, address, host_port, guest, guest_port = match.groups()
    made = {"protocol": protocol or "tcp", "host_port": int(host_port), "vm": guest, "guest_port": int(guest_port)}
    return {**made, "host_address": address.strip("[]")} if address else made


@switch.command("create", cls=InnCommand)
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["nat", "internal", "private", "external", "virtual"]),
    default="nat",
    show_default=True,
    help="private: guests only; internal: and the host; nat: and out through the host; external: on its network; "
    "virtual: guests only, on other hosts too.",
)
@click.option("--subnet", help="IPv4, such as 10.20.0.0/24; a free one is chosen.")
@click.option(
    "--subnet6", metavar="PREFIX|auto|none", help="An IPv6 /64, such as fd00:77::/64; auto: a free one is chosen."
)
@click.option(
    "--ra-mode", type=click.Choice(["managed", "slaac"]), help="Guests' IPv6 addresses: by DHCPv6, or their own."
)
@click.option("--dhcp/--no-dhcp", default=True, show_default=True)
@click.option("--dns-domain", help="Guests are NAME.DOMAIN. [default: inn]")
@click.option("--mtu", type=click.IntRange(1280, 9216), help="[default: 1500, or the uplink's]")
@host_services_option
@guard_options
@uplink_options
@dhcp_options
@overlay.create_options
@labels_option
@dry_run_option
@pass_session
def create(
    session: Session,
    /,
    dry_run: bool,
    uplinks: tuple[str, ...],
    host_services: tuple[str, ...],
    **options: Any,
) -> None:
    """Make a switch: inn switch create lan."""
    settings = take_dhcp(options)
    said = {name: value for name, value in (take_guards(options) or {}).items() if value is not None}
    wish = request(
        ask.SwitchCreate,
        guards=said or None,
        dhcp_settings=settings,
        uplinks=cards(uplinks),
        host_services=list(host_services) or None,
        **overlay.gathered(options),
    )
    made = session.client.switches.create(wish, dry_run=dry_run)
    changed(session, made, f"switch {wish.name} made")
    ask_to_confirm(session, made)


@switch.command("confirm", cls=InnCommand)
@click.argument("ref", type=SWITCH)
@pass_session
def confirm(session: Session, ref: str) -> None:
    """Keep the host's network on it; without, the card gets it back."""
    session.done(session.client.switches.confirm(ref), f"switch {ref} keeps its uplink")


def _columns(_session: Session) -> list[Column[Switch]]:
    return [
        Column("name", lambda one: one.name),
        Column("kind", lambda one: one.switch_kind.value),
        Column("subnet", lambda one: one.subnet),
        Column("uplink", lambda one: one.uplink.devices if one.uplink and one.uplink.state != "returned" else None),
        Column("subnet6", lambda one: one.subnet6),
        Column("gateway", lambda one: one.gateway),
        Column("dhcp", lambda one: one.dhcp),
        Column("forwards", lambda one: len(one.forwards), right=True),
        Column("age", lambda one: ago(one.created_at)),
    ]


switch.add_command(overlay.record)
switch.add_command(overlay.route)
resources.add_ls(switch, "switches", _columns)
resources.add_show(switch, "switches")


@switch.command("set", cls=InnCommand)
@click.argument("ref", type=SWITCH)
@click.option("--name", help="A new name.")
@click.option(
    "--subnet6", metavar="PREFIX|auto|none", help="An IPv6 /64, such as fd00:77::/64; auto: a free one is chosen."
)
@click.option(
    "--ra-mode", type=click.Choice(["managed", "slaac"]), help="Guests' IPv6 addresses: by DHCPv6, or their own."
)
@click.option("--dhcp/--no-dhcp", default=None)
@click.option("--dns-domain")
@click.option("--mtu", type=click.IntRange(1280, 9216))
@click.option(
    "--forward", "forwards", multiple=True, metavar="[udp:][ADDRESS:]PORT=VM:PORT", help="All forwards, anew."
)
@click.option("--no-forwards", is_flag=True, help="Take all forwards away.")
@host_services_option
@click.option("--no-host-services", is_flag=True, help="Take them all away.")
@guard_options
@dhcp_options
@uplink_options
@overlay.set_options
@labels_option
@dry_run_option
@pass_session
def change(
    session: Session,
    /,
    ref: str,
    forwards: tuple[str, ...],
    no_forwards: bool,
    host_services: tuple[str, ...],
    no_host_services: bool,
    uplinks: tuple[str, ...],
    labels: dict[str, str],
    dry_run: bool,
    **options: Any,
) -> None:
    """Change it: inn switch set lan --forward 8080=web:80."""
    wanted = [forward(text) for text in forwards] if forwards else [] if no_forwards else None
    wish = request(
        ask.SwitchSet,
        forwards=wanted,
        host_services=list(host_services) if host_services or no_host_services else None,
        labels=labels or None,
        guards=take_guards(options),
        dhcp_settings=take_dhcp(options),
        uplinks=cards(uplinks),
        **overlay.gathered(options),
    )
    if not wish.model_fields_set:
        raise click.UsageError("say what to change")
    made = session.client.switches.set(ref, wish, dry_run=dry_run)
    changed(session, made, f"switch {ref} changed")
    ask_to_confirm(session, made)


@switch.command("rm", cls=InnCommand)
@click.argument("refs", type=SWITCH, nargs=-1, required=True)
@dry_run_option
@pass_session
def remove(session: Session, refs: tuple[str, ...], dry_run: bool) -> None:
    """Remove it; refused while it has cards."""
    for ref in refs:
        changed(session, session.client.switches.rm(ref, dry_run=dry_run), f"switch {ref} removed")
