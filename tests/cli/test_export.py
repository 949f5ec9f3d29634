"""``inn disk export`` and ``inn vm console`` as processes, over real sockets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running_api import RunningApi

from innkeeper.cli.console import _join
from innkeeper.cli.export import uri
from innkeeper.model.requests import DiskCreate
from innkeeper.system.paths import Paths

PATIENCE_S = 20.0


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def echo_server(path: Path) -> Iterator[None]:
    """Sends back what comes, in capitals; stands for the fabric's NBD socket."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                while data := peer.recv(1 << 16):
                    peer.sendall(data.upper())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(timeout=PATIENCE_S)


def environment(home: Paths) -> dict[str, str]:
    return {**os.environ, "INNKEEPER_STATE": str(home.state)}


SCRIPT = """
import sys
from pathlib import Path
from innkeeper.system import paths
paths.RUN_ROOT = Path(sys.argv.pop(1))
from innkeeper.cli.main import main
main()
"""


@contextmanager
def start(home: Paths, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """``inn`` with the run directory of the test's own inn; killed where the test has not ended it."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(home.run.parent), *arguments],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def send(line: socket.socket, data: bytes) -> None:
    line.sendall(data)
    line.shutdown(socket.SHUT_WR)


def ask(path: Path, data: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(str(path))
        line.settimeout(PATIENCE_S)
        # beside the reading: the echo takes no more while nobody takes its answer
        sender = threading.Thread(target=send, args=(line, data))
        sender.start()
        answer = bytearray()
        while chunk := line.recv(1 << 16):
            answer += chunk
        sender.join()
        return bytes(answer)


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_export_passes_bytes_until_it_is_interrupted(
    served: RunningApi, home: Paths, ending: signal.Signals
) -> None:
    served.client.disks.create(DiskCreate(name="d", size_bytes=1 << 20))
    served.house.disks.nbd_socket = str(home.run / "nbd.sock")
    place = home.run / "d.nbd"
    with echo_server(home.run / "nbd.sock"):
        with start(home, "disk", "export", "d", "--socket", str(place)) as running:
            eventually(place.exists)
            assert running.stdout is not None
            printed = running.stdout.readline().strip()
            (attachment,) = served.house.disks.exports
            assert printed == uri(attachment, place)
            assert place.stat().st_mode & 0o777 == 0o600
            big = os.urandom(3_000_000).hex().encode()
            assert ask(place, big) == big.upper()
            running.send_signal(ending)
            assert running.wait(PATIENCE_S) == 0
    assert not place.exists()
    assert served.house.disks.exports == {}


def test_a_path_that_is_taken_is_left_alone(served: RunningApi, home: Paths) -> None:
    served.client.disks.create(DiskCreate(name="d", size_bytes=1 << 20))
    place = home.run / "precious"
    place.write_text("data")
    with start(home, "disk", "export", "d", "--socket", str(place)) as running:
        _, errors = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 1
    assert "[export.path_taken]" in errors
    assert place.read_text() == "data"
    assert served.house.disks.exports == {}


def test_the_console_ends_at_its_escape() -> None:
    guest, line = socket.socketpair()
    keyboard, keys = os.pipe()
    shown, screen = os.pipe()
    try:
        os.write(keys, b"ls\n\x1dignored")
        guest.sendall(b"login: ")
        _join(line, keyboard, screen)
        assert os.read(shown, 100) == b"login: "
        assert guest.recv(100) == b"ls\n"
    finally:
        for descriptor in (keyboard, keys, shown, screen):
            os.close(descriptor)
        guest.close()
        line.close()
