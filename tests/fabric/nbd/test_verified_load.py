"""Programme 6: fio writes and verifies by CRC-32C, four jobs on four disks, while the fabric is busy with itself:
snapshots come and go, the log is drained, dead space swept, stored data packed anew by other policies."""

from __future__ import annotations

import json
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from fabric_process import FabricProcess, fabric_process
from nbd_lab import MIB
from programme import report, size
from seeds import chosen_seed

JOBS = 4


class Busy:
    """The fabric's own work, one thing after the other until it is told to end."""

    def __init__(self, fabric: FabricProcess) -> None:
        self.done: Counter[str] = Counter()
        self._fabric = fabric
        self._disks = [each["disk_id"] for each in fabric.ask("attachment_ls")]
        self._snapshots: list[str] = []
        self._ending = threading.Event()
        self._executor = ThreadPoolExecutor(1)
        self._run = self._executor.submit(self._work)

    def _work(self) -> None:
        while not self._ending.wait(0.2):
            for compression in ("zstd", "off", "lz4"):
                self._round(compression)

    def _round(self, compression: str) -> None:
        ask = self._fabric.ask
        made = {str(uuid4()): disk_id for disk_id in self._disks}
        ask("snapshot_create", made)
        self._snapshots += made
        self.done["snapshots"] += len(made)
        ask("drain")
        while len(self._snapshots) > 2 * JOBS:
            ask("snapshot_rm", self._snapshots.pop(0))
        ask("sweep")
        self.done["drains and sweeps"] += 1
        ask("storage_set", self._fabric.storage_id, compression=compression)
        left = ask("curate_plan")["left_groups"]
        while left and not self._ending.is_set():
            left = ask("curate_next")["left_groups"]
            self.done["groups packed anew"] += 1

    def end(self) -> None:
        """Raises what it met with."""
        self._ending.set()
        self._executor.shutdown()
        self._run.result()


def fio(
    fabric: FabricProcess, exports: list[str], directory: Path, seed: int, disk_bytes: int, loops: int
) -> dict[str, Any]:
    """Run four verified jobs; the sums of what fio reports."""
    output = directory / "fio.json"
    shared = (
        *("--ioengine=nbd", "--rw=randwrite", "--bsrange=4k-64k", "--iodepth=16", f"--size={disk_bytes}"),
        *(f"--loops={loops}", f"--randseed={seed}", "--buffer_compress_percentage=50", "--dedupe_percentage=20"),
        *("--verify=crc32c", "--verify_backlog=1024", "--verify_fatal=1", "--verify_state_save=0", "--fsync=256"),
    )
    jobs = [word for export in exports for word in (f"--name={export}", f"--uri={fabric.uri(export)}")]
    command = ["fio", *shared, *jobs, "--output-format=json", f"--output={output}"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=directory)
    text = output.read_text()
    assert ended.returncode == 0, text[:4000] + ended.stderr
    found = json.loads(text[text.index("{") :])["jobs"]
    assert [job["error"] for job in found] == [0] * JOBS
    return {
        "verified": sum(job["read"]["io_kbytes"] for job in found) // 4,
        "slowest": min(job["write"]["iops"] for job in found),
    }


def load(directory: Path, seed: int, disk_bytes: int, loops: int) -> tuple[dict[str, Any], Counter[str]]:
    with fabric_process(directory / "inn") as fabric:
        exports = [fabric.disk(disk_bytes) for _ in range(JOBS)]
        busy = Busy(fabric)
        try:
            found = fio(fabric, exports, directory, seed, disk_bytes, loops)
        finally:
            busy.end()
        assert not fabric.ask("check")["problems"]
    return found, busy.done


def test_fio_verifies_what_it_wrote_while_the_fabric_is_busy(tmp_path: Path) -> None:
    found, done = load(tmp_path, 6, 8 * MIB, 1)
    assert found["verified"] >= JOBS * 8 * MIB // 4096 * 9 // 10
    assert done["drains and sweeps"]


@pytest.mark.slow
@pytest.mark.programme
def test_many_blocks_are_verified_while_the_fabric_is_busy(tmp_path: Path) -> None:
    seed, wanted, disk_bytes = chosen_seed(), size(500_000, 2_000_000), 128 * MIB
    loops = -(-wanted * 11 // 10 // (JOBS * disk_bytes // 4096))
    found, done = load(tmp_path, seed, disk_bytes, loops)
    counts = {"verified blocks": found["verified"], "I/Os a second on the slowest disk": int(found["slowest"]), **done}
    least = {
        "verified blocks": wanted,
        "I/Os a second on the slowest disk": 20,
        "snapshots": 3 * JOBS,
        "drains and sweeps": 3,
        "groups packed anew": 3,
    }
    report(6, "load verified by fio", seeds=str(seed), trials="verified blocks", counts=counts, least=least)
