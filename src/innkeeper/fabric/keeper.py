"""The keeper: holds the one listening NBD socket and keeps a fabric running behind it.

    python -m innkeeper.fabric.keeper --state-dir DIR

The socket is passed as systemd passes one (LISTEN_FDS, descriptor 3), so it never closes while the fabric is replaced:
what connects meanwhile waits in its queue. Standard library only, so that there is next to nothing here to fail or to
update. SIGTERM ends the fabric, then the keeper. It restarts the fabric whenever that ends by itself: at once, then
with pauses that grow while it keeps ending. A fabric whose keeper dies ends too, so that a new keeper can start one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import stat
import sys
import time
from pathlib import Path

from innkeeper.system.paths import Paths

LISTEN_FD = 3
STEADY_S = 2.0
"""A fabric that ran this long is restarted at once when it ends."""
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0
END_PATIENCE_S = 30.0
_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def listen(path: Path) -> socket.socket:
    """The listening socket at ``path``; every uid may connect, the fabric then looks who it is.

    A socket that is there is replaced. Raises ``FileExistsError`` when something else is.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise FileExistsError(f"{path} exists and is no socket")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(1024)
    return listener


def start(command: list[str], listener: socket.socket) -> int:
    """Fork and execute the fabric with the listening socket as descriptor 3; returns its pid."""
    keeper = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != keeper:
            os._exit(0)
        os.dup2(listener.fileno(), LISTEN_FD)
        os.set_inheritable(LISTEN_FD, True)
        os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        os.execv(command[0], command)
    finally:
        os._exit(127)


class Keeper:
    """Starts the fabric again and again until SIGTERM or SIGINT."""

    def __init__(self, command: list[str], listener: socket.socket, *, steady_s: float = STEADY_S) -> None:
        self._command = command
        self._listener = listener
        self._steady_s = steady_s
        self._wake, wake = socket.socketpair()
        wake.setblocking(False)
        self._wake_writer = wake
        signal.set_wakeup_fd(wake.fileno())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda _number, _frame: None)  # its byte in the socket pair is what counts

    def _told_to_end(self, wait_s: float) -> bool:
        """Whether SIGTERM or SIGINT came, at once or within ``wait_s``."""
        return bool(select.select([self._wake], [], [], wait_s)[0])

    def run(self) -> None:
        pause_s = 0.0
        while not self._told_to_end(pause_s):
            began = time.monotonic()
            status = self._wait(start(self._command, self._listener))
            steady = time.monotonic() - began > self._steady_s
            pause_s = 0.0 if steady else min(LONGEST_PAUSE_S, 2 * pause_s or FIRST_PAUSE_S)
            if not self._told_to_end(0):
                print(f"the fabric ended with status {status}; starting it again", file=sys.stderr, flush=True)

    def _wait(self, child: int) -> int:
        """Wait for the fabric to end, pass on the word to end; a fabric that does not heed it is killed."""
        pidfd = os.pidfd_open(child)
        try:
            if pidfd not in select.select([pidfd, self._wake.fileno()], [], [])[0]:
                signal.pidfd_send_signal(pidfd, signal.SIGTERM)
                if not select.select([pidfd], [], [], END_PATIENCE_S)[0]:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> int:
    parser = argparse.ArgumentParser(prog="innkeeper.fabric.keeper")
    parser.add_argument("--state-dir")
    paths = Paths.open(parser.parse_args().state_dir)
    paths.run.mkdir(mode=0o755, parents=True, exist_ok=True)
    note = paths.run / "keeper.pid"
    with note.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"a keeper of {paths.state} runs already: {note.read_text().strip()}", file=sys.stderr)
            return 1
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        service = [sys.executable, "-m", "innkeeper.fabric.service", "--state-dir", str(paths.state)]
        try:
            Keeper(service, listen(paths.nbd_socket)).run()
        finally:
            for left in (note, paths.nbd_socket):
                left.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
