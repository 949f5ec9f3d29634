"""Row 12: the programmes notice what they are there for. Each planted defect fails the run that is named beside it."""

from __future__ import annotations

from collections.abc import Callable

import failing
import pytest
import recorded
import whole_world
from planted import PLANTED, Planted
from programme import report

from innkeeper.model.problems import Problem

SEEDS = 60
"""Worlds that are tried at most."""


def _worlds(*, faults: bool) -> None:
    for seed in range(SEEDS):
        whole_world.run(7_000_000 + seed, 200, faults=faults)


def _damage() -> None:
    for seed in range(SEEDS // 6):
        whole_world.run(8_000_000 + seed, 120, faults=False, damage_every=30)


def _run(name: str) -> Callable[[], object]:
    kind, _, operations = name.partition(": ")
    chosen = tuple(operations.split(" + "))
    return {
        "world": lambda: _worlds(faults=False),
        "world with failing calls": lambda: _worlds(faults=True),
        "damage": _damage,
        "recorded": lambda: recorded.explore(chosen, most=2),
        "failing": lambda: failing.explore(chosen),
    }[kind]


@pytest.mark.slow
@pytest.mark.programme
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted({planted.noticed_by for planted in PLANTED}))
def test_nothing_planted(name: str) -> None:
    _run(name)()


@pytest.mark.slow
@pytest.mark.programme
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_planted_defect_is_noticed(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    failing._meant.cache_clear()
    planted.plant(monkeypatch)
    with pytest.raises((AssertionError, Problem, OSError, KeyError)):
        _run(planted.noticed_by)()
    report(
        12,
        "planted defects",
        seeds="0..0",
        trials="planted",
        counts={"planted": 1, "noticed": 1},
        least={"noticed": 1},
    )
