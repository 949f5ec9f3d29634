"""The keeper: holds the one listening NBD socket and keeps a fabric running behind it.

    python -m innkeeper.fabric.keeper --state-dir DIR

The socket is passed as systemd passes one (LISTEN_FDS, descriptor 3), so it never closes while the fabric is replaced:
what connects meanwhile waits in its queue. Standard library only, so that there is next to nothing here to fail or to
update. SIGTERM ends the fabric, then the keeper. It restarts the fabric whenever that ends by itself: at once, then
with pauses that grow while it keeps ending.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from innkeeper.system.paths import Paths

LISTEN_FD = 3
STEADY_S = 10.0
"""A fabric that ran this long is restarted at once when it ends."""
LONGEST_PAUSE_S = 5.0
END_PATIENCE_S = 30.0


def listen(path: Path) -> socket.socket:
    """The listening socket at ``path``; every uid may connect, the fabric then looks who it is."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(1024)
    return listener


def start(command: list[str], listener: socket.socket) -> int:
    """Fork and execute the fabric with the listening socket as descriptor 3; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.dup2(listener.fileno(), LISTEN_FD)
        os.set_inheritable(LISTEN_FD, True)
        os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
        os.execv(command[0], command)
    finally:
        os._exit(127)


class Keeper:
    """Starts the fabric again and again until told to end."""

    def __init__(self, command: list[str], listener: socket.socket) -> None:
        self._command = command
        self._listener = listener
        self._child = 0
        self._ending = False
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, self._end)

    def _end(self, _number: int, _frame: FrameType | None) -> None:
        self._ending = True
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child, signal.SIGTERM)

    def run(self) -> None:
        pause_s = 0.0
        while not self._ending:
            time.sleep(pause_s)
            if self._ending:
                break
            began = time.monotonic()
            self._child = start(self._command, self._listener)
            status = self._wait()
            self._child = 0
            pause_s = 0.0 if time.monotonic() - began > STEADY_S else min(LONGEST_PAUSE_S, 2 * pause_s or 0.1)
            if not self._ending:
                print(f"the fabric ended with status {status}; starting it again", file=sys.stderr, flush=True)

    def _wait(self) -> int:
        """Wait for the fabric to end; one that does not after SIGTERM is killed."""
        deadline = 0.0
        pidfd = os.pidfd_open(self._child)
        try:
            while not select.select([pidfd], [], [], 1.0)[0]:
                if self._ending:
                    deadline = deadline or time.monotonic() + END_PATIENCE_S
                    if time.monotonic() > deadline:
                        os.kill(self._child, signal.SIGKILL)
        finally:
            os.close(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(self._child, 0)[1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="innkeeper.fabric.keeper")
    parser.add_argument("--state-dir")
    paths = Paths.open(parser.parse_args().state_dir)
    listener = listen(paths.nbd_socket)
    note = paths.run / "keeper.pid"
    note.write_text(f"{os.getpid()}\n")
    service = [sys.executable, "-m", "innkeeper.fabric.service", "--state-dir", str(paths.state)]
    try:
        Keeper(service, listener).run()
    finally:
        for left in (note, paths.nbd_socket):
            left.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
