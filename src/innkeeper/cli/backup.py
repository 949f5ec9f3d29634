"""``inn backup``: restore points of guests."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref, detach_option, dry_run_option, labels_option, no_labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.progress import settle
from innkeeper.cli.repository import report
from innkeeper.cli.resources import changes, names
from innkeeper.cli.session import Session, pass_session
from innkeeper.client.inn import InnClient
from innkeeper.model import requests as ask
from innkeeper.model.problems import NotFound
from innkeeper.model.resources import Backup
from innkeeper.model.sizes import format_size

BACKUP = Ref("backups")


@click.group(cls=VerbGroup, help="Restore points of guests.")
def backup() -> None:
    """The noun."""


def find(client: InnClient, ref: str) -> Backup:
    """The backup with that id or name, or the newest one of the guest (present or gone) with that name.

    Raises ``NotFound`` (``backup.not_found``).
    """
    try:
        return client.backups.show(ref)
    except NotFound:
        of_guest = [one for one in client.backups.ls() if ref in (one.vm_name, one.vm_id)]
        if not of_guest:
            raise
        return max(of_guest, key=lambda one: one.taken_at)


@backup.command("create", cls=InnCommand)
@click.argument("vms", type=Ref("vms"), nargs=-1, required=True, metavar="VM...")
@click.option("--repository", type=Ref("repositories"), required=True)
@click.option("--full", is_flag=True, help="Read everything, not only what changed.")
@click.option(
    "--quiesce",
    type=click.Choice(["auto", "require", "never"]),
    default="auto",
    show_default=True,
    help="Freeze the guest's file systems through its agent: where it answers, or else fail, or never.",
)
@labels_option
@dry_run_option
@detach_option
@pass_session
def create(session: Session, /, vms: tuple[str, ...], dry_run: bool, no_wait: bool, **options: Any) -> None:
    """Back guests up: inn backup create web --repository main."""
    wish = request(ask.BackupCreate, vms=list(vms), **options)
    started = session.client.backups.create(wish, dry_run=dry_run)
    ended = settle(session, started, no_wait=no_wait, done=lambda _task: f"{', '.join(vms)} backed up")
    if ended is None:
        return
    made = [session.client.backups.show(entry["id"]) for entry in ended.result.get("backups", [])]
    session.table(_columns(session), made)


def _columns(session: Session) -> list[Column[Backup]]:
    repositories = {} if session.quiet else names(session, "repositories")
    return [
        Column("name", lambda one: one.name),
        Column("vm", lambda one: one.vm_name),
        Column("repository", lambda one: repositories.get(one.repository_id, one.repository_id)),
        Column("consistency", lambda one: one.consistency),
        Column("data", lambda one: format_size(one.logical_bytes), right=True),
        Column("read", lambda one: format_size(one.read_bytes), right=True),
        Column("stored", lambda one: format_size(one.stored_bytes), right=True),
        Column("took", lambda one: f"{one.duration_s:.1f} s", right=True),
        Column("age", lambda one: ago(one.taken_at)),
        Column("id", lambda one: one.id),
    ]


resources.add_ls(backup, "backups", _columns)


@backup.command("show", cls=InnCommand)
@click.argument("ref", type=BACKUP)
@pass_session
def show(session: Session, ref: str) -> None:
    """Show everything about one."""
    session.show(find(session.client, ref))


@backup.command("set", cls=InnCommand)
@click.argument("ref", type=BACKUP)
@labels_option
@no_labels_option
@pass_session
def change(session: Session, ref: str, labels: dict[str, str], no_labels: bool) -> None:
    """Change its labels; the restore point itself never changes."""
    wish = changes(ask.BackupSet, labels=labels, no_labels=no_labels)
    changed = session.client.backups.set(find(session.client, ref).id, wish)
    session.done(changed, f"{changed.name} changed")


@backup.command("restore", cls=InnCommand)
@click.argument("ref", type=BACKUP)
@click.option("--as", "as_name", required=True, help="Name of the new guest.")
@click.option("--switch", type=Ref("switches"), help="Its cards join that switch.")
@click.option("--storage", type=Ref("storages"), help="Where its disks live.")
@click.option("--keep-macs", is_flag=True, help="Keep the MAC addresses where they are free.")
@click.option("--start", is_flag=True, help="Start it when it is restored.")
@dry_run_option
@detach_option
@pass_session
def restore(session: Session, /, ref: str, dry_run: bool, no_wait: bool, **options: Any) -> None:
    """Make a new guest of a backup (by id or name, or the newest of a guest): inn backup restore web --as web2."""
    wish = request(ask.BackupRestore, **options)
    source = find(session.client, ref)
    started = session.client.backups.restore(source.id, wish, dry_run=dry_run)
    done = f"{wish.as_name} restored from {source.name}"
    if settle(session, started, no_wait=no_wait, done=lambda _task: done) is None:
        return
    if session.format == "json" or session.quiet:
        session.show(session.client.vms.show(wish.as_name))


@backup.command("verify", cls=InnCommand)
@click.argument("ref", type=BACKUP)
@detach_option
@pass_session
def verify(session: Session, ref: str, no_wait: bool) -> None:
    """Read what it needs and check every checksum."""
    source = find(session.client, ref)
    task = session.client.backups.verify(source.id)
    report(session, settle(session, task, no_wait=no_wait, done=lambda _task: f"{source.name} is sound"))


@backup.command("rm", cls=InnCommand)
@click.argument("refs", type=BACKUP, nargs=-1, required=True)
@detach_option
@pass_session
def remove(session: Session, refs: tuple[str, ...], no_wait: bool) -> None:
    """Remove it; what other backups need stays."""
    for ref in refs:
        task = session.client.backups.rm(ref)
        settle(session, task, no_wait=no_wait, done=lambda _task, ref=ref: f"{ref} removed")  # type: ignore[misc]
