"""``inn storage``: policies that disks live under."""

from __future__ import annotations

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, dry_run_option, labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Storage
from innkeeper.model.views import Plan


@click.group(cls=VerbGroup, help="Policies that disks live under.")
def storage() -> None:
    """The noun."""


@storage.command("create", cls=InnCommand)
@click.argument("name")
@click.option("--compression", type=click.Choice(["off", "lz4"]), default="lz4", show_default=True)
@click.option("--dedup/--no-dedup", default=True, show_default=True, help="Store equal blocks once.")
@labels_option
@dry_run_option
@pass_session
def create(session: Session, name: str, compression: str, dedup: bool, labels: dict[str, str], dry_run: bool) -> None:
    """Make a storage."""
    wish = request(ask.StorageCreate, name=name, compression=compression, dedup=dedup, labels=labels)
    made = session.client.storages.create(wish, dry_run=dry_run)
    if isinstance(made, Plan):
        session.show(made)
    else:
        session.done(made, f"storage {made.name} made")


def _columns(_session: Session) -> list[Column[Storage]]:
    return [
        Column("name", lambda one: one.name),
        Column("compression", lambda one: one.compression),
        Column("dedup", lambda one: one.dedup),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(storage, "storages", _columns)
resources.add_show(storage, "storages")
resources.add_set(storage, "storages")
resources.add_rm(storage, "storages")
