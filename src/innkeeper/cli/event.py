"""``inn event``: the journal."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import click

from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import DURATION, InnCommand, Ref
from innkeeper.cli.output import Column, text
from innkeeper.cli.session import Session, pass_session
from innkeeper.model.journal import SEVERITIES, JournalEntry, Severity
from innkeeper.model.resources import now


@click.group(cls=VerbGroup, help="What happened: the journal.")
def event() -> None:
    """The noun."""


_COLUMNS: list[Column[JournalEntry]] = [
    Column("last", lambda one: one.last_at),
    Column("count", lambda one: one.count, right=True),
    Column("severity", lambda one: one.severity),
    Column("reason", lambda one: one.reason),
    Column("subject", lambda one: f"{one.subject.kind}/{one.subject.name}"),
    Column("message", lambda one: one.message),
]


def _line(one: JournalEntry) -> str:
    return "  ".join(text(column.cell(one)) for column in _COLUMNS)


@event.command("ls", cls=InnCommand)
@click.option("--subject", metavar="REF", help="Only what is about it: the id or name of a card, a switch ...")
@click.option("--vm", type=Ref("vms"), help="Only what is about that guest and its cards.")
@click.option(
    "--severity", type=click.Choice(SEVERITIES), default="info", show_default=True, help="At least so severe."
)
@click.option("--since", "since_s", type=DURATION, metavar="DURATION", help="Only of the last 15m, 12h, 3d ...")
@click.option("-n", "--last", type=click.IntRange(1, 20_000), default=100, show_default=True, help="Only the last.")
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@pass_session
def ls(
    session: Session,
    subject: str | None,
    vm: str | None,
    severity: Severity,
    since_s: float | None,
    last: int,
    follow: bool,
) -> None:
    """List what happened, the latest last; a repetition raises an entry's count."""
    since = now() - timedelta(seconds=since_s) if since_s is not None else None
    found = session.client.journal.ls(subject=subject, vm=vm, severity=severity, since=since, last=last)
    if session.quiet:
        click.echo("\n".join(one.message for one in found))
    elif not follow:
        session.table(_COLUMNS, found)
    if follow:
        _follow(session, found, subject=subject, vm=vm, severity=severity)


def _follow(session: Session, found: list[JournalEntry], **wanted: Any) -> None:
    """Print ``found``, then what comes, until interrupted."""
    said = (lambda one: json.dumps(one.model_dump(mode="json"))) if session.format == "json" else _line
    for one in found:
        click.echo(said(one))
    after = found[-1].revision if found else None
    for one in session.client.journal.watch(**wanted, after_revision=after):
        click.echo(said(one))
