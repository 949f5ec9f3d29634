"""``inn disk``: disks on the fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import click

from innkeeper.cli import resources
from innkeeper.cli.export import serve_export
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import (
    SIZE,
    InnCommand,
    Ref,
    detach_option,
    dry_run_option,
    given,
    labels_option,
    no_labels_option,
)
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.progress import settle
from innkeeper.cli.resources import names
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.snapshot_tree import COLUMNS, tree
from innkeeper.model import requests as ask
from innkeeper.model.resources import Disk, Tier
from innkeeper.model.sizes import format_size
from innkeeper.model.views import DiskDiff, Plan

DISK = Ref("disks")


@click.group(cls=VerbGroup, help="Disks on the fabric.")
def disk() -> None:
    """The noun."""


def _columns(session: Session) -> list[Column[Disk]]:
    guests, storages = names(session, "vms"), names(session, "storages")
    return [
        Column("name", lambda one: one.name),
        Column("size", lambda one: format_size(one.size_bytes), right=True),
        Column("vm", lambda one: guests.get(one.vm_id or "", "")),
        Column("role", lambda one: one.role),
        Column("storage", lambda one: storages.get(one.storage_id, one.storage_id)),
        Column("snapshots", lambda one: list(one.snapshots)),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(disk, "disks", _columns)
resources.add_show(disk, "disks")
resources.add_rm(disk, "disks")


def _made(session: Session, made: Disk | Plan, message: str) -> None:
    if isinstance(made, Plan):
        session.show(made)
    else:
        session.done(made, message)


@disk.command("create", cls=InnCommand)
@click.argument("name")
@click.option("--size", "size_bytes", type=SIZE, help="Such as 1G.")
@click.option("--image", type=Ref("images"), help="With that image's content.")
@click.option("--storage", type=Ref("storages"), help="Where it lives. [default: default]")
@click.option("--tier", type=click.Choice(get_args(Tier)), help="Where its data stays. [default: as its storage says]")
@click.option("--thick", is_flag=True, help="Keep all of its size free for it.")
@click.option("--qos", type=Ref("qos"), help="What it may take. [default: as its storage says]")
@labels_option
@dry_run_option
@pass_session
def create(session: Session, /, name: str, labels: dict[str, str], dry_run: bool, **wanted: Any) -> None:
    """Make a disk: inn disk create d --size 1G."""
    wish = request(ask.DiskCreate, name=name, labels=labels, **given(**wanted))
    _made(session, session.client.disks.create(wish, dry_run=dry_run), f"disk {name} made")


@disk.command("set", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.option("--name", help="A new name.")
@click.option("--storage", type=Ref("storages"), help="Let it live under another one; guests run on.")
@click.option("--tier", type=click.Choice([*get_args(Tier), "none"]), help="Where its data stays; none: see storage.")
@click.option("--thick/--thin", default=None, help="Whether all of its size is kept free for it.")
@click.option("--qos", type=Ref("qos"), help="What it may take; none: as its storage says.")
@labels_option
@no_labels_option
@pass_session
def change(session: Session, /, ref: str, labels: dict[str, str], no_labels: bool, **wanted: Any) -> None:
    """Change it, in use or not: inn disk set d --qos gold --tier fast."""
    cleared = frozenset({"tier", "qos"})
    wish = resources.changes(ask.DiskSet, labels=labels, no_labels=no_labels, cleared=cleared, **wanted)
    changed = session.client.disks.set(ref, wish)
    session.done(changed, f"{changed.name} changed")


@disk.command("resize", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.argument("size_bytes", type=SIZE, metavar="SIZE")
@click.option("--shrink", is_flag=True, help="Allow a smaller size: what lies beyond is gone.")
@pass_session
def resize(session: Session, ref: str, size_bytes: int, shrink: bool) -> None:
    """Give it another size; a running guest sees a larger one at once."""
    resized = session.client.disks.resize(ref, request(ask.DiskResize, size_bytes=size_bytes, shrink=shrink))
    session.done(resized, f"{resized.name} has {format_size(resized.size_bytes)}")


@disk.command("move", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.option("--storage", type=Ref("storages"), required=True, help="Where it is to live, in whatever pool.")
@detach_option
@pass_session
def move(session: Session, ref: str, storage: str, no_wait: bool) -> None:
    """Take it to another pool, with its snapshots; its guest runs on. Cancel the task to leave it where it is."""
    task = session.client.disks.move(ref, request(ask.DiskMove, storage=storage))
    ended = settle(session, task, no_wait=no_wait, done=lambda _task: f"{ref} lives in storage {storage}")
    if ended is not None and session.format == "json":
        session.show(session.client.disks.show(ref))


@disk.command("snapshot", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.argument("name")
@click.option("--rm", "remove", is_flag=True, help="Remove that snapshot instead.")
@pass_session
def snapshot(session: Session, ref: str, name: str, remove: bool) -> None:
    """Keep what the disk holds now under a name."""
    if remove:
        session.done(session.client.disks.snapshot_rm(ref, name), f"snapshot {name} of {ref} removed")
    else:
        kept = session.client.disks.snapshot(ref, request(ask.DiskSnapshot, name=name))
        session.done(kept, f"snapshot {name} of {kept.name} taken")


@disk.command("snapshots", cls=InnCommand)
@click.argument("ref", type=DISK)
@pass_session
def snapshots(session: Session, ref: str) -> None:
    """Draw the tree of its snapshots, with clones below what they stand on.

    CHANGED is what a snapshot holds that the one before it had not; OWN what of that nothing later has, and so would be
    free without it (before equal blocks and compression).
    """
    found = session.client.disks.snapshots(ref)
    if session.format == "json" or session.quiet:
        session.table([], found)
    else:
        session.table(COLUMNS, tree(found, names(session, "disks")))


@disk.command("revert", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.argument("snapshot")
@pass_session
def revert(session: Session, ref: str, snapshot: str) -> None:
    """Give it what it held at a snapshot; what was written since is gone. Its guest must be off."""
    reverted = session.client.disks.revert(ref, request(ask.DiskRevert, snapshot=snapshot))
    session.done(reverted, f"{reverted.name} is as it was at {snapshot}")


@disk.command("clone", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.argument("name")
@click.option("--snapshot", help="As it was at that snapshot, instead of now.")
@labels_option
@dry_run_option
@pass_session
def clone(session: Session, ref: str, name: str, snapshot: str | None, labels: dict[str, str], dry_run: bool) -> None:
    """Make another disk with its content, at once."""
    wish = request(ask.DiskClone, name=name, snapshot=snapshot, labels=labels)
    _made(session, session.client.disks.clone(ref, wish, dry_run=dry_run), f"{name} cloned from {ref}")


@disk.command("diff", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.argument("base", required=False)
@click.argument("snapshot", required=False)
@click.option("--summary", is_flag=True, help="The sum only.")
@pass_session
def diff(session: Session, ref: str, base: str | None, snapshot: str | None, summary: bool) -> None:
    """What changed since snapshot BASE (without: all that is used), up to SNAPSHOT (without: up to now)."""
    found: DiskDiff = session.client.disks.diff(ref, base=base, snapshot=snapshot)
    if session.format == "json":
        session.show(found)
        return
    if not summary:
        for run in found.ranges:
            click.echo(f"{run.offset_bytes}\t{run.length_bytes}\t{'hole' if run.hole else 'data'}")
    session.say(f"{format_size(found.changed_bytes)} in {len(found.ranges)} ranges differ")


@disk.command("attach", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.argument("vm", type=Ref("vms"))
@click.option("--boot-index", type=click.IntRange(1, 64), help="1 boots first.")
@click.option("--read-only", is_flag=True)
@pass_session
def attach(session: Session, ref: str, vm: str, boot_index: int | None, read_only: bool) -> None:
    """Put it into a guest, running or not."""
    wish = request(ask.DiskAttach, vm=vm, boot_index=boot_index, read_only=read_only)
    attached = session.client.disks.attach(ref, wish)
    session.done(attached, f"{attached.name} attached to {vm}")


@disk.command("detach", cls=InnCommand)
@click.argument("ref", type=DISK)
@pass_session
def detach(session: Session, ref: str) -> None:
    """Take it out of its guest."""
    detached = session.client.disks.detach(ref)
    session.done(detached, f"{detached.name} detached")


@disk.command("export", cls=InnCommand)
@click.argument("ref", type=DISK)
@click.option("--socket", "path", type=click.Path(path_type=Path), required=True, help="Unix socket to make.")
@click.option("--snapshot", help="As it was at that snapshot.")
@click.option("--writable", is_flag=True, help="Let clients write; refused while a guest has the disk.")
@pass_session
def export(session: Session, ref: str, path: Path, snapshot: str | None, writable: bool) -> None:
    """Serve it over NBD until interrupted; prints the URI for nbdinfo, nbdcopy, qemu-img and others."""
    wish = request(ask.DiskExport, snapshot=snapshot, writable=writable)
    serve_export(session, ref, wish, path)
