"""``inn storage``: policies that disks live under."""

from __future__ import annotations

from typing import Any, get_args

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref, dry_run_option, labels_option, no_labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Compression, Storage
from innkeeper.model.views import Plan

COMPRESSION = click.Choice(get_args(Compression))
LEVEL = click.IntRange(1, 19)


@click.group(cls=VerbGroup, help="Policies that disks live under.")
def storage() -> None:
    """The noun."""


@storage.command("create", cls=InnCommand)
@click.argument("name")
@click.option("--compression", type=COMPRESSION, default="lz4", show_default=True)
@click.option("--level", type=LEVEL, help="Of zstd: 1 is fast, 19 is small; 3 when left out.")
@click.option("--dedup/--no-dedup", default=True, show_default=True, help="Store equal blocks once.")
@labels_option
@dry_run_option
@pass_session
def create(session: Session, /, name: str, labels: dict[str, str], dry_run: bool, **policy: Any) -> None:
    """Make a storage: inn storage create cold --compression zstd --level 12."""
    wish = request(ask.StorageCreate, name=name, labels=labels, **policy)
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
@labels_option
@no_labels_option
@pass_session
def change(session: Session, /, ref: str, labels: dict[str, str], no_labels: bool, **wanted: Any) -> None:
    """Change it; what is written from then on follows the new policy, what is stored stays as it is."""
    changed = session.client.storages.set(
        ref, resources.changes(ask.StorageSet, labels=labels, no_labels=no_labels, **wanted)
    )
    session.done(changed, f"storage {changed.name} changed")


def _columns(_session: Session) -> list[Column[Storage]]:
    return [
        Column("name", lambda one: one.name),
        Column("compression", lambda one: f"{one.compression} {one.level}" if one.level else one.compression),
        Column("dedup", lambda one: one.dedup),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(storage, "storages", _columns)
resources.add_show(storage, "storages")
resources.add_rm(storage, "storages")
