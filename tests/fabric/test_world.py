"""The whole fabric on a simulated machine, against a model: random operations, crashes, power cuts, failing I/O."""

from __future__ import annotations

from collections import Counter

import pytest
import whole_world
from fabric_world import World
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from programme import report, size

PARTS = 8
SEEDS = size(50, 250)
STEPS = size(400, 500)
DAMAGED_SEEDS = size(10, 200)


def run(seed: int, steps: int, *, faults: bool) -> World:
    world = World(seed, faults=faults)
    for _ in range(steps):
        world.step()
    world.crash(power=False)
    world.verify()
    report = world.pool.check()
    assert not report["problems"], world.story()
    world.close()
    return world


@pytest.mark.parametrize("seed", range(12))
def test_random_operations_and_crashes(seed: int) -> None:
    world = run(seed, 150, faults=False)
    assert world.crashes > 0


@pytest.mark.parametrize("seed", range(1000, 1020))
def test_random_operations_with_failing_io(seed: int) -> None:
    world = run(seed, 120, faults=True)
    assert world.crashes > 0


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        (2_000_539, False),  # a snapshot's record, replayed into an idle disk, kept the log from being trimmed
        (4_000_069, True),  # the log was trimmed at opening, and meta.db went on to ask for what was gone
        (1_000_758, True),  # a rescue revived batches that an earlier recovery had left out
    ],
)
def test_seeds_that_once_failed(seed: int, faults: bool) -> None:
    run(seed, 120, faults=faults)


class Machine(RuleBasedStateMachine):
    """The same world with hypothesis choosing, so that a failure is cut down to few operations."""

    @initialize(seed=st.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.world = World(seed, faults=True)

    @rule(name=st.sampled_from([name for name, _ in World.ACTIONS]))
    def act(self, name: str) -> None:
        self.world.act(name)

    @rule()
    def write(self) -> None:
        self.world.act("write")

    @invariant()
    def no_damage(self) -> None:
        if hasattr(self, "world"):
            assert self.world.pool.read_only is None

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.crash(power=False)
            self.world.verify()
            self.world.close()


def test_stateful() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


@pytest.mark.parametrize(
    ("seed", "faults"),
    [
        (0, False),
        (1, True),
        (287, True),  # a refused snapshot had named a layer, and the next one was given the same number
        (1_000_167, True),  # a sweep took a stream's blocks that only unsynced writes had overwritten
    ],
)
def test_the_whole_world(seed: int, faults: bool) -> None:
    """With devices, policies, quotas, packing anew and scrub."""
    assert whole_world.run(seed, 500 if seed in (287, 1_000_167) else 150, faults=faults).crashes > 0


@pytest.mark.parametrize("seed", range(3))
def test_damaged_copies(seed: int) -> None:
    world = whole_world.run(seed, 120, faults=bool(seed % 2), damage_every=40)
    assert world.damaged.total() >= 24 and world.noticed


@pytest.mark.slow
@pytest.mark.programme
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_simulated_machine(part: int) -> None:
    """Row 1: everything a pool does, in any order, with crashes, power cuts and failing calls at any of them."""
    seeds = range(1_000_000 + part * SEEDS, 1_000_000 + (part + 1) * SEEDS)
    counts: Counter[str] = Counter()
    fired: Counter[str] = Counter()
    for seed in seeds:
        world = whole_world.run(seed, STEPS, faults=bool(seed % 2))
        counts += Counter(operations=world.operations, crashes=world.crashes)
        fired += Counter(kind for _, kind, _ in world.files.fired)
    report(
        1,
        "simulated machine",
        seeds=f"{seeds[0]}..{seeds[-1]}",
        trials="crashes",
        counts={"seeds": SEEDS, **counts},
        faults=fired,
        least={
            "seeds": SEEDS,
            "operations": SEEDS * STEPS,
            "crashes": SEEDS * STEPS // 50,
            "faults": SEEDS * STEPS // 200,
        },
    )


@pytest.mark.slow
@pytest.mark.programme
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_damage_at_rest(part: int) -> None:
    """Row 1: bytes flipped at rest are never read as data."""
    seeds = range(3_000_000 + part * DAMAGED_SEEDS, 3_000_000 + (part + 1) * DAMAGED_SEEDS)
    damaged: Counter[str] = Counter()
    noticed = operations = 0
    for seed in seeds:
        world = whole_world.run(seed, 200, faults=bool(seed % 2), damage_every=40)
        damaged += world.damaged
        noticed += world.noticed
        operations += world.operations
    report(
        1,
        "damage at rest",
        seeds=f"{seeds[0]}..{seeds[-1]}",
        trials="faults",
        counts={"operations": operations, "noticed at once": noticed},
        faults=damaged,
        least={"operations": DAMAGED_SEEDS * 200, "faults": DAMAGED_SEEDS * 50, "noticed at once": DAMAGED_SEEDS * 15},
    )
