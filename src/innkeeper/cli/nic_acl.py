"""``inn nic acl``: the access control lists of a card."""

from __future__ import annotations

from typing import Any

import click

from innkeeper.cli.acl import ACL, line_options, lines, show_lines, without
from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import InnCommand, Ref, dry_run_option
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.switch import changed
from innkeeper.model import requests as ask
from innkeeper.model.acl import NicAcl
from innkeeper.model.resources import Nic

NIC = Ref("nics")


@click.group("acl", cls=VerbGroup, help="Access control lists of a card.")
def acl() -> None:
    """The noun."""


def _set(session: Session, nic: Nic, dry_run: bool, **changes: Any) -> None:
    wish = request(ask.NicSet, acl=changes)
    done = session.client.nics.set(nic.id, wish, revision=nic.revision, dry_run=dry_run)
    changed(session, done, f"card {nic.name} changed")


def _sets(session: Session, acl: NicAcl) -> list[Any]:
    """The named ACLs that a card has."""
    return [session.client.acls.show(ref) for ref in acl.sets]


@acl.command("ls", cls=InnCommand)
@click.argument("ref", type=NIC)
@pass_session
def ls(session: Session, ref: str) -> None:
    """List what holds for it, its own lines and those of its ACLs: inn nic acl ls web-0."""
    nic = session.client.nics.show(ref)
    if session.format == "json":
        session.show(nic.acl)
    else:
        show_lines(session, [("", nic.acl), *((one.name, one) for one in _sets(session, nic.acl))])


@acl.command("add", cls=InnCommand)
@click.argument("ref", type=NIC)
@line_options
@dry_run_option
@pass_session
def add(session: Session, /, ref: str, dry_run: bool, **options: Any) -> None:
    """Add a line of its own: inn nic acl add web-0 deny in --remote 10.0.0.0/8."""
    new, nic = lines(**options), session.client.nics.show(ref)
    entries, rules = [*nic.acl.entries, *new.entries], [*nic.acl.rules, *new.rules]
    _set(session, nic, dry_run, **({"entries": entries} if new.entries else {"rules": rules}))


@acl.command("rm", cls=InnCommand)
@click.argument("ref", type=NIC)
@click.argument("names", nargs=-1, required=True, metavar="LINE...")
@dry_run_option
@pass_session
def remove(session: Session, ref: str, names: tuple[str, ...], dry_run: bool) -> None:
    """Remove lines of its own: inn nic acl rm web-0 in/remote/10.0.0.0/8 in/100."""
    nic = session.client.nics.show(ref)
    rest = without(nic.acl, names)
    _set(session, nic, dry_run, entries=rest.entries, rules=rest.rules)


@acl.command("attach", cls=InnCommand)
@click.argument("ref", type=NIC)
@click.argument("name", type=ACL)
@dry_run_option
@pass_session
def attach(session: Session, ref: str, name: str, dry_run: bool) -> None:
    """Give it a named ACL, after those that it has: inn nic acl attach web-0 web-servers."""
    nic, given = session.client.nics.show(ref), session.client.acls.show(name)
    _set(session, nic, dry_run, sets=[*nic.acl.sets, given.id])


@acl.command("detach", cls=InnCommand)
@click.argument("ref", type=NIC)
@click.argument("name", type=ACL)
@dry_run_option
@pass_session
def detach(session: Session, ref: str, name: str, dry_run: bool) -> None:
    """Take a named ACL from it: inn nic acl detach web-0 web-servers."""
    nic, gone = session.client.nics.show(ref), session.client.acls.show(name)
    if gone.id not in nic.acl.sets:
        raise click.UsageError(f"card {nic.name} does not have acl {gone.name}")
    _set(session, nic, dry_run, sets=[each for each in nic.acl.sets if each != gone.id])
