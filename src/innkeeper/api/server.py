"""Serves the application on the inn's unix socket, to root and the group ``innkeeper``."""

from __future__ import annotations

import asyncio
import grp
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from innkeeper.api.peer import PeerProtocol

GROUP = "innkeeper"
_GRACE_S = 3


def bind(path: Path) -> socket.socket:
    """A listening socket at ``path`` with mode 0660 and the group ``innkeeper`` (where that exists), put there whole.

    The name appears by a rename when owner and mode are right; whatever an earlier daemon left is replaced.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(str(fresh))
        finally:
            os.umask(before)
        gid = _group_id()
        if gid is not None and os.getuid() == 0:
            os.chown(fresh, 0, gid)
        fresh.chmod(0o660)
        listener.listen(128)
        fresh.rename(path)
    except BaseException:
        listener.close()
        fresh.unlink(missing_ok=True)
        raise
    return listener


def _group_id() -> int | None:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return None


class _Server(uvicorn.Server):
    """uvicorn that says when it answers, and that ends by returning: what is around it is closed in order."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT end the server; uvicorn's own way would raise them anew and kill the process."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        self.should_exit = True


async def serve(app: FastAPI, path: Path, ready: Callable[[], None] = lambda: None) -> None:
    """Serve ``app`` at ``path`` until SIGTERM or SIGINT; ``ready`` is called when requests are accepted."""
    listener = bind(path)
    config = uvicorn.Config(
        app,
        http=PeerProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=30,
    )
    try:
        await _Server(config, ready).serve(sockets=[listener])
    finally:
        listener.close()
        path.unlink(missing_ok=True)
