"""``inn serve``: the daemon in the foreground. ``inn up`` starts it detached."""

from __future__ import annotations

import os
from pathlib import Path

import click
import uvloop

from innkeeper.api import server
from innkeeper.api.app import create_app
from innkeeper.cli.options import InnCommand
from innkeeper.cli.session import Session, pass_session
from innkeeper.daemon.house import open_house
from innkeeper.model.problems import Problem
from innkeeper.system import logs
from innkeeper.system.paths import Paths
from innkeeper.system.sdnotify import notify


def _note_pid(path: Path) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(f"{os.getpid()}\n")
    fresh.rename(path)


def _ready() -> None:
    notify("READY=1")


async def _serve(paths: Paths) -> None:
    async with open_house(paths) as house:
        _note_pid(paths.run / "daemon.pid")
        await server.serve(create_app(house), paths.api_socket, _ready)


@click.command(cls=InnCommand)
@pass_session
def serve(session: Session) -> None:
    """Run the daemon until SIGTERM; guests outlive it. The fabric must run: 'inn up' starts both."""
    log = logs.setup("daemon")
    paths = session.paths
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    log.info("the daemon starts for %s", paths.state)
    try:
        uvloop.run(_serve(paths))
    except Problem as problem:
        log.error("%s", problem, extra={"fields": {"problem": problem.as_dict()}})
        raise
    log.info("the daemon has ended")
