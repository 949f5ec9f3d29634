"""Counts of meters add up over counters that begin again."""

from __future__ import annotations

from hypothesis import given, strategies as st

from innkeeper.daemon.metering import fold, restart
from innkeeper.model.metering import MeterCount
from innkeeper.network.traffic import Meter

_METERS = st.sampled_from([Meter("in", "10.0.0.0/8"), Meter("out", "10.0.0.0/8"), Meter("out", "::/0")])
# What happens to a counter between two looks: it counts, and after a look it may begin again.
_STEPS = st.lists(st.tuples(_METERS, st.integers(0, 1000), st.booleans(), st.booleans()), max_size=40)


@given(_STEPS)
def test_nothing_is_lost_or_counted_twice(steps: list[tuple[Meter, int, bool, bool]]) -> None:
    kernel: dict[Meter, tuple[int, int]] = {}
    counted: dict[Meter, int] = {}
    counts: list[MeterCount] = []
    for meter, packets, look, anew in steps:
        before = kernel.get(meter, (0, 0))
        kernel[meter] = before[0] + packets, before[1] + 100 * packets
        counted[meter] = counted.get(meter, 0) + packets
        if look or anew:
            counts = fold(counts, kernel)
        if anew:
            del kernel[meter]
            counts = fold(counts, kernel)
    counts = fold(counts, kernel)
    assert {Meter(one.direction, one.remote): (one.packets, one.bytes) for one in counts} == {
        meter: (packets, 100 * packets) for meter, packets in counted.items()
    }
    assert fold(counts, kernel) == counts


def test_a_reset_begins_at_zero_where_the_kernel_is() -> None:
    kernel = {Meter("in", "10.0.0.0/8"): (7, 700)}
    counts = restart(kernel)
    assert [(one.packets, one.bytes) for one in fold(counts, kernel)] == [(0, 0)]
    assert [(one.packets, one.bytes) for one in fold(counts, {Meter("in", "10.0.0.0/8"): (9, 950)})] == [(2, 250)]
