"""``inn host`` and ``inn doctor``."""

from __future__ import annotations

import click

from innkeeper.cli.host_firewall import firewall
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand
from innkeeper.cli.output import Column
from innkeeper.cli.session import Session, pass_session
from innkeeper.harden import doctor as judge, facts
from innkeeper.model import requests as ask
from innkeeper.model.problems import Unavailable
from innkeeper.model.views import Check
from innkeeper.system.paths import Paths


@click.group(cls=VerbGroup, help="This host and the inn on it.")
def host() -> None:
    """The noun."""


host.add_command(firewall)


@host.command("show", cls=InnCommand)
@pass_session
def show(session: Session) -> None:
    """The host, the inn's processes, its pool."""
    session.show(session.client.host.show())


@host.command("set", cls=InnCommand)
@click.option(
    "--allow-docker/--no-allow-docker",
    default=None,
    help="Let guests pass Docker's rules by one tagged rule in its chain DOCKER-USER; gone when the inn stops.",
)
@pass_session
def change(session: Session, allow_docker: bool | None) -> None:
    """Settle something about this host: inn host set --allow-docker."""
    if allow_docker is None:
        raise click.UsageError("say what to change")
    session.client.host.set(ask.HostSet(allow_docker=allow_docker))
    session.say("guests pass Docker's rules" if allow_docker else "Docker's rules are left alone")


def _examine(session: Session) -> list[Check]:
    """By the daemon, which knows the inn's switches and guests; without one, what can be seen from here."""
    try:
        return session.client.host.doctor()
    except Unavailable as away:
        if away.code not in ("inn.absent", "daemon.unreachable"):
            raise
        return judge.examine(facts.gather(Paths.locate(session.state_dir)))


@click.command(cls=InnCommand)
@click.option("--all", "everything", is_flag=True, help="Also what is well.")
@pass_session
def doctor(session: Session, everything: bool) -> None:
    """Check this host; each finding comes with its remedy. Ends with 1 when something essential fails."""
    checks = _examine(session)
    if session.format == "json":
        session.table([], checks)
    else:
        _print(session, checks, everything=everything)
    if judge.essential(checks):
        raise click.exceptions.Exit(1)


@click.command(cls=InnCommand)
@pass_session
def metrics(session: Session) -> None:
    """Everything that is measured, in Prometheus' text format."""
    click.echo(session.client.host.metrics(), nl=False)


def _print(session: Session, checks: list[Check], *, everything: bool) -> None:
    columns: list[Column[Check]] = [
        Column("check", lambda one: one.name),
        Column("state", lambda one: one.state),
        Column("finding", lambda one: one.detail),
    ]
    shown = checks if everything else [one for one in checks if one.state != "ok"]
    if shown:
        session.table(columns, shown)
    for one in shown:
        if one.state != "ok" and not session.quiet:
            click.echo(f"\n{one.name}: {one.detail}")
            click.echo(f"  cause:  {one.cause or 'unknown'}")
            click.echo(f"  remedy: {one.remedy or 'none known'}")
    well = sum(one.state == "ok" for one in checks)
    session.say(f"{well} of {len(checks)} checks are well")
