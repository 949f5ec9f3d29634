"""What a restart of the fabric costs a client that writes all the time: a pause, which is reported, and nothing else.

The client is as QEMU is: a request that was under way when the connection was lost is sent again over the next one.
"""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fabric_process import FabricProcess, eventually, fabric_process
from nbd_lab import MIB, RawClient
from programme import report, size
from seeds import chosen_seed

from innkeeper.fabric.nbd import protocol as p

SIZE = 64 * MIB


class Steady:
    """Writes one block after the other, ``depth`` at once, until it is told to end; whatever happens meanwhile."""

    def __init__(self, fabric: FabricProcess, seed: int, depth: int) -> None:
        self.longest_s = 0.0
        """The longest time between two answers."""
        self.done = self.connections = 0
        self._path, self._export = fabric.paths.nbd_socket, fabric.disk(SIZE)
        self._chance, self._depth = random.Random(seed), depth
        self._ending = threading.Event()
        self._executor = ThreadPoolExecutor(1)
        self._run = self._executor.submit(self._write)

    def _write(self) -> None:
        kept: dict[int, bytes] = {}
        batch: dict[int, bytes] = {}
        last = time.monotonic()
        while not self._ending.is_set():
            client = RawClient(self._path)
            self.connections += 1
            try:
                client.greet()
                client.go(self._export)
                while not self._ending.is_set():
                    batch = batch or {
                        block: self._chance.randbytes(4096)
                        for block in self._chance.sample(range(SIZE // 4096), self._depth)
                    }
                    for block, data in batch.items():
                        client.send(p.Command.WRITE, block * 4096, len(data), data)
                    for _ in batch:
                        assert client.answer().error == 0
                    now = time.monotonic()
                    self.longest_s, last = max(self.longest_s, now - last), now
                    self.done += len(batch)
                    kept |= batch
                    batch = {}
            except (ConnectionError, BrokenPipeError):
                continue
            finally:
                client.close()
        client = RawClient(self._path)
        client.greet()
        client.go(self._export)
        for block, data in kept.items():
            assert client.ask(p.Command.READ, block * 4096, 4096).data == data
        client.close()

    def end(self) -> None:
        """Raises what it met with."""
        self._ending.set()
        self._executor.shutdown()
        self._run.result()


@pytest.mark.slow
@pytest.mark.programme
def test_a_restart_under_load_is_a_pause(tmp_path: Path) -> None:
    seed, times = chosen_seed(), size(6, 30)
    pauses: dict[str, list[float]] = {"killed": [], "shut down": []}
    restarts = 0
    with fabric_process(tmp_path / "inn", hasty=True) as fabric:
        steady, load = Steady(fabric, seed, 1), Steady(fabric, seed + 1, 32)
        try:
            for number in range(times):
                how = ("killed", "shut down")[number % 2]
                eventually(lambda before=steady.done: steady.done > before + 200, "it writes on")
                steady.longest_s, connections, pid = 0.0, steady.connections, fabric.pid
                if how == "killed":
                    fabric.kill()
                else:
                    fabric.ask("shutdown")
                eventually(lambda before=steady.done: steady.done > before + 200, "it writes on")
                assert (steady.connections, fabric.pid) != (connections, pid)
                pauses[how].append(steady.longest_s)
                restarts += 1
        finally:
            steady.end()
            load.end()
        assert not fabric.ask("check")["problems"]
    counts = {"restarts": restarts, "writes": steady.done + load.done}
    for how, found in pauses.items():
        found.sort()
        counts |= {f"ms paused when {how} (median)": round(found[len(found) // 2] * 1000)}
        counts |= {f"ms paused when {how} (longest)": round(found[-1] * 1000)}
    least = {"restarts": times, "writes": times * 400}
    report(4, "a restart under a steady client", seeds=str(seed), trials="restarts", counts=counts, least=least)
