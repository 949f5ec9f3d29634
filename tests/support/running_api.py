"""The API over a FakeHouse on a real unix socket, served from a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fake_house import FakeHouse

from innkeeper.api.app import create_app
from innkeeper.api.peer import PeerProtocol
from innkeeper.api.server import bind
from innkeeper.client.inn import InnClient


@dataclass
class RunningApi:
    """A served house; ``call`` runs a coroutine function on its loop."""

    house: FakeHouse
    socket: Path
    client: InnClient
    loop: asyncio.AbstractEventLoop


@contextmanager
def running_api(socket: Path) -> Iterator[RunningApi]:
    """Serve a fresh FakeHouse at ``socket`` until the block ends."""
    house = FakeHouse()
    listener = bind(socket)
    config = uvicorn.Config(
        create_app(house), http=PeerProtocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    ready = threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        ready.set()
        await server.serve(sockets=[listener])
        await house.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="api")
    thread.start()
    ready.wait()
    client = InnClient(socket)
    try:
        yield RunningApi(house, socket, client, loops[0])
    finally:
        client.close()
        server.should_exit = True
        thread.join(timeout=20)
        listener.close()
        socket.unlink(missing_ok=True)
        assert not thread.is_alive()
