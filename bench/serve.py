"""The two servers under test, Innkeeper's fabric and qemu-nbd on qcow2 (cache=writeback), and fio's nbd engine that
drives both.

The peer is measured right before ours, with the same jobs on disks of the same number, size and content; a full run
repeats the pair and takes the medians.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from bench.report import Context
from innkeeper.fabric.client import FabricClient
from innkeeper.system import process
from innkeeper.system.paths import Paths

PEER = "qemu-nbd qcow2"
MIB = 1 << 20
GIB = 1 << 30
ROUNDS = 3
Job = dict[str, str | int]
FILL: Job = {"rw": "write", "bs": "1m", "iodepth": 8, "refill_buffers": 1, "buffer_compress_percentage": 50}
"""Fresh, half compressible bytes, of which deduplication gains nothing."""
RANDOM: Job = {"bs": "4k", "iodepth": 32, "time_based": 1}


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

    def disk(self, size_bytes: int) -> str:
        """The id of a new disk under a storage of its own with lz4 and deduplication."""
        storage, disk = str(uuid4()), str(uuid4())
        self.ask("storage_create", storage)
        self.ask("disk_create", disk, size_bytes, storage)
        return disk

    def attach(self, disk_id: str) -> str:
        """The export's name of a new attachment that may write."""
        attachment = str(uuid4())
        self.ask("attach", attachment, disk_id=disk_id, role="writer", uid=os.getuid())
        return attachment

    def uri(self, attachment_id: str) -> str:
        return f"nbd+unix:///{attachment_id}?socket={self.paths.nbd_socket}"


def ask(paths: Paths, operation: str, *arguments: Any, **named: Any) -> Any:
    """One control operation on a connection of its own."""
    with Fabric(paths) as running:
        return running.ask(operation, *arguments, **named)


@dataclass
class Served:
    """Disks that one of the two serves."""

    work: Path
    uris: list[str] = field(default_factory=list)
    sockets: list[tuple[Path, str]] = field(default_factory=list)
    """Of every disk, for ``NbdClient``: socket and export."""
    fabric: Fabric | None = None

    def drain(self) -> None:
        """Have all that was written where it stays."""
        if self.fabric is not None:
            self.fabric.ask("drain")


@contextmanager
def ours(work: Path, size_bytes: int, count: int = 1) -> Iterator[Served]:
    """Empty disks of one pool; without a size none."""
    with fabric(work) as paths, Fabric(paths) as running:
        served = Served(work, fabric=running)
        for _ in range(count):
            export = running.attach(running.disk(size_bytes))
            served.uris.append(running.uri(export))
            served.sockets.append((paths.nbd_socket, export))
        yield served


@contextmanager
def qemu_nbd(image: Path) -> Iterator[Path]:
    """The socket of a qemu-nbd that exports the qcow2 as ``x``."""
    sock = image.with_suffix(".sock")
    server = process.spawn(
        ["qemu-nbd", *("-f", "qcow2", "--cache=writeback", "-t", "-x", "x", "-e", "8"), "-k", str(sock), str(image)],
        log=image.with_suffix(".log"),
    )
    try:
        while not sock.exists() and server.poll() is None:
            time.sleep(0.02)
        yield sock
    finally:
        server.terminate()
        server.wait(60)
        sock.unlink(missing_ok=True)


@contextmanager
def peer(work: Path, size_bytes: int, count: int = 1) -> Iterator[Served]:
    """Empty qcow2 files, each behind a qemu-nbd of its own."""
    served = Served(work)
    with ExitStack() as closing:
        for number in range(count):
            image = work / f"peer{number}.qcow2"
            process.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), str(size_bytes)])
            closing.callback(image.unlink)
            sock = closing.enter_context(qemu_nbd(image))
            served.uris.append(f"nbd+unix:///x?socket={sock}")
            served.sockets.append((sock, "x"))
        yield served


def fio_command(uris: Sequence[str], job: Job, output: Path) -> list[str]:
    """fio with one process for each disk and one result for all of them."""
    command = ["fio", "--ioengine=nbd", "--group_reporting", "--output-format=json", f"--output={output}"]
    for number, uri in enumerate(uris):
        command += [f"--name=disk{number}", f"--uri={uri}", *(f"--{key}={value}" for key, value in job.items())]
    return command


def fio_result(output: Path) -> dict[str, Any]:
    text = output.read_text()
    result: dict[str, Any] = json.loads(text[text.index("{") :])["jobs"][0]
    if result["error"]:
        raise RuntimeError(f"fio failed with error {result['error']}")
    return result


def fio(served: Served, job: Job) -> dict[str, Any]:
    """Run a job on all disks at once; fio's result of it."""
    output = served.work / "fio.json"
    process.run(fio_command(served.uris, job, output), timeout_s=3600)
    return fio_result(output)


def iops(result: dict[str, Any]) -> float:
    """Reads and writes a second."""
    return float(result["read"]["iops"] + result["write"]["iops"])


def pairs(
    context: Context, size_bytes: int, measure: Callable[[Served], dict[str, float]], count: int = 1, rounds: int = 0
) -> tuple[dict[str, float], dict[str, float]]:
    """Medians of (ours, the peer's) of what ``measure`` finds on empty disks."""
    found: tuple[list[dict[str, float]], list[dict[str, float]]] = ([], [])
    for number in range(rounds or (1 if context.quick else ROUNDS)):
        work = context.work / f"round{number}"
        work.mkdir()
        with peer(work, size_bytes, count) as served:
            found[1].append(measure(served))
        with ours(work, size_bytes, count) as served:
            found[0].append(measure(served))
        process.run(["rm", "-rf", str(work)], timeout_s=600)
    mine, theirs = ({key: statistics.median(each[key] for each in side) for key in side[0]} for side in found)
    return mine, theirs
