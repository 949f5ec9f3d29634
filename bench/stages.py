"""Where the time of a 4 KiB write, and of a hot 4 KiB read, goes: processor time of the fabric's event loop by stage.

A process serves a pool over NBD with the fabric's own server, whose functions are wrapped to count the thread's
processor time, each without what it calls. What the wrapping itself costs is measured first and taken off. fio sends
random writes at QD 32 and then reads them back from extents; no drain runs meanwhile, so nothing waits for the
interpreter's lock. What a drain costs is taken from its own meters afterwards.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from bench.report import Context, Row
from bench.serve import GIB, MIB, RANDOM, Served, fio
from innkeeper.fabric import core, oplog, reader, volume
from innkeeper.fabric.nbd import replies, session, turn
from innkeeper.fabric.nbd.server import NbdServer
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.system import process
from innkeeper.system.files import Io

_SIZE_BYTES = 192 * MIB
_now = time.thread_time_ns


class Stages:
    """Processor time by stage, each without that of the stages it calls; and how often each was entered."""

    def __init__(self) -> None:
        self.ns: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self._inner = [0.0]
        self._within = self._around = 0.0
        self._calibrate()

    def _calibrate(self) -> None:
        """What a wrapper adds to its own stage and to the one around it."""
        count = 50_000
        nothing = self.wrapped("nothing", lambda: None)
        began = _now()
        for _ in range(count):
            nothing()
        self._around = (_now() - began - self.ns["nothing"]) / count
        self._within = self.ns["nothing"] / count
        self.clear()

    def clear(self) -> None:
        self.ns.clear()
        self.calls.clear()

    def wrapped(self, stage: str, work: Callable[..., Any]) -> Callable[..., Any]:
        inner = self._inner

        def call(*arguments: Any, **named: Any) -> Any:
            inner.append(0.0)
            began = _now()
            try:
                return work(*arguments, **named)
            finally:
                taken = _now() - began
                self.ns[stage] += taken - inner.pop() - self._within
                self.calls[stage] += 1
                inner[-1] += taken + self._around

        return call

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        setattr(owner, name, self.wrapped(stage, getattr(owner, name)))

    def per_request(self, requests: int) -> dict[str, float]:
        """Microseconds of each stage for a request."""
        return {stage: ns / 1000 / requests for stage, ns in self.ns.items()}


class Wire:
    """A client's socket whose two calls are stages."""

    def __init__(self, sock: socket.socket, stages: Stages) -> None:
        self.recv_into = stages.wrapped("receive from the socket", sock.recv_into)
        self.sendmsg = stages.wrapped("send to the socket", sock.sendmsg)
        self.fileno, self.close = sock.fileno, sock.close


def instrument(stages: Stages) -> None:
    """Wrap what a request goes through."""
    begin = session.Session.__init__

    def wired(self: Any, sock: socket.socket, *arguments: Any, **named: Any) -> None:
        begin(self, Wire(sock, stages), *arguments, **named)  # type: ignore[arg-type]

    session.Session.__init__ = wired  # type: ignore[method-assign]
    stages.wrap(session.Session, "_parse", "parse requests")
    stages.wrap(session.Session, "_readable", "be called by the loop")
    stages.wrap(volume.Volume, "stage_write", "check and stage a write")
    stages.wrap(volume, "crc32c", "checksum")
    stages.wrap(core.PoolCore, "submit", "index in the layer")
    stages.wrap(oplog.OpLog, "append", "cut batches")
    stages.wrap(oplog, "encode_batch", "encode batch headers")
    stages.wrap(oplog, "write_all", "pwritev")
    stages.wrap(turn.Turn, "commit", "end the turn")
    stages.wrap(replies, "plain", "make replies")
    stages.wrap(session.Session, "flush", "queue replies")
    stages.wrap(volume.Volume, "read_nowait", "check and dispatch a read")
    stages.wrap(reader.Reader, "page_in_memory", "look up layers and map")
    stages.wrap(core.GroupStore, "map_page", "find map pages")
    stages.wrap(core.GroupStore, "extent_page", "content cache")


