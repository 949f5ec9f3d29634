"""The fabric over NBD beside qemu-nbd on qcow2 (cache=writeback), both driven by fio's nbd engine.

Every figure of the peer is taken right before ours, with the same job on a disk of the same size and content.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from bench.report import Context, Row, higher
from innkeeper.fabric.client import FabricClient
from innkeeper.system import process
from innkeeper.system.paths import Paths

PEER = "qemu-nbd qcow2"
MIB = 1 << 20
GIB = 1 << 30
Job = dict[str, str | int]


@contextmanager
def fabric(work: Path) -> Iterator[Paths]:
    """A fabric under its keeper, of an inn of its own in ``work``."""
    paths = Paths.open(work / "inn", create=True)
    paths.run.mkdir(parents=True, exist_ok=True)
    log = work / "keeper.log"
    command = (sys.executable, "-m", "innkeeper.fabric.keeper", "--state-dir", str(paths.state))
    keeper = process.spawn(command, log=log)
    try:
        ask(paths, "ping")
        yield paths
    finally:
        keeper.send_signal(signal.SIGTERM)
        keeper.wait(60)
        for left in paths.run.iterdir():
            left.unlink()
        paths.run.rmdir()


class Fabric:
    """A connection to the control socket for code that is not asynchronous; use in a ``with``."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._runner = asyncio.Runner()
        self._client = FabricClient(paths.fabric_socket, patience_s=30)

    def __enter__(self) -> Self:
        self._runner.run(self._client.connect())
        return self

    def __exit__(self, *_: object) -> None:
        self._runner.run(self._client.close())
        self._runner.close()

    def ask(self, operation: str, *arguments: Any, **named: Any) -> Any:
        """One operation of ``FabricClient``."""
        return self._runner.run(getattr(self._client, operation)(*arguments, **named))


def ask(paths: Paths, operation: str, *arguments: Any, **named: Any) -> Any:
    """One control operation on a connection of its own."""
    with Fabric(paths) as running:
        return running.ask(operation, *arguments, **named)


def new_disk(paths: Paths, size_bytes: int) -> str:
    """The URI of a new disk with lz4 and deduplication."""
    storage, disk, attachment = (str(uuid4()) for _ in range(3))
    ask(paths, "storage_create", storage)
    ask(paths, "disk_create", disk, size_bytes, storage)
    ask(paths, "attach", attachment, disk_id=disk, role="writer", uid=os.getuid())
    return f"nbd+unix:///{attachment}?socket={paths.nbd_socket}"


@contextmanager
def qemu_nbd(work: Path, size_bytes: int) -> Iterator[str]:
    """The URI of an empty qcow2 behind qemu-nbd."""
    image, sock = work / "peer.qcow2", work / "peer.sock"
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size_bytes)])
    server = process.spawn(
        ["qemu-nbd", *("-f", "qcow2", "--cache=writeback", "-t", "-x", "x", "-e", "8"), "-k", str(sock), str(image)],
        log=work / "peer.log",
    )
    try:
        while not sock.exists() and server.poll() is None:
            time.sleep(0.02)
        yield f"nbd+unix:///x?socket={sock}"
    finally:
        server.terminate()
        server.wait(60)
        image.unlink()
        sock.unlink(missing_ok=True)


def fio(work: Path, uri: str, job: Job) -> dict[str, Any]:
    """Run a job; fio's results of it."""
    output = work / "fio.json"
    options = [f"--{key}={value}" for key, value in job.items()]
    shown = ("--output-format=json", f"--output={output}")
    process.run(["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", *options, *shown], timeout_s=3600)
    text = output.read_text()
    result: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    if result["error"]:
        raise RuntimeError(f"fio failed on {uri} with error {result['error']}")
    return result


BURST: Job = {"rw": "randwrite", "bs": "4k", "iodepth": 32, "size": "1g", "io_size": "256m"}
HOT_READ: Job = {"rw": "randread", "bs": "4k", "iodepth": 32, "size": "512m", "time_based": 1}
FILL: Job = {"rw": "write", "bs": "1m", "iodepth": 8, "refill_buffers": 1, "buffer_compress_percentage": 50}
SEQUENTIAL_READ: Job = {"rw": "read", "bs": "1m", "iodepth": 8, "time_based": 1}


def measure(work: Path, uri: str, context: Context, drained: Any) -> dict[str, float]:
    """The short jobs on an empty disk of 8 GiB."""
    seconds = 3 if context.quick else 15
    sequential = GIB if context.quick else 2 * GIB
    found = {"burst": fio(work, uri, BURST)["write"]["iops"]}
    drained()
    fio(work, uri, FILL | {"size": "512m"})
    drained()
    fio(work, uri, HOT_READ | {"runtime": 1})
    found["hot"] = fio(work, uri, HOT_READ | {"runtime": seconds})["read"]["iops"]
    began = time.monotonic()
    fio(work, uri, FILL | {"offset": "2g", "size": sequential, "end_fsync": 1})
    found["write"] = sequential / MIB / (time.monotonic() - began)
    drained()
    job = SEQUENTIAL_READ | {"offset": "2g", "size": sequential, "runtime": seconds}
    fio(work, uri, job | {"runtime": 1})
    found["read"] = fio(work, uri, job)["read"]["bw_bytes"] / MIB
    return found


def sustained(work: Path, uri: str, context: Context) -> float:
    """Random writes over a pre-filled disk, after the log has long been full; the last minute of ten."""
    size, ramp_s, seconds = (GIB, 20, 10) if context.quick else (8 * GIB, 540, 60)
    fio(work, uri, FILL | {"size": size})
    job: Job = {"rw": "randwrite", "bs": "4k", "iodepth": 32, "size": size, "time_based": 1}
    return float(fio(work, uri, job | {"ramp_time": ramp_s, "runtime": seconds})["write"]["iops"])


def rows(context: Context) -> list[Row]:
    """The data path's rows; see the issue's table."""
    size = 8 * GIB
    with qemu_nbd(context.work, size) as uri:
        theirs = measure(context.work, uri, context, lambda: None)
    with fabric(context.work) as paths:
        ours = measure(context.work, new_disk(paths, size), context, lambda: ask(paths, "drain"))
    with qemu_nbd(context.work, size) as uri:
        theirs["sustained"] = sustained(context.work, uri, context)
    with fabric(context.work) as paths:
        ours["sustained"] = sustained(context.work, new_disk(paths, size), context)
    named = {
        "burst": ("NBD 4 KiB random write QD 32, burst", "IOPS", 1.2),
        "sustained": ("NBD 4 KiB random write QD 32, sustained", "IOPS", 0.8),
        "hot": ("NBD 4 KiB random read QD 32, hot", "IOPS", 1.2),
        "write": ("NBD 1 MiB sequential write, flushed", "MiB/s", 0.6),
        "read": ("NBD 1 MiB sequential read", "MiB/s", 0.6),
    }
    return [higher(name, ours[key], unit, PEER, theirs[key], goal) for key, (name, unit, goal) in named.items()]
