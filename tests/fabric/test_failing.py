"""Each I/O call of many scenarios fails once: nothing answered is lost, no flush is answered that does not hold."""

from __future__ import annotations

from collections import Counter

import pytest
from failing import KINDS, SCENARIOS, explore
from programme import SOAK, report, size
from recorded import workloads

from innkeeper.system.simulation import EIO

PARTS = 8
MORE = [each for each in workloads()[32:64] if each not in SCENARIOS]
ALL = (*SCENARIOS, *(MORE if SOAK else []))
INJECTIONS = size(6_000, 20_000)


@pytest.mark.parametrize("scenario", [("write_long", "flush"), ("sweep",), ("shuffle",), ("snapshot",)])
def test_a_scenario(scenario: tuple[str, ...]) -> None:
    """Among them: a group was lost when the file that it took the place of could not be removed."""
    fired, flushes, refusals = explore(scenario, (EIO, "eio, lost pages"))
    assert fired.total() > 8 and flushes and refusals


@pytest.mark.slow
@pytest.mark.programme
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("part", range(PARTS))
def test_failing_calls(part: int) -> None:
    """Row 3: EIO, ENOSPC, short writes and failed syncs at every call, followed by a kill or a power cut."""
    mine = ALL[part::PARTS]
    fired: Counter[str] = Counter()
    flushes = refusals = 0
    for scenario in mine:
        for ends in (0, 1) if SOAK else (0,):
            more, answered, refused = explore(scenario, KINDS, ends=ends)
            fired += more
            flushes += answered
            refusals += refused
    report(
        3,
        "failing calls",
        seeds="0..0",
        trials="faults",
        counts={"scenarios": len(mine), "flushes answered afterwards": flushes, "refusals": refusals},
        faults=fired,
        least={"scenarios": 40 // PARTS, "faults": INJECTIONS // PARTS, "flushes answered afterwards": 100},
    )
