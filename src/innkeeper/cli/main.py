"""The entry point ``inn``: the table of commands, and the one place where a problem becomes an exit code."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import click

import innkeeper
from innkeeper.cli.lazy import LazyGroup
from innkeeper.cli.options import common_options
from innkeeper.cli.session import Session
from innkeeper.model.problems import Invalid, Problem

_HERE = "innkeeper.cli"
COMMANDS: dict[str, tuple[str, str]] = {
    "up": (f"{_HERE}.lifecycle:up", "Found and start the inn; what runs already is left alone."),
    "down": (f"{_HERE}.lifecycle:down", "Stop the guests and end the inn; leaves nothing behind."),
    "vm": (f"{_HERE}.vm:vm", "Guests."),
    "checkpoint": (f"{_HERE}.checkpoint:checkpoint", "Points that a guest can be put back to."),
    "image": (f"{_HERE}.image:image", "Templates to make guests from, and ISOs."),
    "disk": (f"{_HERE}.disk:disk", "Disks on the fabric."),
    "storage": (f"{_HERE}.storage:storage", "Policies that disks live under."),
    "qos": (f"{_HERE}.qos:qos", "What disks may take, and what they are sure of."),
    "acl": (f"{_HERE}.acl:acl", "Named access control lists."),
    "pool": (f"{_HERE}.pool:pool", "Where disks' data is kept."),
    "switch": (f"{_HERE}.switch:switch", "Virtual switches."),
    "nic": (f"{_HERE}.nic:nic", "Network cards and their guards."),
    "port": (f"{_HERE}.port:port", "What passes cards' ports."),
    "repository": (f"{_HERE}.repository:repository", "Places for backups."),
    "backup": (f"{_HERE}.backup:backup", "Restore points of guests."),
    "task": (f"{_HERE}.task:task", "Long work: follow it, cancel it."),
    "event": (f"{_HERE}.event:event", "What happened: the journal."),
    "host": (f"{_HERE}.host:host", "This host and the inn on it."),
    "doctor": (f"{_HERE}.host:doctor", "Check the host, with a remedy for each finding."),
    "metrics": (f"{_HERE}.host:metrics", "Everything that is measured, for Prometheus."),
    "logs": (f"{_HERE}.logs:logs", "What the inn's processes and guests logged."),
    "tour": (f"{_HERE}.tour:tour", "Show the main job on real guests, step by step."),
    "completion": (f"{_HERE}.completion:completion", "Print the completion script for a shell."),
    "serve": (f"{_HERE}.serve:serve", "Run the daemon in the foreground ('inn up' starts it)."),
    "fabric": ("innkeeper.fabric.command:fabric", "The storage fabric by itself."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(innkeeper.__version__, prog_name="inn", message="%(prog)s %(version)s")
@click.pass_context
def inn(ctx: click.Context) -> None:
    """Virtual machines on this host: guests, their storage, their network, their backups.

    \b
    A first guest:
      inn up
      inn image build debian/12
      inn switch create lan
      inn vm create web --image debian/12 --switch lan --wait ready
      inn vm exec web -- uname -a
    """
    session = ctx.ensure_object(Session)
    ctx.call_on_close(session.close)


inn.params += common_options()


def report(problem: Problem) -> None:
    """Print a problem on stderr: what, why, what to do."""
    colour = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    error = click.style("error:", fg="red", bold=True) if colour else "error:"
    click.echo(f"{error} {problem.detail} [{problem.code}]", err=True)
    if problem.cause:
        first, *others = problem.cause.splitlines() or [""]
        click.echo(f"  cause: {first}", err=True)
        for line in others:
            click.echo(f"         {line}", err=True)
    if problem.remedy:
        click.echo(f"  remedy: {problem.remedy}", err=True)


def _as_problem(wrong: click.UsageError) -> Problem:
    command = wrong.ctx.command_path if wrong.ctx else "inn"
    return Invalid("request.invalid", wrong.format_message(), remedy=f"'{command} --help' tells what is possible")


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 done, 1 failed, 2 wrong usage."""
    try:
        code = inn.main(arguments, prog_name="inn", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.UsageError as wrong:
        report(_as_problem(wrong))
        return wrong.exit_code
    except click.ClickException as wrong:
        wrong.show()
        return wrong.exit_code
    except Problem as problem:
        report(problem)
        return 2 if problem.code == "request.invalid" else 1
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 1
    return code if isinstance(code, int) else 0


def _read_no_more() -> None:
    """Let what is still to be printed vanish: the reader of ``inn vm ls | head`` has gone, and that is no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def main() -> NoReturn:
    """The executable.

    SIGPIPE stays ignored, as Python has it: the daemon and the relays are run from here too, and a peer that hangs up
    must not end them.
    """
    try:
        code = run()
        sys.stdout.flush()
    except BrokenPipeError:
        _read_no_more()
        code = 1
    sys.exit(code)
