"""``inn checkpoint``: points that a guest can be put back to."""

from __future__ import annotations

import click

from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref, detach_option, dry_run_option, labels_option, no_labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.progress import settle
from innkeeper.cli.resources import changes, names
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Checkpoint
from innkeeper.model.sizes import format_size

VM = Ref("vms")


@click.group(cls=VerbGroup, help="Points that a guest can be put back to.")
def checkpoint() -> None:
    """The noun."""


def short_name(point: Checkpoint) -> str:
    """The name within the vm."""
    return point.name.rpartition("/")[2]


@checkpoint.command("create", cls=InnCommand)
@click.argument("vm", type=VM)
@click.argument("name")
@click.option(
    "--kind",
    type=click.Choice(["production", "standard"]),
    help="production (the default): disks, frozen through the agent; standard: memory and disks of one instant.",
)
@click.option("--frozen", is_flag=True, help="Fail when the guest's file systems cannot be frozen.")
@labels_option
@dry_run_option
@detach_option
@pass_session
def create(
    session: Session,
    vm: str,
    name: str,
    kind: str | None,
    frozen: bool,
    labels: dict[str, str],
    dry_run: bool,
    no_wait: bool,
) -> None:
    """Take one: inn checkpoint create web before-upgrade."""
    wish = request(ask.CheckpointCreate, name=name, kind=kind, frozen=frozen, labels=labels)
    started = session.client.checkpoints.create(vm, wish, dry_run=dry_run)
    ended = settle(session, started, no_wait=no_wait, done=lambda _task: f"checkpoint {name} of {vm} taken")
    if ended is not None and (session.format == "json" or session.quiet):
        session.show(session.client.checkpoints.find(vm, name))


@checkpoint.command("ls", cls=InnCommand)
@click.argument("vm", type=VM, required=False)
@pass_session
def ls(session: Session, vm: str | None) -> None:
    """List them, of all guests or of one."""
    found = session.client.checkpoints.of(vm) if vm else session.client.checkpoints.ls()
    parents = {point.id: short_name(point) for point in found}
    guests = names(session, "vms") if session.format == "table" and not session.quiet else {}
    session.table(
        [
            Column("vm", lambda one: guests.get(one.vm_id, one.vm_id)),
            Column("name", short_name),
            Column("kind", lambda one: one.checkpoint_kind.value),
            Column("frozen", lambda one: one.frozen),
            Column("memory", lambda one: format_size(one.memory_bytes) if one.memory_bytes else "", right=True),
            Column("after", lambda one: parents.get(one.parent_id or "", "")),
            Column("age", lambda one: ago(one.created_at)),
        ],
        found,
    )


@checkpoint.command("show", cls=InnCommand)
@click.argument("vm", type=VM)
@click.argument("name")
@pass_session
def show(session: Session, vm: str, name: str) -> None:
    """Show everything about one."""
    session.show(session.client.checkpoints.find(vm, name))


@checkpoint.command("set", cls=InnCommand)
@click.argument("vm", type=VM)
@click.argument("name")
@click.option("--name", "new_name", help="A new name.")
@labels_option
@no_labels_option
@pass_session
def change(session: Session, vm: str, name: str, new_name: str | None, labels: dict[str, str], no_labels: bool) -> None:
    """Change its name or its labels."""
    wish = changes(ask.ResourceSet, name=new_name, labels=labels, no_labels=no_labels)
    changed = session.client.checkpoints.set(vm, name, wish)
    session.done(changed, f"checkpoint {short_name(changed)} of {vm} changed")


@checkpoint.command("apply", cls=InnCommand)
@click.argument("vm", type=VM)
@click.argument("name")
@detach_option
@pass_session
def apply(session: Session, vm: str, name: str, no_wait: bool) -> None:
    """Put the guest back to it: what came later on its disks is gone."""
    task = session.client.checkpoints.apply(vm, name)
    ended = settle(session, task, no_wait=no_wait, done=lambda _task: f"{vm} is back at {name}")
    if ended is not None and session.format == "json":
        session.show(session.client.vms.show(vm))


@checkpoint.command("rm", cls=InnCommand)
@click.argument("vm", type=VM)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@detach_option
@pass_session
def remove(session: Session, vm: str, names: tuple[str, ...], no_wait: bool) -> None:
    """Remove it; the guest stays as it is."""
    for name in names:
        task = session.client.checkpoints.rm(vm, name)
        settle(session, task, no_wait=no_wait, done=lambda _task, name=name: f"checkpoint {name} of {vm} removed")  # type: ignore[misc]
