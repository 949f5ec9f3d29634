"""Which minimums of bandwidth are refused."""

from __future__ import annotations

import pytest

from innkeeper.daemon.minimums import check_minimums
from innkeeper.model.problems import Problem
from innkeeper.model.resources import Switch, SwitchKind
from innkeeper.model.traffic import NicTraffic, NicTrafficSet

LAN = Switch(name="lan", switch_kind=SwitchKind.EXTERNAL, uplink_rate_bits_per_s=100_000_000)
PLAIN, HEAVY = NicTraffic(), NicTraffic(min_weight=100)


def rate(megabits: int) -> NicTraffic:
    return NicTraffic(min_out_bits_per_s=megabits * 1_000_000)


def test_what_can_be_kept_is_fine() -> None:
    check_minimums(LAN, {"web-0": rate(60), "db-0": rate(40), "mail-0": PLAIN})
    check_minimums(LAN, {f"vm{number}-0": HEAVY for number in range(5)})
    check_minimums(Switch(name="any"), {"web-0": PLAIN})


@pytest.mark.parametrize(
    ("switch", "cards", "code", "says"),
    [
        (Switch(name="home"), {"web-0": HEAVY}, "nic.minimum", "it is nat"),
        (LAN.model_copy(update={"uplink_rate_bits_per_s": None}), {"web-0": HEAVY}, "nic.minimum", "--uplink-rate"),
        (LAN, {"web-0": rate(60), "db-0": rate(41)}, "nic.minimum_exceeds", "101,000,000 bit/s"),
        (LAN, {f"vm{number}": rate(20) for number in range(8)}, "nic.minimum_exceeds", "and 3 more"),
        (LAN, {"web-0": rate(1), "db-0": HEAVY}, "nic.minimum_kinds", "db-0 has a weight, web-0 a rate"),
    ],
)
def test_what_cannot_is_refused_with_the_figures(
    switch: Switch, cards: dict[str, NicTraffic], code: str, says: str
) -> None:
    with pytest.raises(Problem) as refused:
        check_minimums(switch, cards)
    problem = refused.value
    assert problem.code == code and problem.remedy
    assert says in f"{problem} {problem.cause} {problem.remedy}"


def test_a_weight_takes_the_place_of_a_rate_and_the_other_way_round() -> None:
    weighted = NicTrafficSet(min_weight=5).applied_to(rate(1))
    assert (weighted.min_weight, weighted.min_out_bits_per_s) == (5, None)
    rated = NicTrafficSet(min_out_bits_per_s=64_000).applied_to(weighted)
    assert (rated.min_weight, rated.min_out_bits_per_s) == (None, 64_000)
    assert NicTrafficSet(min_weight=None).applied_to(weighted) == PLAIN
