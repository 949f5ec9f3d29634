"""``inn host firewall``: what of the host is reached from outside."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import DURATION, InnCommand, dry_run_option
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.views import FirewallView, Plan


@click.group("firewall", cls=VerbGroup, help="What of the host is reached from outside; all of it unless enabled.")
def firewall() -> None:
    """The noun."""


@firewall.command("show", cls=InnCommand)
@pass_session
def show(session: Session) -> None:
    """What holds, what waits to be confirmed, and how many packets were dropped."""
    session.show(session.client.firewall.show())


@firewall.command("set", cls=InnCommand)
@click.option("--enabled/--disabled", default=None, help="Drop what is not allowed, or let everything in.")
@click.option(
    "--management",
    multiple=True,
    metavar="INTERFACE|SWITCH|PREFIX[%INTERFACE]",
    help="From where everything is reached: eth1, 192.168.7.0/28, 192.168.7.0/28%eth1; all of it, anew.",
)
@click.option("--no-management", is_flag=True, help="Take it all away.")
@click.option(
    "--allow",
    multiple=True,
    metavar="PROTOCOL[/PORT[-PORT]][@PREFIX][%INTERFACE]",
    help="What is reached from elsewhere: tcp/22@192.168.7.0/24, udp/8000-8100%eth0, icmp; all of it, anew.",
)
@click.option("--no-allow", is_flag=True, help="Take it all away.")
@click.option("--echo/--no-echo", default=None, help="Answer pings from everywhere. [default: echo]")
@click.option(
    "--confirm-within",
    "confirm_within_s",
    type=DURATION,
    metavar="TIME",
    help="Take the change back unless 'inn host firewall confirm' comes within it. [default: 30s]",
)
@dry_run_option
@pass_session
def change(
    session: Session,
    /,
    management: tuple[str, ...],
    no_management: bool,
    allow: tuple[str, ...],
    no_allow: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Change it: inn host firewall set --enabled --management eth1 --allow tcp/443."""
    wish = request(
        ask.HostFirewallSet,
        management=list(management) if management or no_management else None,
        allow=list(allow) if allow or no_allow else None,
        **options,
    )
    if not wish.model_fields_set - {"confirm_within_s"}:
        raise click.UsageError("say what to change")
    made = session.client.firewall.set(wish, dry_run=dry_run)
    if isinstance(made, Plan):
        session.show(made)
        return
    _tell(session, made, "the host's firewall is changed")
    if made.trial is not None:
        session.say(
            f"it is taken back in {wish.confirm_within_s:g} s, unless you confirm that the host is reached, "
            "by a new connection: inn host firewall confirm"
        )


@firewall.command("confirm", cls=InnCommand)
@pass_session
def confirm(session: Session) -> None:
    """Keep the last change; without, it is taken back."""
    _tell(session, session.client.firewall.confirm(), "the host's firewall stays so")


def _tell(session: Session, made: FirewallView, message: str) -> None:
    """What it came to: all of it for programs, a message and what is odd about it for people."""
    if session.format == "json":
        session.show(made)
        return
    session.say(message)
    for finding in made.findings:
        session.say(f"note: {finding}")
