"""``inn qos``: what disks may take of the pool, and what they are sure of."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import SIZE, InnCommand, Ref, dry_run_option, given, labels_option, no_labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Qos
from innkeeper.model.sizes import format_size
from innkeeper.model.views import Plan

_BOUNDS = frozenset({"max_iops", "min_iops", "max_bytes_per_s", "min_bytes_per_s"})
IOPS = click.IntRange(0, 10**9)
BURST = click.FloatRange(0.05, 3600)


@click.group(cls=VerbGroup, help="QoS policies: what disks may take, and what they are sure of.")
def qos() -> None:
    """The noun."""


@qos.command("create", cls=InnCommand)
@click.argument("name")
@click.option("--max-iops", type=IOPS, help="Normalised I/Os a second: every 8 KiB of a request is one.")
@click.option("--min-iops", type=IOPS, help="What a disk is sure of when the pool is saturated.")
@click.option("--max-bandwidth", "max_bytes_per_s", type=SIZE, help="Bytes a second, such as 100M.")
@click.option("--min-bandwidth", "min_bytes_per_s", type=SIZE, help="The same in bytes a second, such as 20M.")
@click.option("--burst", "burst_s", type=BURST, help="Seconds of a maximum that may be saved up; 1 when left out.")
@click.option("--aggregated", is_flag=True, help="Its disks share the bounds; else each has them for itself.")
@labels_option
@dry_run_option
@pass_session
def create(session: Session, /, name: str, labels: dict[str, str], dry_run: bool, **policy: Any) -> None:
    """Make a policy: inn qos create silver --max-iops 2000 --min-iops 200."""
    wish = request(ask.QosCreate, name=name, labels=labels, **given(**policy))
    made = session.client.qos.create(wish, dry_run=dry_run)
    if isinstance(made, Plan):
        session.show(made)
    else:
        session.done(made, f"QoS policy {made.name} made")


@qos.command("set", cls=InnCommand)
@click.argument("ref", type=Ref("qos"))
@click.option("--name", help="A new name.")
@click.option("--max-iops", type=IOPS, help="Normalised I/Os a second; 0: no bound.")
@click.option("--min-iops", type=IOPS, help="0: none.")
@click.option("--max-bandwidth", "max_bytes_per_s", type=SIZE, help="Bytes a second; 0: no bound.")
@click.option("--min-bandwidth", "min_bytes_per_s", type=SIZE, help="0: none.")
@click.option("--burst", "burst_s", type=BURST, help="Seconds of a maximum that may be saved up.")
@click.option("--aggregated/--dedicated", default=None, help="Whether its disks share the bounds.")
@labels_option
@no_labels_option
@pass_session
def change(session: Session, /, ref: str, labels: dict[str, str], no_labels: bool, **wanted: Any) -> None:
    """Change it, at once."""
    wish = resources.changes(ask.QosSet, labels=labels, no_labels=no_labels, cleared=_BOUNDS, **wanted)
    changed = session.client.qos.set(ref, wish)
    session.done(changed, f"QoS policy {changed.name} changed")


def _rate(bytes_per_s: int | None) -> str:
    return f"{format_size(bytes_per_s)}/s" if bytes_per_s else ""


def _columns(_session: Session) -> list[Column[Qos]]:
    return [
        Column("name", lambda one: one.name),
        Column("max iops", lambda one: one.max_iops or "", right=True),
        Column("min iops", lambda one: one.min_iops or "", right=True),
        Column("max bandwidth", lambda one: _rate(one.max_bytes_per_s), right=True),
        Column("min bandwidth", lambda one: _rate(one.min_bytes_per_s), right=True),
        Column("for", lambda one: "all its disks" if one.aggregated else "each disk"),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(qos, "qos", _columns)
resources.add_show(qos, "qos")
resources.add_rm(qos, "qos")
