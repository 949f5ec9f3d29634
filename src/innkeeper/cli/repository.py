"""``inn repository``: places for backups."""

from __future__ import annotations

from pathlib import Path

import click

from innkeeper.cli import resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref, detach_option, dry_run_option, labels_option
from innkeeper.cli.output import Column, ago, text
from innkeeper.cli.parse import request
from innkeeper.cli.progress import settle
from innkeeper.cli.session import Session, pass_session
from innkeeper.model import requests as ask
from innkeeper.model.resources import Repository, Task
from innkeeper.model.views import Plan, PrunePlan

REPOSITORY = Ref("repositories")


@click.group(cls=VerbGroup, help="Places for backups.")
def repository() -> None:
    """The noun."""


@repository.command("create", cls=InnCommand)
@click.argument("name")
@click.option(
    "--path", type=click.Path(path_type=Path), required=True, help="A directory: new, empty, or a repository."
)
@labels_option
@dry_run_option
@pass_session
def create(session: Session, name: str, path: Path, labels: dict[str, str], dry_run: bool) -> None:
    """Make one in a directory: inn repository create main --path /srv/backups."""
    wish = request(ask.RepositoryCreate, name=name, path=str(path.absolute()), labels=labels)
    made = session.client.repositories.create(wish, dry_run=dry_run)
    if isinstance(made, Plan):
        session.show(made)
    else:
        session.done(made, f"repository {made.name} at {made.path}")


def _columns(_session: Session) -> list[Column[Repository]]:
    return [
        Column("name", lambda one: one.name),
        Column("path", lambda one: one.path),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(repository, "repositories", _columns)
resources.add_show(repository, "repositories")
resources.add_set(repository, "repositories")
resources.add_rm(repository, "repositories")


def report(session: Session, ended: Task | None) -> None:
    """The result of a task that checks or prunes."""
    if ended is None:
        return
    if session.format == "json":
        session.show(ended)
    else:
        for name, value in ended.result.items():
            click.echo(f"{name}: {text(value)}")


@repository.command("verify", cls=InnCommand)
@click.argument("ref", type=REPOSITORY)
@detach_option
@pass_session
def verify(session: Session, ref: str, no_wait: bool) -> None:
    """Read everything in it and check every checksum."""
    task = session.client.repositories.verify(ref)
    report(session, settle(session, task, no_wait=no_wait, done=lambda _task: f"repository {ref} is sound"))


@repository.command("prune", cls=InnCommand)
@click.argument("ref", type=REPOSITORY)
@click.option("--keep-last", type=click.IntRange(1), help="The newest so many of each guest.")
@click.option("--keep-days", type=float, help="All that are younger.")
@click.option("--vm", help="Only the backups of that guest.")
@dry_run_option
@detach_option
@pass_session
def prune(
    session: Session,
    ref: str,
    keep_last: int | None,
    keep_days: float | None,
    vm: str | None,
    dry_run: bool,
    no_wait: bool,
) -> None:
    """Remove what a retention policy does not keep."""
    wish = request(ask.RepositoryPrune, keep_last=keep_last, keep_days=keep_days, vm=vm)
    started = session.client.repositories.prune(ref, wish, dry_run=dry_run)
    if isinstance(started, PrunePlan) and session.format != "json":
        for verb, entries in (("keep", started.keep), ("remove", started.remove)):
            for entry in entries:
                click.echo(f"{verb:<8}{entry.get('name', '')}  {entry.get('reason', '')}")
        session.say("(dry run: nothing has been done)")
        return
    report(session, settle(session, started, no_wait=no_wait, done=lambda _task: f"repository {ref} pruned"))
