"""Following a task: a bar on a terminal, plain lines elsewhere; Ctrl-C leaves it running and says how to go on."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import NoReturn

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from innkeeper.cli.session import Session
from innkeeper.model.resources import Task
from innkeeper.model.views import Plan


def _title(task: Task) -> str:
    return f"{task.task_kind} {task.target_name or ''}".strip()


def _step(task: Task) -> str:
    running = next((step.name for step in task.steps if step.state == "running"), "")
    return task.message or running


def _detached(task: Task) -> NoReturn:
    click.echo(f"\n{_title(task)} goes on without you.", err=True)
    click.echo(f"  to wait for it again: inn task wait {task.name}", err=True)
    click.echo(f"  to stop and undo it:  inn task cancel {task.name}", err=True)
    raise click.exceptions.Exit(1)


def follow(session: Session, task: Task) -> Task:
    """The task when it has succeeded; raises its problem when it failed.

    Ctrl-C detaches: the daemon goes on with the task, the command ends with 1.
    """
    try:
        if session.quiet:
            return session.client.wait(task)
        if sys.stderr.isatty():
            return _with_bar(session, task)
        return session.client.wait(task, _plain_lines())
    except KeyboardInterrupt:
        _detached(task)


def _with_bar(session: Session, task: Task) -> Task:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[step]}", style="dim"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(_title(task), total=1.0, step=_step(task))

        def update(state: Task) -> None:
            progress.update(bar, completed=state.progress, step=_step(state))

        return session.client.wait(task, update)


def _plain_lines() -> Callable[[Task], None]:
    """A line whenever another step begins."""
    seen: set[str] = set()

    def update(state: Task) -> None:
        step = next((step.name for step in state.steps if step.state == "running"), None)
        if step and step not in seen:
            seen.add(step)
            click.echo(f"{_title(state)}: {step}", err=True)

    return update


def settle(session: Session, started: Task | Plan, *, no_wait: bool, done: Callable[[Task], str]) -> Task | None:
    """Print a plan; or print the task (``--no-wait``); or follow it, say ``done`` with its duration, and return it.

    None when there is nothing to go on with.
    """
    if isinstance(started, Plan) or no_wait:
        session.show(started)
        return None
    began = time.monotonic()
    task = follow(session, started)
    if session.format != "json":
        session.say(f"{done(task)} ({time.monotonic() - began:.1f} s)")
    return task
