"""``inn acl``: named access control lists, and the words in which lines of any list are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from innkeeper.cli import output, resources
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import DURATION, InnCommand, Ref, dry_run_option, labels_option
from innkeeper.cli.output import Column, ago
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.switch import changed
from innkeeper.model import requests as ask
from innkeeper.model.acl import MAX_WEIGHT, AclEntry, AclLists, AclRule
from innkeeper.model.resources import Acl

F = TypeVar("F", bound=Callable[..., Any])
ACL = Ref("acls")
_OF_RULES = ("protocol", "local_ports", "remote_ports", "stateful", "idle_timeout_s", "log")


@click.group(cls=VerbGroup, help="Named access control lists, which cards are given.")
def acl() -> None:
    """The noun."""


def line_options(function: F) -> F:
    """The arguments and options that a line is made of."""
    options = (
        click.argument("action", type=click.Choice(["allow", "deny", "meter"])),
        click.argument("direction", type=click.Choice(["in", "out", "both"])),
        click.option("--remote", help="The other side: an IP prefix, or any; without --weight a mac too."),
        click.option("--local", help="The vm's side, likewise."),
        click.option(
            "--weight", type=click.IntRange(0, MAX_WEIGHT), help="An extended rule: the largest that matches decides."
        ),
        click.option("--protocol", help="tcp, udp, icmp, icmpv6, sctp or a number."),
        click.option("--local-port", "local_ports", metavar="PORT[-PORT]", help="At the vm."),
        click.option("--remote-port", "remote_ports", metavar="PORT[-PORT]", help="At the other side."),
        click.option("--stateful", is_flag=True, help="What belongs to an allowed flow passes both ways."),
        click.option("--log", is_flag=True, help="Tell what it decides in the journal (inn event ls)."),
        click.option("--idle-timeout", "idle_timeout_s", type=DURATION, help="Of its flows. [default: 255s]"),
    )
    for option in reversed(options):
        function = option(function)
    return function


def lines(
    action: str, direction: str, weight: int | None, remote: str | None, local: str | None, **of_rule: Any
) -> AclLists:
    """The lines that the options name: one, or one for each direction. Raises ``click.UsageError``."""
    directions = ("in", "out") if direction == "both" else (direction,)
    given = {name: of_rule[name] for name in _OF_RULES if of_rule[name] not in (None, False)}
    addresses = {name: value for name, value in (("remote", remote), ("local", local)) if value is not None}
    if weight is None:
        if given:
            named = ", ".join(name.removesuffix("_s").replace("_", " ").replace("ports", "port") for name in given)
            raise click.UsageError(f"{named}: belongs to a rule, which has a --weight")
        members: dict[str, Any] = {"action": action, **(addresses or {"remote": "any"})}
        return request(AclLists, entries=[{**members, "direction": each} for each in directions])
    if "idle_timeout_s" in given:
        given["idle_timeout_s"] = round(given["idle_timeout_s"])
    members = {"action": action, "weight": weight, **addresses, **given}
    return request(AclLists, rules=[{**members, "direction": each} for each in directions])


def without(listed: AclLists, gone: Iterable[str]) -> AclLists:
    """``listed`` without the lines so named. Raises ``click.UsageError`` when one is not there."""
    names = set(gone)
    known = {entry.line for entry in listed.entries} | {rule.line for rule in listed.rules}
    if unknown := sorted(names - known):
        raise click.UsageError(f"there is no line {unknown[0]}; there are: {', '.join(sorted(known)) or 'none'}")
    return AclLists(
        entries=[entry for entry in listed.entries if entry.line not in names],
        rules=[rule for rule in listed.rules if rule.line not in names],
    )


def show_lines(session: Session, listed: list[tuple[str, AclLists]]) -> None:
    """A table of the lines of several lists; "" is the card's own."""
    rows: list[tuple[str, AclEntry | AclRule]] = []
    for name, each in listed:
        rows += [(name, entry) for entry in each.entries]
        rows += [(name, rule) for rule in sorted(each.rules, key=lambda rule: (rule.direction, -rule.weight))]
    columns: list[Column[tuple[str, AclEntry | AclRule]]] = [
        Column("line", lambda row: row[1].line),
        Column("acl", lambda row: row[0] or "-"),
        Column("rule", lambda row: str(row[1])),
    ]
    if session.quiet:
        for _, item in rows:
            click.echo(item.line)
        return
    output.table(columns, rows)


@acl.command("create", cls=InnCommand)
@click.argument("name")
@labels_option
@dry_run_option
@pass_session
def create(session: Session, name: str, labels: dict[str, str], dry_run: bool) -> None:
    """Make an empty one: inn acl create web-servers."""
    wish = request(ask.AclCreate, name=name, labels=labels)
    changed(session, session.client.acls.create(wish, dry_run=dry_run), f"acl {name} made")


def _columns(_session: Session) -> list[Column[Acl]]:
    return [
        Column("name", lambda one: one.name),
        Column("entries", lambda one: len(one.entries), right=True),
        Column("rules", lambda one: len(one.rules), right=True),
        Column("age", lambda one: ago(one.created_at)),
    ]


resources.add_ls(acl, "acls", _columns)
resources.add_show(acl, "acls")


@acl.command("lines", cls=InnCommand)
@click.argument("ref", type=ACL)
@pass_session
def show(session: Session, ref: str) -> None:
    """List its lines, by which they are removed: inn acl lines web-servers."""
    found = session.client.acls.show(ref)
    if session.format == "json":
        session.show(found)
    else:
        show_lines(session, [(found.name, found)])


@acl.command("add", cls=InnCommand)
@click.argument("ref", type=ACL)
@line_options
@pass_session
def add(session: Session, /, ref: str, **options: Any) -> None:
    """Add a line, for all its cards at once: inn acl add web-servers deny in --weight 100 --protocol udp."""
    new, now = lines(**options), session.client.acls.show(ref)
    wish = request(ask.AclSet, entries=[*now.entries, *new.entries], rules=[*now.rules, *new.rules])
    session.done(session.client.acls.set(ref, wish, revision=now.revision), f"acl {ref} changed")


@acl.command("drop", cls=InnCommand)
@click.argument("ref", type=ACL)
@click.argument("names", nargs=-1, required=True, metavar="LINE...")
@pass_session
def drop(session: Session, ref: str, names: tuple[str, ...]) -> None:
    """Remove lines, at once for all its cards: inn acl drop web-servers in/100."""
    now = session.client.acls.show(ref)
    rest = without(now, names)
    wish = request(ask.AclSet, entries=rest.entries, rules=rest.rules)
    session.done(session.client.acls.set(ref, wish, revision=now.revision), f"acl {ref} changed")


@acl.command("set", cls=InnCommand)
@click.argument("ref", type=ACL)
@click.option("--name", help="A new name.")
@labels_option
@pass_session
def change(session: Session, ref: str, name: str | None, labels: dict[str, str]) -> None:
    """Change its name or its labels."""
    wish = resources.changes(ask.AclSet, name=name, labels=labels, no_labels=False)
    session.done(session.client.acls.set(ref, wish), f"acl {ref} changed")


resources.add_rm(acl, "acls")
