"""The fabric's client: what it does when the fabric goes away between two calls."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from pathlib import Path

from innkeeper.fabric.client import FabricClient


class Server(threading.Thread):
    """Answers one call of each of two connections; closes one when told."""

    def __init__(self, listener: socket.socket) -> None:
        super().__init__()
        self._listener = listener
        self.go = threading.Event()
        self.gone = threading.Event()

    def run(self) -> None:
        for _ in range(2):
            connection, _ = self._listener.accept()
            with connection, connection.makefile("rb") as lines:
                call = json.loads(lines.readline())
                connection.sendall(json.dumps({"id": call["id"], "result": "pong"}).encode() + b"\n")
                assert self.go.wait(20)
            self.gone.set()


def test_a_fabric_that_restarted_while_the_loop_stood_still_is_found_again(tmp_path: Path) -> None:
    """The lost connection is noticed by the call itself: no other part of the client has run since."""
    path = tmp_path / "fabric.sock"
    with socket.socket(socket.AF_UNIX) as listener, asyncio.Runner() as runner:
        listener.bind(str(path))
        listener.listen()
        server = Server(listener)
        server.start()
        client = FabricClient(path, patience_s=10)
        runner.run(client.connect())
        assert runner.run(client.ping()) == "pong"
        server.go.set()
        assert server.gone.wait(20)
        assert runner.run(client.ping()) == "pong"
        server.join()
        runner.run(client.close())
