"""What a command knows: which inn is meant, how to print, and the client of its daemon."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import click
from pydantic import BaseModel

from innkeeper.cli import output
from innkeeper.client.inn import InnClient
from innkeeper.model.resources import Resource
from innkeeper.model.views import Plan, PoolDevice
from innkeeper.system.paths import Paths

Format = Literal["table", "json"]


@dataclass
class Session:
    """One run of ``inn``. The daemon is spoken to when it is first needed."""

    state_dir: str | None = None
    format: Format = "table"
    quiet: bool = False

    @cached_property
    def paths(self) -> Paths:
        """The inn meant. Raises ``Unavailable`` (``inn.absent``)."""
        return Paths.open(self.state_dir)

    @cached_property
    def client(self) -> InnClient:
        """The daemon's client. Raises ``Unavailable`` (``inn.absent``)."""
        return InnClient(self.paths.api_socket)

    def close(self) -> None:
        """Let go of the connection, if there is one."""
        if "client" in self.__dict__:
            self.client.close()

    def say(self, message: str) -> None:
        """A message to the person, on stderr; nothing when quiet."""
        if not self.quiet:
            click.echo(message, err=True)

    def show(self, value: BaseModel) -> None:
        """One thing, in full: a plan as text, else a table of its members; with ``--quiet`` only its id."""
        if self.format == "json":
            click.echo(output.as_json(value))
        elif isinstance(value, Plan):
            click.echo(output.plan_text(value))
        elif self.quiet and isinstance(value, Resource):
            click.echo(value.id)
        else:
            output.details(value)

    def table(self, columns: list[output.Column[Any]], rows: list[Any]) -> None:
        """Many things: a table; with ``--quiet`` only their names."""
        if self.format == "json":
            click.echo(output.as_json(rows))
        elif self.quiet:
            for row in rows:
                click.echo(row.name)
        else:
            output.table(columns, rows)

    def done(self, value: Resource | PoolDevice, message: str) -> None:
        """What a change came to: a message for people, the resource for programs (``-o json``), its id when quiet."""
        if self.format == "json":
            click.echo(output.as_json(value))
        elif self.quiet:
            click.echo(value.id)
        else:
            click.echo(message, err=True)


pass_session = click.make_pass_decorator(Session, ensure=True)
