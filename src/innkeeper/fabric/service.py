"""The fabric's process: a pool, its NBD server and its control socket in one event loop.

    python -m innkeeper.fabric.service --state-dir DIR      started by the keeper, which passes the listening NBD socket

SIGTERM and the ``shutdown`` operation end it in good order: what is staged is appended, the log synced, the pool
closed. A SIGKILL costs nothing but a replay of the log.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop

from innkeeper.fabric.control_socket import ControlSocket
from innkeeper.fabric.keeper import LISTEN_FD, listen
from innkeeper.fabric.nbd.server import NbdServer
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Problem
from innkeeper.system import logs
from innkeeper.system.files import Io
from innkeeper.system.paths import Paths
from innkeeper.system.sdnotify import notify

log = logging.getLogger(__name__)


def inherited_listener() -> socket.socket | None:
    """The listening socket that a keeper or systemd passed (sd_listen_fds(3)); None when nobody did."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    os.set_inheritable(LISTEN_FD, False)
    return socket.socket(fileno=LISTEN_FD)


def _ending() -> asyncio.Event:
    """An event that SIGTERM and SIGINT set."""
    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    return ending


async def serve_export(pool: Pool, listener: socket.socket) -> None:
    """Serve an open pool over NBD only, until SIGTERM or SIGINT."""
    ending = _ending()
    nbd = NbdServer(pool, listener)
    nbd.start()
    try:
        await ending.wait()
    finally:
        await nbd.close()


async def serve(pool: Pool, listener: socket.socket, control_path: Path) -> None:
    """Serve an open pool until SIGTERM, SIGINT or ``shutdown``; the pool is the caller's to close."""
    ending = _ending()
    nbd = NbdServer(pool, listener)
    control = ControlSocket(pool, nbd, control_path, ending.set)
    nbd.start()
    await control.start()
    notify("READY=1")
    try:
        await ending.wait()
    finally:
        await control.close()
        await nbd.close()


def run(pool_path: Path, listener: socket.socket, control_path: Path) -> None:
    """Open the pool and serve it. Raises what ``Pool.open`` raises."""
    pool = Pool.open(Io(), str(pool_path))
    try:
        uvloop.run(serve(pool, listener, control_path))
    finally:
        pool.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="innkeeper.fabric.service")
    parser.add_argument("--state-dir")
    paths = Paths.open(parser.parse_args().state_dir)
    paths.logs.mkdir(parents=True, exist_ok=True)
    output = os.open(paths.logs / "fabric.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
    os.dup2(output, sys.stderr.fileno())
    os.close(output)
    logs.setup("fabric")
    note = paths.run / "fabric.pid"
    note.write_text(f"{os.getpid()}\n")
    listener = inherited_listener() or listen(paths.nbd_socket)
    try:
        run(paths.pool, listener, paths.fabric_socket)
    except Problem as problem:
        log.error("%s", problem, extra={"fields": {"problem": problem.as_dict()}})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
