"""The fabric's process: its pools, their NBD server and its control socket in one event loop.

    python -m innkeeper.fabric.service --state-dir DIR      started by the keeper, which passes the listening NBD socket

SIGTERM and the ``shutdown`` operation end it in good order: what is staged is appended, the log synced, the pool
closed. A SIGKILL costs nothing but a replay of the log.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvloop

from innkeeper.fabric.control_socket import ControlSocket
from innkeeper.fabric.keeper import LISTEN_FD, listen
from innkeeper.fabric.moving import settle_moves
from innkeeper.fabric.nbd.server import NbdServer
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.model.problems import Problem
from innkeeper.system import logs
from innkeeper.system.files import Io
from innkeeper.system.paths import Paths
from innkeeper.system.priority import ahead
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


async def serve_export(pools: Pools, listener: socket.socket) -> None:
    """Serve open pools over NBD only, until SIGTERM or SIGINT."""
    ending = _ending()
    nbd = NbdServer(pools, listener)
    nbd.start()
    try:
        await ending.wait()
    finally:
        await nbd.close()


async def serve(pools: Pools, listener: socket.socket, control_path: Path) -> None:
    """Serve open pools until SIGTERM, SIGINT or ``shutdown``; they are the caller's to close."""
    ending = _ending()
    nbd = NbdServer(pools, listener)
    control = ControlSocket(pools, nbd, control_path, ending.set)
    nbd.start()
    await control.start()
    notify("READY=1")
    try:
        await ending.wait()
    finally:
        await control.close()
        await nbd.close()


def _keep_out_of_the_way() -> None:
    """Keep what runs beside the event loop from making writes wait.

    Its thread goes before those that drain and pack. It comes back to the interpreter after each system call, from a
    background thread that may keep it for Python's 5 ms otherwise; and a full collection of garbage, which nobody needs
    often, looked at 25 ms worth of objects that live as long as the process.
    """
    ahead()
    sys.setswitchinterval(5e-4)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    gc.enable()


def run(paths: Paths, listener: socket.socket) -> None:
    """Open the pools and serve them. Raises what ``Pool.open`` raises of the default one."""
    gc.disable()  # recovery makes objects by the hundred thousand, and keeps them
    default = Pool.open(Io(), str(paths.pool))
    try:
        pools = Pools(default, str(paths.pool_list))
    except BaseException:
        default.close()
        raise
    _keep_out_of_the_way()
    try:
        settle_moves(pools)
        uvloop.run(serve(pools, listener, paths.fabric_socket))
    finally:
        pools.close()


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
        run(paths, listener)
    except Problem as problem:
        log.error("%s", problem, extra={"fields": {"problem": problem.as_dict()}})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
