"""Recovery after SIGKILL with a full log: from the kill until the first read is answered, for each GiB of log.

The start of a process with an empty log is measured beside it and counted by itself; the row of the goal is what the
log adds to that.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from pathlib import Path

from bench.report import Context, Row, at_most
from bench.serve import GIB, RANDOM, Fabric, Served, fio_command, ours
from innkeeper.fabric.nbd.client import NbdClient
from innkeeper.model.problems import Problem
from innkeeper.system import process

LIMIT_S = 1.0
FULL = 0.94
DISKS = 4
"""One disk alone may not fill the log."""
_PAGE = 4096


def _fill_log(served: Served) -> int:
    """Write until the log is full; its bytes."""
    assert served.fabric is not None
    job = RANDOM | {"rw": "randwrite", "size": 4 * GIB, "runtime": 300}
    writer = process.spawn(fio_command(served.uris, job, served.work / "load.json"), log=served.work / "load.log")
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            shown = served.fabric.ask("pool_show")
            if shown["log_bytes"] >= FULL * shown["log_limit_bytes"]:
                _kill(served.fabric)
                return int(shown["log_bytes"])
        raise RuntimeError(f"the log does not fill: {shown['log_bytes']} bytes")
    finally:
        writer.kill()
        writer.wait(60)


def _kill(running: Fabric) -> None:
    os.kill(int((running.paths.run / "fabric.pid").read_text()), signal.SIGKILL)


def _first_read_s(socket: Path, export: str) -> float:
    """Seconds until a read is answered."""
    began = time.perf_counter()
    while True:
        try:
            with NbdClient(socket, export) as client:
                client.submit_read(0, _PAGE, lambda data: None)
                client.settle()
                return time.perf_counter() - began
        except Problem:
            if time.perf_counter() - began > 120:
                raise
            time.sleep(0.005)


def rows(context: Context) -> list[Row]:
    """The rows of recovery."""
    full, empty, sizes = [], [], []
    for number in range(1 if context.quick else 5):
        work = context.work / str(number)
        work.mkdir()
        with ours(work, 4 * GIB, DISKS) as served:
            assert served.fabric is not None
            sizes.append(_fill_log(served))
            full.append(_first_read_s(*served.sockets[0]))
            served.drain()
            _kill(served.fabric)
            empty.append(_first_read_s(*served.sockets[0]))
    log_gib = statistics.median(sizes) / GIB
    seconds, start = statistics.median(full), statistics.median(empty)
    name = f"first read after SIGKILL, {log_gib:.2f} GiB of log"
    return [
        at_most(f"{name}: what each GiB adds", max(0.0, seconds - start) / log_gib, "s/GiB", LIMIT_S),
        Row(name, seconds, "s", "all drained", start, start / seconds),
    ]
