"""QoS: maximums hold with their burst, minimums hold against neighbours, and are told when they cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, strategies as st

from innkeeper.fabric.qos import ALARM_AFTER_S, IO_BYTES, TICK_S, Balance, Bucket, Flow, QosPolicy, Surplus, ios_of
from innkeeper.model.problems import Invalid


def test_ios_are_normalised_to_8_kib() -> None:
    assert [ios_of(length) for length in (0, 1, 4096, 8192, 8193, 65536, 1 << 20)] == [1, 1, 1, 1, 2, 8, 128]


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_iops": 0},
        {"min_iops": -1},
        {"burst_s": 0},
        {"burst_s": 1e9},
        {"min_iops": 9, "max_iops": 5},
        {"iops": 5},
        {"min_bytes_per_s": 9, "max_bytes_per_s": 5},
        {"min_bytes_per_s": 0},
    ],
)
def test_wrong_policies_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(Invalid) as refused:
        QosPolicy.of(wrong)
    assert refused.value.code == "qos.policy"
    assert refused.value.remedy


def test_a_policy_survives_its_json() -> None:
    policy = QosPolicy.of({"max_iops": 500, "burst_s": 3.0, "aggregated": True})
    assert QosPolicy.from_json(policy.to_json()) == policy


def pump(flow: Flow, length: int, start: float, seconds: float) -> int:
    """Send requests of ``length`` one after the other, as fast as the flow lets them; how many went."""
    now, sent = start, 0
    while now < start + seconds:
        wait = flow.ask(length, now)
        if wait:
            now += wait
        else:
            sent += 1
            now += 1e-5
    return sent


@given(st.integers(10, 5000), st.floats(0.05, 5), st.sampled_from([512, 4096, 8192, 20000, 65536]), st.floats(0.5, 10))
def test_a_maximum_holds_but_for_the_burst(rate: int, burst_s: float, length: int, seconds: float) -> None:
    flow = Flow("f", QosPolicy(max_iops=rate, burst_s=burst_s), Surplus(), 0.0)
    done = pump(flow, length, 0.0, seconds) * ios_of(length)
    assert done <= rate * (seconds + burst_s) + 2 * ios_of(length)
    possible = min(rate * seconds, seconds / 1e-5 * ios_of(length))
    assert done >= 0.9 * possible - 2 * ios_of(length)


def test_a_burst_is_what_was_saved() -> None:
    flow = Flow("f", QosPolicy(max_iops=100, burst_s=5), Surplus(), 0.0)
    assert pump(flow, 4096, 0.0, 1.0) == pytest.approx(600, abs=3)
    assert pump(flow, 4096, 1.0, 1.0) == pytest.approx(100, abs=3)
    assert pump(flow, 4096, 4.0, 1.0) == pytest.approx(300, abs=3), "two idle seconds were saved"


def test_bytes_and_ios_hold_at_once() -> None:
    flow = Flow("f", QosPolicy(max_iops=1000, max_bytes_per_s=1 << 20, burst_s=0.05), Surplus(), 0.0)
    assert pump(flow, 65536, 0.0, 10.0) == pytest.approx(160, rel=0.05)
    flow = Flow("f", QosPolicy(max_iops=100, max_bytes_per_s=1 << 30, burst_s=0.05), Surplus(), 0.0)
    assert pump(flow, 65536, 0.0, 10.0) == pytest.approx(100 * 10 / 8, rel=0.05)


def test_a_changed_rate_counts_at_once() -> None:
    bucket = Bucket(100, 1.0, 0.0)
    bucket.take(150)
    assert bucket.wait_s(0.0) == pytest.approx(0.5)
    bucket.set_rate(1000, 1.0)
    assert bucket.wait_s(0.0) == pytest.approx(0.05)


class Scene:
    """A pool that serves ``capacity`` I/Os a second to flows that ask all the time, the busy ones more of it."""

    def __init__(self, capacity: float, **flows: tuple[QosPolicy, float, float | None]) -> None:
        self.capacity = capacity
        self.balance = Balance()
        self.flows = {name: Flow(name, policy, self.balance.surplus, 0.0) for name, (policy, _, _) in flows.items()}
        self.weights = {name: weight for name, (_, weight, _) in flows.items()}
        self.own = {name: own for name, (_, _, own) in flows.items()}
        """I/Os a second that the flow asks for by itself; None: all it can get."""
        self.now = 0.0
        self.rates: dict[str, float] = {}
        self.looks_idle: Callable[[int], bool] = lambda tick: False
        """In which ticks it does not look as if the pool gave all it can."""
        self._ticks = 0

    def run(self, seconds: float) -> None:
        until, counts, began = self.now + seconds, dict.fromkeys(self.flows, 0), self.now
        credit = dict.fromkeys(self.flows, 0.0)
        while self.now < until:
            for _ in range(20):
                self.now += TICK_S / 20
                self._serve(TICK_S / 20, counts, credit)
            used = sum(flow.taken for flow in self.flows.values())
            saturated = used > 0.75 * self.capacity * TICK_S and not self.looks_idle(self._ticks)
            self._ticks += 1
            self.balance.tick(self.flows.values(), saturated, self.now)
        self.rates = {name: count / (self.now - began) for name, count in counts.items()}

    def _serve(self, seconds: float, counts: dict[str, int], credit: dict[str, float]) -> None:
        left = self.capacity * seconds
        asking = dict(self.weights)
        for name, own in self.own.items():
            credit[name] = 1e9 if own is None else min(credit[name] + own * seconds, own)
        while left >= 1 and asking:
            share = left / sum(asking.values())
            for name in list(asking):
                for _ in range(max(1, int(share * asking[name]))):
                    if left < 1 or credit[name] < 1 or self.flows[name].ask(IO_BYTES, self.now):
                        asking.pop(name, None)
                        break
                    counts[name] += 1
                    credit[name] -= 1
                    left -= 1


def test_a_minimum_holds_against_a_noisy_neighbour() -> None:
    scene = Scene(10_000, quiet=(QosPolicy(min_iops=3000), 1, None), noisy=(QosPolicy(), 50, None))
    scene.run(3)
    scene.run(5)
    assert scene.rates["quiet"] >= 2850
    assert scene.rates["noisy"] >= 4000, "what is not needed for the minimum stays with the others"
    assert scene.balance.alarms(scene.flows.values(), scene.now) == []


def test_the_bound_goes_when_the_minimum_needs_it_no_more() -> None:
    scene = Scene(10_000, quiet=(QosPolicy(min_iops=3000), 1, None), noisy=(QosPolicy(), 50, None))
    scene.run(3)
    assert scene.balance.surplus.limit_iops is not None
    scene.own["quiet"] = 0.0
    scene.run(8)
    assert scene.rates["noisy"] > 8000
    assert scene.balance.surplus.limit_iops is None


def test_a_minimum_of_bytes_holds_and_does_not_stand_in_the_way_of_one_of_ios() -> None:
    policy = QosPolicy(min_bytes_per_s=3000 * IO_BYTES, min_iops=100)
    scene = Scene(10_000, quiet=(policy, 1, None), noisy=(QosPolicy(), 50, None))
    scene.run(3)
    scene.run(5)
    assert scene.rates["quiet"] >= 2850
    assert scene.rates["noisy"] >= 4000
    flow, full = Flow("f", policy, Surplus(), 0.0), Surplus()
    full.limit(1, 0.0)
    full.ask(10, 0.0)
    flow = Flow("f", policy, full, 0.0)
    assert flow.ask(1 << 20, 0.0) == 0, "128 I/Os at once"
    assert flow.ask(4096, 0.3) == 0, "what the bytes covered is not held against the I/Os for long"
    assert flow.share(1.0) == pytest.approx((1 << 20) / (3000 * IO_BYTES), rel=0.01)


def test_several_minimums_hold_at_once() -> None:
    scene = Scene(
        10_000,
        one=(QosPolicy(min_iops=2000), 1, None),
        two=(QosPolicy(min_iops=4000), 1, None),
        noisy=(QosPolicy(), 100, None),
    )
    scene.run(3)
    scene.run(5)
    assert scene.rates["one"] >= 1900
    assert scene.rates["two"] >= 3800


def test_a_guest_that_asks_for_less_than_its_minimum_takes_nothing_from_others() -> None:
    scene = Scene(10_000, idle=(QosPolicy(min_iops=5000), 1, 150.0), noisy=(QosPolicy(), 50, None))
    scene.run(10)
    assert scene.rates["noisy"] > 9000
    assert scene.balance.alarms(scene.flows.values(), scene.now) == []


def test_a_smooth_guest_that_looks_short_is_found_out() -> None:
    scene = Scene(10_000, smooth=(QosPolicy(min_iops=5000), 1, 400.0), noisy=(QosPolicy(), 50, None))
    scene.run(30)
    scene.run(30)
    assert scene.rates["noisy"] > 8500
    assert scene.balance.alarms(scene.flows.values(), scene.now) == []


def test_a_minimum_above_what_the_pool_gives_is_told() -> None:
    scene = Scene(2_000, greedy=(QosPolicy(min_iops=50_000), 1, None), noisy=(QosPolicy(), 50, None))
    scene.run(ALARM_AFTER_S + 10)
    assert scene.balance.alarms(scene.flows.values(), scene.now) == ["greedy"]
    assert scene.rates["greedy"] > 1000


@pytest.mark.parametrize("stalled", [False, True])
@given(every=st.integers(4, 12), phase=st.integers(0, 11), length=st.integers(1, 3))
def test_that_is_told_of_a_machine_too_that_now_and_then_does_something_else(
    stalled: bool, every: int, phase: int, length: int
) -> None:
    scene = Scene(2_000, greedy=(QosPolicy(min_iops=50_000), 1, None), noisy=(QosPolicy(), 50, None))
    length = min(length, (every - 1) // 3)

    def lapses(tick: int) -> bool:
        lapse = (tick + phase) % every < length
        if lapse and stalled:
            scene.flows["greedy"].busy_slices //= 2
        return lapse

    scene.looks_idle = lapses
    scene.run(ALARM_AFTER_S + 10)
    assert scene.balance.alarms(scene.flows.values(), scene.now) == ["greedy"]


def test_an_aggregated_flow_is_shared_and_a_maximum_is_not_passed_by_a_minimum() -> None:
    scene = Scene(10_000, both=(QosPolicy(min_iops=500, max_iops=1000, burst_s=0.1), 1, None))
    scene.run(5)
    assert 950 <= scene.rates["both"] <= 1030
