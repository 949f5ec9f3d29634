"""``inn storage``: policies that disks live under."""

from __future__ import annotations

from typing import Any, get_args

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import (
    DURATION,
    SIZE,
    InnCommand,
    Ref,
    dry_run_option,
    given,
    labels_option,
    no_labels_option,
)
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Compression, Storage, Tier
from innkeeper.model.sizes import format_size
from innkeeper.model.views import Plan

COMPRESSION = click.Choice(get_args(Compression))
LEVEL = click.IntRange(1, 19)
TIER = click.Choice(get_args(Tier))
_CLEARED = frozenset({"cold_level", "quota_bytes", "reservation_bytes", "tier", "qos"})


@click.group(cls=VerbGroup, help="Policies that disks live under.")
def storage() -> None:
    """The noun."""


@storage.command("create", cls=InnCommand)
@click.argument("name")
@click.option("--compression", type=COMPRESSION, default="lz4", show_default=True)
@click.option("--level", type=LEVEL, help="Of zstd: 1 is fast, 19 is small; 3 when left out.")
@click.option("--dedup/--no-dedup", default=True, show_default=True, help="Store equal blocks once.")
@click.option("--cold-level", type=LEVEL, help="Pack what was not read for a while with zstd at that level.")
@click.option("--cold-after", "cold_after_s", type=DURATION, help="How long that is, such as 12h or 3d. [default: 3d]")
@click.option("--quota", "quota_bytes", type=SIZE, help="What its disks may hold together, before packing.")
@click.option("--reserve", "reservation_bytes", type=SIZE, help="What is kept free for its disks.")
@click.option("--tier", type=TIER, help="Where its disks' data stays.")
@click.option("--qos", type=Ref("qos"), help="The QoS policy of disks without their own.")
@click.option("--pool", type=Ref("pools"), help="Where its disks are kept. [default: default]")
@labels_option
@dry_run_option
@pass_session
def create(session: Session, /, name: str, labels: dict[str, str], dry_run: bool, **policy: Any) -> None:
    """Make a storage: inn storage create cold --compression zstd --level 12."""
    wish = request(ask.StorageCreate, name=name, labels=labels, **given(**policy))
    made = session.client.storages.create(wish, dry_run=dry_run)
    if isinstance(made, Plan):
        session.show(made)
    else:
        session.done(made, f"storage {made.name} made")


@storage.command("set", cls=InnCommand)
@click.argument("ref", type=Ref("storages"))
@click.option("--name", help="A new name.")
@click.option("--compression", type=COMPRESSION)
@click.option("--level", type=LEVEL, help="Of zstd: 1 is fast, 19 is small.")
@click.option("--dedup/--no-dedup", default=None, help="Store equal blocks once.")
@click.option("--cold-level", type=click.IntRange(0, 19), help="Of data that got cold; 0: it stays as it is.")
@click.option("--cold-after", "cold_after_s", type=DURATION, help="Such as 12h or 3d.")
@click.option("--quota", "quota_bytes", type=SIZE, help="What its disks may hold together; 0: no bound.")
@click.option("--reserve", "reservation_bytes", type=SIZE, help="What is kept free for its disks; 0: nothing.")
@click.option("--tier", type=click.Choice([*get_args(Tier), "none"]), help="Where its disks' data stays.")
@click.option("--qos", type=Ref("qos"), help="The QoS policy of disks without their own; none: none.")
@labels_option
@no_labels_option
@pass_session
def change(session: Session, /, ref: str, labels: dict[str, str], no_labels: bool, **wanted: Any) -> None:
    """Change it: what is written from then on follows at once, what is stored by the curator ('inn pool curate')."""
    wish = resources.changes(ask.StorageSet, labels=labels, no_labels=no_labels, cleared=_CLEARED, **wanted)
    changed = session.client.storages.set(ref, wish)
    session.done(changed, f"storage {changed.name} changed")


def _columns(session: Session) -> list[Column[Storage]]:
    pools = resources.names(session, "pools")
    return [
        Column("name", lambda one: one.name),
        Column("pool", lambda one: pools.get(one.pool_id or "", "")),
        Column("compression", lambda one: f"{one.compression} {one.level}" if one.level else one.compression),
        Column("dedup", lambda one: one.dedup),
        Column("quota", lambda one: format_size(one.quota_bytes) if one.quota_bytes else "", right=True),
        Column("tier", lambda one: one.tier or ""),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(storage, "storages", _columns)
resources.add_show(storage, "storages")
resources.add_rm(storage, "storages")
