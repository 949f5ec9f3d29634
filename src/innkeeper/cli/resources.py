"""The verbs ``ls``, ``show``, ``set`` (name, labels) and ``rm`` of a noun that has nothing special about them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from innkeeper.cli.options import InnCommand, Ref, filter_option, given, labels_option, no_labels_option
from innkeeper.cli.output import Column
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.model.requests import ResourceSet
from innkeeper.model.resources import Part

S = TypeVar("S", bound=Part)
Columns = Callable[[Session], list[Column[Any]]]


def add_ls(group: click.Group, noun: str, columns: Columns) -> None:
    """``ls``: a table. ``columns`` is called with the session, to look up names that the rows refer to."""

    @group.command("ls", cls=InnCommand, help=f"List the {noun}.")
    @filter_option
    @pass_session
    def ls(session: Session, labels: tuple[str, ...]) -> None:
        rows = getattr(session.client, noun).ls(*labels)
        session.table(columns(session) if session.format == "table" and not session.quiet else [], rows)


def add_show(group: click.Group, noun: str) -> None:
    """``show``: everything about one."""

    @group.command("show", cls=InnCommand, help="Show everything about one.")
    @click.argument("ref", type=Ref(noun))
    @pass_session
    def show(session: Session, ref: str) -> None:
        session.show(getattr(session.client, noun).show(ref))


def add_set(group: click.Group, noun: str) -> None:
    """``set``: the name and the labels."""

    @group.command("set", cls=InnCommand, help="Change its name or its labels.")
    @click.argument("ref", type=Ref(noun))
    @click.option("--name", help="A new name.")
    @labels_option
    @no_labels_option
    @pass_session
    def change(session: Session, ref: str, name: str | None, labels: dict[str, str], no_labels: bool) -> None:
        wish = changes(ResourceSet, name=name, labels=labels, no_labels=no_labels)
        changed = getattr(session.client, noun).set(ref, wish)
        session.done(changed, f"{changed.name} changed")


def changes(
    kind: type[S], *, labels: dict[str, str], no_labels: bool, cleared: frozenset[str] = frozenset(), **named: Any
) -> S:
    """The request for what was named on the command line; a usage error when that is nothing.

    Of the members in ``cleared`` 0 and ``none`` stand for nothing at all.
    """
    asked = given(labels={} if no_labels else labels or None, **named)
    if not asked:
        raise click.UsageError("say what to change")
    gone = {name for name, value in asked.items() if name in cleared and value in (0, "none")}
    wish = request(kind, **{name: value for name, value in asked.items() if name not in gone})
    for name in gone:
        setattr(wish, name, None)  # named, so that it is sent
    return wish


def add_rm(group: click.Group, noun: str) -> None:
    """``rm``: at once."""

    @group.command("rm", cls=InnCommand, help="Remove it.")
    @click.argument("refs", type=Ref(noun), nargs=-1, required=True)
    @pass_session
    def remove(session: Session, refs: tuple[str, ...]) -> None:
        for ref in refs:
            gone = getattr(session.client, noun).rm(ref)
            session.done(gone, f"{gone.name} removed")


def names(session: Session, noun: str) -> dict[str, str]:
    """id -> name of all ``noun``, for tables that refer to them."""
    return {one.id: one.name for one in getattr(session.client, noun).ls()}
