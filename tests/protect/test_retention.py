"""Retention: each rule, the safeguards, and what must hold for any points and policy."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Invalid
from innkeeper.protect.retention import FUTURE_TOLERANCE, Dated, Policy, select

NOW = datetime(2030, 6, 15, 12, 0, tzinfo=UTC)


def every(step: timedelta, count: int) -> list[Dated]:
    return [Dated(f"{number:03}", NOW - step * number) for number in range(count)]


def test_last() -> None:
    assert select(every(timedelta(days=1), 10), Policy(last=3), NOW).keep == ["000", "001", "002"]


def test_within() -> None:
    assert select(every(timedelta(days=1), 10), Policy(within=timedelta(days=2)), NOW).keep == ["000", "001", "002"]


def test_count_and_age_keep_what_either_keeps() -> None:
    chosen = select(every(timedelta(hours=1), 50), Policy(last=5, within=timedelta(hours=2)), NOW)
    assert len(chosen.keep) == 5
    chosen = select(every(timedelta(hours=1), 50), Policy(last=1, within=timedelta(hours=2)), NOW)
    assert len(chosen.keep) == 3


def test_daily_considers_only_days_that_last_does_not_cover() -> None:
    points = every(timedelta(hours=6), 24)
    chosen = select(points, Policy(last=2, daily=2), NOW)
    # 15 June is covered by the last two (12:00, 06:00); the newest of 14 and 13 June follow.
    assert [verdict.taken_at.day for verdict in chosen.verdicts if verdict.keep] == [15, 15, 14, 13]


def test_empty_periods_do_not_count() -> None:
    points = [Dated("a", NOW), Dated("b", NOW - timedelta(days=100)), Dated("c", NOW - timedelta(days=200))]
    assert select(points, Policy(daily=3), NOW).keep == ["a", "b", "c"]


def test_grandfather_father_son() -> None:
    chosen = select(every(timedelta(days=1), 800), Policy(daily=7, weekly=4, monthly=12, yearly=1), NOW)
    # The yearly one: 2028, as 2030 and 2029 hold points of earlier rules.
    assert len(chosen.keep) == 7 + 4 + 12 + 1
    assert chosen.verdicts[0].reason == "daily 1 of 7"


def test_the_newest_is_always_kept() -> None:
    old = [Dated("a", NOW - timedelta(days=400)), Dated("b", NOW - timedelta(days=500))]
    chosen = select(old, Policy(within=timedelta(days=30)), NOW)
    assert chosen.keep == ["a"]
    assert chosen.verdicts[0].reason == "the newest is always kept"


def test_points_from_the_future_push_nothing_out() -> None:
    future = [Dated(f"f{number}", NOW + timedelta(days=1 + number)) for number in range(50)]
    chosen = select([*future, *every(timedelta(days=1), 5)], Policy(last=3), NOW)
    assert {"000", "001", "002"} <= set(chosen.keep)
    assert chosen.remove == ["003", "004"]


@pytest.mark.parametrize("policy", [Policy(), Policy(last=-1, daily=2), Policy(within=timedelta(0))])
def test_policies_that_say_nothing_are_refused(policy: Policy) -> None:
    with pytest.raises(Invalid, match="retention.invalid"):
        select([], policy, NOW)


POINTS = st.lists(st.integers(-5_000_000, 60_000_000), max_size=60).map(
    lambda ages: [Dated(f"p{number}", NOW - timedelta(seconds=age)) for number, age in enumerate(ages)]
)
COUNTS = st.integers(0, 5)
POLICIES = st.builds(
    Policy,
    last=st.integers(1, 5),
    hourly=COUNTS,
    daily=COUNTS,
    weekly=COUNTS,
    monthly=COUNTS,
    yearly=COUNTS,
    within=st.none() | st.integers(1, 10_000_000).map(lambda seconds: timedelta(seconds=seconds)),
)


@given(POINTS, POLICIES)
def test_what_holds_for_any_points(points: list[Dated], policy: Policy) -> None:
    chosen = select(points, policy, NOW)
    assert sorted(chosen.keep + chosen.remove) == sorted(point.id for point in points)
    present = [point for point in points if point.taken_at <= NOW + FUTURE_TOLERANCE]
    if present:
        assert max(present, key=lambda point: (point.taken_at, point.id)).id in chosen.keep
    again = select([point for point in points if point.id in chosen.keep], policy, NOW)
    assert again.remove == []
    wider = Policy(
        policy.last + 1, policy.hourly, policy.daily, policy.weekly, policy.monthly, policy.yearly, policy.within
    )
    if not (policy.hourly or policy.daily or policy.weekly or policy.monthly or policy.yearly):
        assert set(chosen.keep) <= set(select(points, wider, NOW).keep)
    for verdict in chosen.verdicts:
        if verdict.taken_at > NOW + FUTURE_TOLERANCE:
            assert verdict.keep
