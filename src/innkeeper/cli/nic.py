"""``inn nic``: network cards and their guards."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref, dry_run_option, labels_option
from innkeeper.cli.output import Column
from innkeeper.cli.parse import request
from innkeeper.cli.resources import names
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.switch import changed
from innkeeper.model import requests as ask
from innkeeper.model.resources import Guards, Nic

NIC = Ref("nics")
_GUARDS = tuple(Guards.model_fields)


@click.group(cls=VerbGroup, help="Network cards and their guards.")
def nic() -> None:
    """The noun."""


def _guards_off(guards: Guards) -> str:
    off = [name for name in _GUARDS if not getattr(guards, name)]
    return f"off: {', '.join(off)}" if off else "on"


def _columns(session: Session) -> list[Column[Nic]]:
    guests, switches = names(session, "vms"), names(session, "switches")
    return [
        Column("name", lambda one: one.name),
        Column("vm", lambda one: guests.get(one.vm_id, one.vm_id)),
        Column("switch", lambda one: switches.get(one.switch_id, one.switch_id)),
        Column("mac", lambda one: one.mac),
        Column("address", lambda one: one.address),
        Column("guards", lambda one: _guards_off(one.guards)),
    ]


@nic.command("create", cls=InnCommand)
@click.argument("vm", type=Ref("vms"))
@click.option("--switch", type=Ref("switches"), required=True)
@click.option("--mac")
@click.option("--address", help="Its reserved IPv4 address; a free one is chosen.")
@labels_option
@dry_run_option
@pass_session
def create(session: Session, /, dry_run: bool, **options: Any) -> None:
    """Give a guest another card, running or not: inn nic create web --switch lan."""
    made = session.client.nics.create(request(ask.NicCreate, **options), dry_run=dry_run)
    changed(session, made, f"card {getattr(made, 'name', '')} made")


resources.add_ls(nic, "nics", _columns)
resources.add_show(nic, "nics")


@nic.command("set", cls=InnCommand)
@click.argument("ref", type=NIC)
@click.option("--guard", "on", type=click.Choice([*_GUARDS, "all"]), multiple=True, help="Switch a guard on.")
@click.option("--no-guard", "off", type=click.Choice([*_GUARDS, "all"]), multiple=True, help="Switch a guard off.")
@click.option("--switch", type=Ref("switches"), help="Plug it into another switch.")
@click.option("--address", help="Its reserved IPv4 address.")
@click.option("--extra-address", "extra", multiple=True, help="Further addresses that it may use; all, anew.")
@click.option("--no-extra-addresses", is_flag=True)
@labels_option
@dry_run_option
@pass_session
def change(
    session: Session,
    /,
    ref: str,
    on: tuple[str, ...],
    off: tuple[str, ...],
    switch: str | None,
    address: str | None,
    extra: tuple[str, ...],
    no_extra_addresses: bool,
    labels: dict[str, str],
    dry_run: bool,
) -> None:
    """Change it: inn nic set web-0 --no-guard arp."""
    guards = dict.fromkeys(_GUARDS if "all" in on else on, True)
    guards |= dict.fromkeys(_GUARDS if "all" in off else off, False)
    wish = request(
        ask.NicSet,
        guards=guards or None,
        switch=switch,
        address=address,
        extra_addresses=list(extra) if extra else [] if no_extra_addresses else None,
        labels=labels or None,
    )
    if not wish.model_fields_set:
        raise click.UsageError("say what to change")
    changed(session, session.client.nics.set(ref, wish, dry_run=dry_run), f"card {ref} changed")


@nic.command("rm", cls=InnCommand)
@click.argument("refs", type=NIC, nargs=-1, required=True)
@dry_run_option
@pass_session
def remove(session: Session, refs: tuple[str, ...], dry_run: bool) -> None:
    """Take a card out of its guest."""
    for ref in refs:
        changed(session, session.client.nics.rm(ref, dry_run=dry_run), f"card {ref} removed")
