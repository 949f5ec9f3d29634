"""Minimums under real load: clients of their own over NBD, more of them than the fabric can serve at once."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from uuid import uuid4

import pytest
from fabric_process import FabricProcess, eventually, fabric_process

pytestmark = [pytest.mark.slow, pytest.mark.alone]
QUIET, NOISY, GREEDY = (str(uuid4()) for _ in range(3))
VAST = 50_000_000


@pytest.fixture(scope="module")
def fabric(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FabricProcess]:
    with fabric_process(tmp_path_factory.mktemp("inn")) as running:
        yield running


@contextmanager
def reader(fabric: FabricProcess, export: str, depth: int) -> Iterator[None]:
    """A client that asks for 4 KiB here and there all the time, so many at once."""
    job = ["fio", "--name=load", "--ioengine=nbd", f"--uri={fabric.uri(export)}", "--rw=randread", "--bs=4k"]
    running = subprocess.Popen(
        [*job, f"--iodepth={depth}", "--size=16M", "--time_based", "--runtime=600"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        running.kill()
        running.wait()


def under(fabric: FabricProcess, qos_id: str) -> str:
    """The export of a new disk under a policy."""
    export = fabric.disk(16 << 20)
    (disk_id,) = [each["disk_id"] for each in fabric.ask("attachment_ls") if each["id"] == export]
    fabric.ask("disk_set", disk_id, qos_id=qos_id)
    return export


def flow_of(fabric: FabricProcess, qos_id: str) -> dict[str, Any] | None:
    flows = [flow for flow in fabric.ask("metrics")["flows"] if flow["qos_id"] == qos_id]
    return flows[0] if flows else None


def rate(fabric: FabricProcess, qos_id: str) -> float:
    flow = flow_of(fabric, qos_id)
    return float(flow["iops"]) if flow else 0.0


def missed(fabric: FabricProcess, qos_id: str) -> bool:
    flow = flow_of(fabric, qos_id)
    return bool(flow and flow["minimum_missed"])


def mean_rate(fabric: FabricProcess, qos_id: str) -> float:
    """Over a second or so, once it is under way."""
    eventually(lambda: rate(fabric, qos_id) > 0, "the load has begun")
    found = []
    for _ in range(12):
        time.sleep(0.1)
        found.append(rate(fabric, qos_id))
    return sum(found) / len(found)


@pytest.mark.parametrize("neighbours", [1, 3])
@pytest.mark.parametrize("bound", ["min_iops", "min_bytes_per_s"])
def test_a_minimum_holds_against_noisy_neighbours(fabric: FabricProcess, neighbours: int, bound: str) -> None:
    fabric.ask("qos_set", QUIET)
    fabric.ask("qos_set", NOISY, max_iops=VAST, aggregated=True)

    def minimum(iops: float) -> Callable[[], bool]:
        """Have the quiet one be sure of so much; whether it has it now."""
        fabric.ask("qos_set", QUIET, **{bound: int(iops * (4096 if bound == "min_bytes_per_s" else 1))})
        return lambda: rate(fabric, QUIET) >= 0.95 * iops

    quiet = under(fabric, QUIET)
    noisy = [under(fabric, NOISY) for _ in range(neighbours)]
    with ExitStack() as running:
        for export in noisy:
            running.enter_context(reader(fabric, export, 64))
        running.enter_context(reader(fabric, quiet, 4))
        minimum(1)
        share = mean_rate(fabric, QUIET)
        holds = minimum(3 * share)
        eventually(holds, "three times its share is held")
        eventually(lambda: not missed(fabric, QUIET), "there is no alarm")
        assert rate(fabric, NOISY) > 0, "the others go on"


def test_a_minimum_above_what_the_pool_can_give_is_told(fabric: FabricProcess) -> None:
    fabric.ask("qos_set", GREEDY, min_iops=VAST, aggregated=True)
    with ExitStack() as running:
        for _ in range(4):
            running.enter_context(reader(fabric, under(fabric, GREEDY), 64))
        eventually(lambda: missed(fabric, GREEDY), "what cannot be held is told")
        assert rate(fabric, GREEDY) > 0
        fabric.ask("qos_set", GREEDY, min_iops=1, aggregated=True)
        eventually(lambda: not missed(fabric, GREEDY), "the alarm is over")