@contextmanager
def _background(command: list[str], cwd: Path, log: Path) -> Iterator[None]:
    running = process.spawn(command, cwd=cwd, log=log)
    try:
        yield
    finally:
        running.terminate()
        running.wait(60)


async def _serve(directory: Path, stages: Stages) -> dict[str, Any]:
    """Serve a new disk until a request for it stands in ``directory``; what every phase took, by its name."""
    pool = Pool.open(Io(), str(directory / "pool"), background=False)
    storage, disk, attachment = str(uuid4()), str(uuid4()), "00000000-0000-4000-8000-000000000001"
    pool.storage_create(storage)
    pool.disk_create(disk, GIB, storage)
    pool.attach(attachment, disk_id=disk, role="writer", uid=os.getuid())
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(directory / "nbd.sock"))
    listener.listen(16)
    server = NbdServer(Pools(pool), listener)
    server.start()
    found: dict[str, Any] = {}
    (directory / "ready").touch()
    while not (directory / "end").exists():
        for order in directory.glob("*.order"):
            name = order.stem
            meter = server.facts()["meters"].get(disk, {})
            requests = meter.get("reads", 0) + meter.get("writes", 0)
            if name.startswith("drain"):
                pages = pool.meters.drained_pages
                began = time.process_time()
                await asyncio.to_thread(pool.drain)
                found[name] = (time.process_time() - began) * 1e6 / max(1, pool.meters.drained_pages - pages)
            elif name == "start":
                stages.clear()
                found["before"] = requests
            else:
                found[name] = stages.per_request(requests - found["before"])
            order.unlink()
        await asyncio.sleep(0.02)
    await server.close()
    pool.close()
    return found


def _tell(directory: Path, name: str) -> None:
    order = directory / f"{name}.order"
    order.touch()
    while order.exists():
        time.sleep(0.01)


def rows(context: Context) -> list[Row]:
    """A row for each stage, in microseconds for a request."""
    work = context.work
    command = [sys.executable, "-m", "bench.stages", str(work)]
    with _background(command, Path(__file__).parents[1], work / "stages.log"):
        deadline = time.monotonic() + 60
        while not (work / "ready").exists():
            if time.monotonic() > deadline:
                raise RuntimeError((work / "stages.log").read_text())
            time.sleep(0.05)
        uri = f"nbd+unix:///00000000-0000-4000-8000-000000000001?socket={work / 'nbd.sock'}"
        served = Served(work, [uri])
        _tell(work, "start")
        fio(served, {"rw": "randwrite", "bs": "4k", "iodepth": 32, "size": _SIZE_BYTES})
        _tell(work, "write")
        _tell(work, "drain_random")
        fio(served, {"rw": "write", "bs": "1m", "iodepth": 4, "size": _SIZE_BYTES, "buffer_compress_percentage": 50})
        _tell(work, "drain_rest")
        job = RANDOM | {"rw": "randread", "size": _SIZE_BYTES}
        fio(served, job | {"runtime": 4})
        _tell(work, "start")
        fio(served, job | {"runtime": 5})
        _tell(work, "read")
        (work / "end").touch()
        while not (work / "found.json").exists():
            time.sleep(0.02)
    found = json.loads((work / "found.json").read_text())
    result = []
    for what in ("write", "read"):
        stages = {stage: us for stage, us in found[what].items() if us > 0.005}
        result += [Row(f"4 KiB {what}: {stage}", us, "us") for stage, us in stages.items()]
        result.append(Row(f"4 KiB {what}: the loop's thread in all", sum(stages.values()), "us"))
    result.append(Row("drain of random pages, a page", found["drain_random"], "us"))
    return result


def main() -> None:
    directory = Path(sys.argv[1])
    stages = Stages()
    instrument(stages)
    found = asyncio.run(_serve(directory, stages))
    unfinished = directory / "found.json.new"
    unfinished.write_text(json.dumps(found))
    unfinished.rename(directory / "found.json")


if __name__ == "__main__":
    main()
