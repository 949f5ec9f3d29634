"""``inn pool``: where the fabric keeps disks' data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from innkeeper.cli import resources
from innkeeper.cli.keys import keys_around, keys_in
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import SIZE, InnCommand, Ref, detach_option, dry_run_option, labels_option, no_labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.progress import settle
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Pool, Tier
from innkeeper.model.sizes import format_size
from innkeeper.model.views import HotGroup, Plan


@click.group(cls=VerbGroup, help="Where the fabric keeps disks' data.")
def pool() -> None:
    """The noun."""


@pool.command("create", cls=InnCommand)
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@labels_option
@dry_run_option
@pass_session
def create(session: Session, name: str, path: Path, labels: dict[str, str], dry_run: bool) -> None:
    """Found another pool in an empty directory: inn pool create flash /mnt/flash.

    Best the root of a file system of its own. A storage puts disks there: inn storage create fast --pool flash.
    """
    wish = request(ask.PoolCreate, name=name, path=str(path.absolute()), labels=labels)
    made = session.client.pools.create(wish, dry_run=dry_run)
    if isinstance(made, Plan):
        session.show(made)
    else:
        session.done(made, f"pool {made.name} is in {made.path}")


@pool.command("open", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@pass_session
def open_again(session: Session, ref: str) -> None:
    """Open one that was not available, now that it is back; done by itself within seconds where it was missing."""
    opened = session.client.pools.open(ref)
    session.done(opened, f"pool {opened.name} is open")


@pool.command("rm", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@click.option("--lost", is_flag=True, help="Its medium is gone for good: forget it, its storages and their disks.")
@pass_session
def remove(session: Session, ref: str, lost: bool) -> None:
    """Give up a pool that holds nothing; its directory is left empty."""
    gone = session.client.pools.rm(ref, lost=lost)
    session.done(gone, f"pool {gone.name} given up")


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


@pool.command("scrub", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@detach_option
@pass_session
def scrub(session: Session, ref: str, no_wait: bool) -> None:
    """Read and verify all that is stored; what is damaged is repaired from a copy, or named. Done weekly by itself."""
    ended = settle(session, session.client.pools.scrub(ref), no_wait=no_wait, done=lambda _task: f"pool {ref} is sound")
    if ended is not None and session.format == "json":
        session.show(ended)


@pool.command("curate", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@detach_option
@pass_session
def curate(session: Session, ref: str, no_wait: bool) -> None:
    """Take back dead space, move what is due, pack anew what policies say. Done by itself when there is little else."""
    task = session.client.pools.curate(ref)
    ended = settle(session, task, no_wait=no_wait, done=lambda _task: f"pool {ref} is as its policies say")
    if ended is not None and session.format == "json":
        session.show(ended)


@pool.command("pause", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@pass_session
def pause(session: Session, ref: str) -> None:
    """Let background work rest until 'resume', also after a restart; the log is drained all the same."""
    session.client.pools.pause(ref)
    session.say(f"background work of pool {ref} rests")


@pool.command("resume", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@pass_session
def resume(session: Session, ref: str) -> None:
    """Let background work go on."""
    session.client.pools.resume(ref)
    session.say(f"background work of pool {ref} goes on")


@pool.command("hot", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@pass_session
def hot(session: Session, ref: str) -> None:
    """The groups of blocks that were read most in the last 10 minutes, and whose they are."""
    disks = resources.names(session, "disks")
    columns: list[Column[HotGroup]] = [
        Column("group", lambda one: one.number, right=True),
        Column("tier", lambda one: one.tier),
        Column("size", lambda one: format_size(one.size_bytes), right=True),
        Column("touches", lambda one: "█" * one.touches),
        Column("disks", lambda one: [disks.get(disk_id, disk_id) for disk_id in one.disk_ids]),
    ]
    session.table(columns, session.client.pools.hot(ref))


@pool.command("add", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@click.argument("place", metavar="PATH|URL")
@click.option("--tier", type=click.Choice(get_args(Tier)), default="slow", show_default=True)
@click.option("--endpoint", metavar="URL", help="The server of an s3:// URL; Amazon's without one.")
@click.option("--region", help="The region of an s3:// URL.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with access_key_id = ... and secret_access_key = ...; else AWS_ACCESS_KEY_ID and its kin count.",
)
@click.option("--format", "consent", is_flag=True, help="A block device may lose what it carries.")
@pass_session
def add(
    session: Session,
    ref: str,
    place: str,
    tier: Tier,
    endpoint: str | None,
    region: str | None,
    key_file: Path | None,
    consent: bool,
) -> None:
    """Take a directory, block device or object store into a pool: inn pool add default /mnt/hdd --tier slow."""
    if "://" in place:
        keys = keys_in(key_file) if key_file else keys_around()
        wish = request(ask.PoolDeviceAdd, path=place, tier=tier, endpoint=endpoint, region=region, **keys)
    elif endpoint or region or key_file:
        raise click.UsageError("--endpoint, --region and --key-file are for s3:// URLs")
    else:
        wish = request(ask.PoolDeviceAdd, path=str(Path(place).absolute()), tier=tier, format=consent)
    made = session.client.pools.device_add(ref, wish)
    session.done(made, f"{made.source or made.path} is a {made.tier} device of pool {ref}")


@pool.command("drain", cls=InnCommand)
@click.argument("ref", type=Ref("pools"))
@click.argument("place", metavar="PATH|URL")
@detach_option
@pass_session
def drain(session: Session, ref: str, place: str, no_wait: bool) -> None:
    """Move what a device holds to the others and let it go; guests run on. Cancel its task to keep it."""
    devices = session.client.pools.show(ref).devices
    found = [device.id for device in devices if place.rstrip("/") in (device.id, device.path, device.source)]
    task = session.client.pools.device_drain(ref, found[0] if found else Path(place).name)
    settle(session, task, no_wait=no_wait, done=lambda _task: f"{place} is no part of pool {ref} any more")


def _columns(_session: Session) -> list[Column[Pool]]:
    return [
        Column("name", lambda one: one.name),
        Column("cache", lambda one: format_size(one.cache_bytes) if one.cache_bytes else "auto", right=True),
        Column("path", lambda one: one.path),
        Column("problem", lambda one: one.problem or ""),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(pool, "pools", _columns)
resources.add_show(pool, "pools")
