"""``inn pool``: where the fabric keeps disks' data."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import SIZE, InnCommand, Ref, labels_option, no_labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Pool
from innkeeper.model.sizes import format_size


@click.group(cls=VerbGroup, help="Where the fabric keeps disks' data.")
def pool() -> None:
    """The noun."""


class _CacheSize(click.ParamType[Any]):
    """A size, or ``auto``."""

    name = "size|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return "auto" if value == "auto" else SIZE.convert(value, param, ctx)


@pool.command("set", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@click.option("--cache", type=_CacheSize(), help="Memory for the content cache; auto: a thirty-second, 1 GiB at most.")
@labels_option
@no_labels_option
@pass_session
def change(session: Session, ref: str, cache: Any, labels: dict[str, str], no_labels: bool) -> None:
    """Change it, at once: inn pool set default --cache 2G."""
    new_labels = {} if no_labels else labels or None
    wish = request(ask.PoolSet, labels=new_labels, cache_bytes=None if cache == "auto" else cache)
    if cache == "auto":
        wish.cache_bytes = None
    if not wish.model_fields_set:
        raise click.UsageError("say what to change")
    changed = session.client.pools.set(ref, wish)
    session.done(changed, f"pool {changed.name} changed")


def _columns(_session: Session) -> list[Column[Pool]]:
    return [
        Column("name", lambda one: one.name),
        Column("cache", lambda one: format_size(one.cache_bytes) if one.cache_bytes else "auto", right=True),
        Column("path", lambda one: one.path),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(pool, "pools", _columns)
resources.add_show(pool, "pools")
