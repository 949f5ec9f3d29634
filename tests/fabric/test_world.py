"""The whole fabric on a simulated machine, against a model: random operations, crashes, power cuts, failing I/O."""

from __future__ import annotations

import os

import pytest
from fabric_world import World
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

SEEDS = int(os.environ.get("INNKEEPER_FABRIC_SEEDS", "1200"))


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


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("faults", [False, True], ids=["crashes", "faults"])
def test_many_seeds(faults: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The long programme; prints what it did and the bound that zero losses give."""
    operations = crashes = injected = 0
    first = 1_000_000 if faults else 2_000_000
    for seed in range(first, first + SEEDS):
        world = run(seed, 120, faults=faults)
        operations += world.operations
        crashes += world.crashes
        injected += world.injected
    with capsys.disabled():
        print(
            f"\nfabric world ({'failing I/O' if faults else 'crashes'}): seeds {first}..{first + SEEDS - 1},"
            f" {operations} operations, {crashes} crashes, {injected} faults, 0 losses:"
            f" at 95 % fewer than {3 / crashes:.2g} losses per crash"
        )
    assert operations >= SEEDS * 100
    assert crashes >= SEEDS * 3
    assert injected >= (SEEDS if faults else 0)
