"""``inn task``: long work."""

from __future__ import annotations

import click

from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref
from innkeeper.cli.output import Column, ago
from innkeeper.cli.progress import follow
from innkeeper.cli.resources import add_show
from innkeeper.cli.session import Session, pass_session
from innkeeper.client.inn import ENDED
from innkeeper.model.resources import Task

TASK = Ref("tasks")


@click.group(cls=VerbGroup, help="Long work: follow it, cancel it.")
def task() -> None:
    """The noun."""


def _duration(one: Task) -> str:
    if one.started_at is None or one.ended_at is None:
        return ""
    return f"{(one.ended_at - one.started_at).total_seconds():.1f} s"


@task.command("ls", cls=InnCommand)
@click.option("--running", is_flag=True, help="Only those that have not ended.")
@click.option("-n", "--last", "limit", type=click.IntRange(1), help="Only the last so many.")
@pass_session
def ls(session: Session, running: bool, limit: int | None) -> None:
    """List tasks, the oldest first."""
    found = [one for one in session.client.tasks.ls() if not running or one.state not in ENDED]
    session.table(
        [
            Column("name", lambda one: one.name),
            Column("kind", lambda one: one.task_kind),
            Column("target", lambda one: one.target_name),
            Column("state", lambda one: one.state.value),
            Column("done", lambda one: f"{one.progress * 100:.0f}%", right=True),
            Column("took", _duration, right=True),
            Column("age", lambda one: ago(one.created_at)),
            Column("problem", lambda one: (one.problem or {}).get("detail", "")),
        ],
        found[-limit:] if limit else found,
    )


add_show(task, "tasks")


@task.command("wait", cls=InnCommand)
@click.argument("ref", type=TASK)
@pass_session
def wait(session: Session, ref: str) -> None:
    """Follow it to its end; fails when it fails."""
    ended = follow(session, session.client.tasks.show(ref))
    session.done(ended, f"{ended.name} {ended.state}")


@task.command("cancel", cls=InnCommand)
@click.argument("ref", type=TASK)
@pass_session
def cancel(session: Session, ref: str) -> None:
    """Ask it to stop and undo what it did."""
    cancelled = session.client.tasks.cancel(ref)
    session.done(cancelled, f"{cancelled.name} is being cancelled")
