"""A fabric in processes of its own: keeper, service, sockets; and writers that stamp what they write."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from innkeeper.fabric.client import FabricClient
from innkeeper.system.paths import Paths

PATIENCE_S = 60.0
_KEEPER = """
import sys
from pathlib import Path
from innkeeper.fabric.keeper import Keeper, listen
from innkeeper.system.paths import Paths
paths = Paths.open(sys.argv[1])
service = [sys.executable, "-m", "innkeeper.fabric.service", "--state-dir", str(paths.state)]
Keeper(service, listen(paths.nbd_socket), steady_s=0).run()
"""
"""A keeper that never pauses, for tests that kill its fabric faster than one that fails would."""


def eventually(holds: Any, what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


class FabricProcess:
    """The keeper of an inn in ``state`` and what it keeps."""

    def __init__(self, state: Path, *, hasty: bool = False) -> None:
        self.paths = Paths.open(state, create=True)
        self.paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
        self.storage_id = str(uuid4())
        self._hasty = hasty
        self.start()
        self.ask("storage_create", self.storage_id)

    def start(self) -> None:
        """Start a keeper, which starts the fabric."""
        state = str(self.paths.state)
        program = ["-c", _KEEPER, state] if self._hasty else ["-m", "innkeeper.fabric.keeper", "--state-dir", state]
        with (self.paths.state / "keeper.log").open("ab") as log:
            self.keeper = subprocess.Popen([sys.executable, *program], stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """One control operation over a connection of its own."""

        async def call() -> Any:
            client = FabricClient(self.paths.fabric_socket, patience_s=PATIENCE_S)
            await client.connect()
            try:
                return await getattr(client, operation)(*arguments, **named)
            finally:
                await client.close()

        return asyncio.run(call())

    @property
    def pid(self) -> int:
        """The fabric's pid, as it noted it."""
        return int((self.paths.run / "fabric.pid").read_text())

    def noted_pid(self) -> int:
        """The same, 0 while it is being noted."""
        return int((self.paths.run / "fabric.pid").read_text() or 0)

    def kill(self) -> int:
        """SIGKILL the fabric; the pid it had."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def die_with(self, cut: Callable[[], None]) -> None:
        """SIGKILL both fabric and keeper, with ``cut`` done when the fabric has stopped and is not yet dead."""
        pid = self.pid
        os.kill(pid, signal.SIGSTOP)
        self.keeper.kill()  # whereupon the fabric is told to end, which it cannot any more
        self.keeper.wait()
        cut()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the fabric's end")

    def disk(self, size_bytes: int, *, role: str = "writer", uid: int | None = None) -> str:
        """The export's name of a new disk."""
        disk_id = str(uuid4())
        self.ask("disk_create", disk_id, size_bytes, self.storage_id)
        return self.attach(disk_id=disk_id, role=role, uid=os.geteuid() if uid is None else uid)

    def attach(self, **subject: Any) -> str:
        attachment_id = str(uuid4())
        self.ask("attach", attachment_id, **subject)
        return attachment_id

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.paths.nbd_socket}"

    def accepts(self) -> bool:
        """Whether the NBD socket takes a connection."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.paths.nbd_socket)) == 0

    def end(self) -> None:
        self.keeper.send_signal(signal.SIGTERM)
        assert self.keeper.wait(PATIENCE_S) == 0
        for left in self.paths.run.iterdir():
            left.unlink()
        self.paths.run.rmdir()


@contextmanager
def fabric_process(state: Path, *, hasty: bool = False) -> Iterator[FabricProcess]:
    fabric = FabricProcess(state, hasty=hasty)
    try:
        yield fabric
    finally:
        fabric.end()
