"""Every state that a power cut may leave of recorded workloads opens, holds what was flushed, and opens again so."""

from __future__ import annotations

from collections import Counter

import pytest
from operations import OPERATIONS
from programme import report, size
from recorded import explore, workloads

PARTS = 8
WORKLOADS = size(336, 480)
EVERY = size(3, 1)
"""Of how many calls one is looked at."""
SUBSETS = size(1, 2)
STATES = size(22_000, 100_000)


@pytest.mark.parametrize("workload", [("write_page", "flush"), ("snapshot", "drain"), ("shuffle",), ("shrink",)])
def test_a_workload(workload: tuple[str, ...]) -> None:
    assert explore(workload, most=1, every=2).total() > 20


def test_each_operation_is_in_a_workload() -> None:
    singles = {workload[0] for workload in workloads() if len(workload) == 1}
    assert singles == set(OPERATIONS)


@pytest.mark.slow
@pytest.mark.programme
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_recorded_workloads(part: int) -> None:
    """Row 2: prefixes, subsets of unsynced writes, torn sectors, lost names."""
    mine = workloads()[part:WORKLOADS:PARTS]
    tried: Counter[str] = Counter()
    for workload in mine:
        tried += explore(workload, most=SUBSETS, every=EVERY)
    report(
        2,
        "recorded I/O",
        seeds="0..0",
        trials="states",
        counts={"workloads": len(mine), "states": tried.total()},
        faults=tried,
        least={"workloads": WORKLOADS // PARTS, "states": STATES // PARTS},
    )
