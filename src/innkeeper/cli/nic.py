"""``inn nic``: network cards and their guards."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli import output, resources
from innkeeper.cli.guards import guard_options, guards_summary, take_guards
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.nic_acl import acl
from innkeeper.cli.options import InnCommand, Ref, dry_run_option, labels_option
from innkeeper.cli.output import Column
from innkeeper.cli.parse import request
from innkeeper.cli.resources import names
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.switch import changed
from innkeeper.cli.traffic import summary, take_traffic, traffic_options
from innkeeper.cli.vlan import vlan_option
from innkeeper.model import requests as ask
from innkeeper.model.metering import MeterCount
from innkeeper.model.resources import Nic
from innkeeper.model.vlan import NicVlan

NIC = Ref("nics")


@click.group(cls=VerbGroup, help="Network cards and their guards.")
def nic() -> None:
    """The noun."""


nic.add_command(acl)


def _columns(session: Session) -> list[Column[Nic]]:
    guests, switches = names(session, "vms"), names(session, "switches")
    return [
        Column("name", lambda one: one.name),
        Column("vm", lambda one: guests.get(one.vm_id, one.vm_id)),
        Column("switch", lambda one: switches.get(one.switch_id, one.switch_id)),
        Column("mac", lambda one: one.mac),
        Column("address", lambda one: one.address),
        Column("guards", lambda one: guards_summary(one.guards)),
        Column("vlan", lambda one: str(one.vlan)),
        Column("max in/out", lambda one: summary(one.traffic)),
    ]


@nic.command("create", cls=InnCommand)
@click.argument("vm", type=Ref("vms"))
@click.option("--switch", type=Ref("switches"), required=True)
@click.option("--mac")
@click.option("--address", help="Its reserved IPv4 address; a free one is chosen.")
@click.option("--address6", help="Its IPv6 address, in place of the one that is made of its mac.")
@click.option("--mtu", type=click.IntRange(1280, 9216), help="Less than the switch's.")
@click.option("--static", is_flag=True, help="The guest gets it through cloud-init, not by DHCP.")
@guard_options
@vlan_option
@traffic_options
@labels_option
@dry_run_option
@pass_session
def create(session: Session, /, dry_run: bool, **options: Any) -> None:
    """Give a guest another card, running or not: inn nic create web --switch lan."""
    wish = request(ask.NicCreate, guards=take_guards(options), traffic=take_traffic(options), **options)
    made = session.client.nics.create(wish, dry_run=dry_run)
    changed(session, made, f"card {getattr(made, 'name', '')} made")


resources.add_ls(nic, "nics", _columns)
resources.add_show(nic, "nics")


@nic.command("set", cls=InnCommand)
@click.argument("ref", type=NIC)
@guard_options
@click.option("--switch", type=Ref("switches"), help="Plug it into another switch.")
@click.option("--address", help="Its reserved IPv4 address.")
@click.option("--address6", help="Its IPv6 address.")
@click.option("--mtu", type=int, help="Less than the switch's; 0: the switch's.")
@click.option("--static/--no-static", default=None, help="The guest gets it through cloud-init, not by DHCP.")
@click.option("--extra-address", "extra", multiple=True, help="Further addresses that it may use; all, anew.")
@click.option("--no-extra-addresses", is_flag=True)
@click.option("--extra-mac", "extra_macs", multiple=True, help="Further macs that it may use (VRRP); all, anew.")
@click.option("--no-extra-macs", is_flag=True)
@vlan_option
@traffic_options
@labels_option
@dry_run_option
@pass_session
def change(
    session: Session,
    /,
    ref: str,
    switch: str | None,
    address: str | None,
    address6: str | None,
    mtu: int | None,
    static: bool | None,
    extra: tuple[str, ...],
    no_extra_addresses: bool,
    extra_macs: tuple[str, ...],
    no_extra_macs: bool,
    vlan: NicVlan | None,
    labels: dict[str, str],
    dry_run: bool,
    **options: Any,
) -> None:
    """Change it: inn nic set web-0 --no-guard arp."""
    wish = request(
        ask.NicSet,
        guards=take_guards(options),
        switch=switch,
        address=address,
        address6=address6,
        mtu=mtu,
        static=static,
        extra_addresses=list(extra) if extra else [] if no_extra_addresses else None,
        extra_macs=list(extra_macs) if extra_macs else [] if no_extra_macs else None,
        labels=labels or None,
        traffic=take_traffic(options),
        vlan=vlan,
    )
    if not wish.model_fields_set:
        raise click.UsageError("say what to change")
    changed(session, session.client.nics.set(ref, wish, dry_run=dry_run), f"card {ref} changed")


@nic.command("meter", cls=InnCommand)
@click.argument("ref", type=NIC)
@click.option("--reset", is_flag=True, help="Begin at zero.")
@pass_session
def meter(session: Session, ref: str, reset: bool) -> None:
    """What passed between it and the prefixes of its meters: inn nic meter web-0."""
    report = session.client.nics.reset_meters(ref) if reset else session.client.nics.meters(ref)
    if session.format == "json":
        session.show(report)
        return
    columns: list[Column[MeterCount]] = [
        Column("remote", lambda one: one.remote),
        Column("direction", lambda one: one.direction),
        Column("packets", lambda one: one.packets, right=True),
        Column("bytes", lambda one: one.bytes, right=True),
    ]
    output.table(columns, report.counts)
    session.say(f"{report.nic_name}: since {report.since:%Y-%m-%d %H:%M:%S} UTC")


@nic.command("rm", cls=InnCommand)
@click.argument("refs", type=NIC, nargs=-1, required=True)
@dry_run_option
@pass_session
def remove(session: Session, refs: tuple[str, ...], dry_run: bool) -> None:
    """Take a card out of its guest."""
    for ref in refs:
        changed(session, session.client.nics.rm(ref, dry_run=dry_run), f"card {ref} removed")
