"""Programme 5, second half: mutated requests and handshakes against the fabric's own process. Each is answered as the
protocol says or ends its connection; others are served all the while, nothing breaks inside, memory is bounded."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mutants
import pytest
from fabric_process import FabricProcess, fabric_process
from nbd_lab import MIB, RawClient
from programme import report, size
from seeds import chosen_seed

from innkeeper.fabric.nbd import protocol as p

SIZE = 4 * MIB
MEMORY_BYTES = 128 * MIB
"""What mutants may make the process take above what the bystander needs: the buffers of some connections."""


def peak_bytes(pid: int) -> int:
    """The most memory that a process has had resident."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) << 10


class Bystander:
    """Another client, which writes and reads what it wrote without end."""

    def __init__(self, fabric: FabricProcess) -> None:
        self.done = 0
        self._client = RawClient(fabric.paths.nbd_socket)
        self._client.greet()
        self._client.go(fabric.disk(SIZE))
        self._ending = threading.Event()
        self._executor = ThreadPoolExecutor(1)
        self._run = self._executor.submit(self._use)

    def _use(self) -> None:
        chance = random.Random(1)
        kept = bytearray(SIZE)
        while not self._ending.wait(0.002):
            offset, data = chance.randrange(SIZE // 4096) * 4096, chance.randbytes(4096)
            assert self._client.ask(p.Command.WRITE, offset, data=data).error == 0
            kept[offset : offset + 4096] = data
            offset = chance.randrange(SIZE // 65536) * 65536
            assert self._client.ask(p.Command.READ, offset, 65536).data == kept[offset : offset + 65536]
            self.done += 1
        assert self._client.ask(p.Command.READ, 0, SIZE).data == kept

    def end(self) -> None:
        """Raises what it met with."""
        self._ending.set()
        self._executor.shutdown()
        self._client.close()
        self._run.result()


def attack(state: Path, seed: int, count: int) -> Counter[str]:
    chance = random.Random(seed)
    done: Counter[str] = Counter()
    with fabric_process(state) as fabric:
        fabric.ask("cache_resize", 16 * MIB)
        pid, path, export = fabric.pid, fabric.paths.nbd_socket, fabric.disk(SIZE)
        bystander = Bystander(fabric)
        try:
            before = peak_bytes(pid)
            while done["mutants"] < count:
                if chance.random() < 0.1:
                    done["mutated requests"] += mutants.requests(chance, path, export, SIZE, 40)
                else:
                    mutants.handshake(chance, path, export, SIZE)
                    done["mutated handshakes"] += 1
                done["mutants"] = done["mutated requests"] + done["mutated handshakes"]
            grown = peak_bytes(pid) - before
        finally:
            bystander.end()
        assert fabric.ask("ping") == "pong"
        assert fabric.pid == pid
        assert grown < MEMORY_BYTES, f"{grown >> 20} MiB"
        log = (fabric.paths.logs / "fabric.log").read_text()
        assert "Traceback" not in log, log[-4000:]
        assert len(log) < 1000 * count
    done["MiB more memory at most"] = grown >> 20
    done["requests of a bystander"] = 2 * bystander.done
    return done


def test_mutants_harm_nobody_else(tmp_path: Path) -> None:
    done = attack(tmp_path / "inn", 5, 2000)
    assert min(done["mutated requests"], done["mutated handshakes"]) >= 200


@pytest.mark.slow
@pytest.mark.programme
def test_many_mutants(tmp_path: Path) -> None:
    seed, count = chosen_seed(), size(50_000, 500_000)
    done = attack(tmp_path / "inn", seed, count)
    least = {
        "mutants": count,
        "mutated requests": count // 10,
        "mutated handshakes": count // 10,
        "requests of a bystander": count // 50,
    }
    report(5, "mutated NBD", seeds=str(seed), trials="mutants", counts=done, least=least)
