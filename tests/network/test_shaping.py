"""Bandwidth and mirroring: from policies to what traffic control shall be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Invalid
from innkeeper.network.plan import Standing, plan_change
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.shaping import bucket, limiter, listing, shapes
from innkeeper.network.traffic import MOST_BITS_PER_S, MirrorRole, TrafficPolicy

_WHERE = (Path("/run/lan"), "nobody")
LAN = SwitchPolicy("lan", "inbr-k3f91", subnet="10.77.0.0/24")


def port_of(number: int, traffic: TrafficPolicy) -> PortPolicy:
    return PortPolicy(f"intp-k3f9{number}", f"52:54:00:00:00:0{number}", (f"10.77.0.{number}",), traffic=traffic)


LIMITED = port_of(1, TrafficPolicy(max_in_bits_per_s=10_000_000, max_out_bits_per_s=100_000_000))
SOURCE = port_of(2, TrafficPolicy(mirror="source", max_out_bits_per_s=1_000_000_000, burst_bytes=200_000))
PROBE = port_of(3, TrafficPolicy(mirror="destination"))
PLAIN = port_of(4, TrafficPolicy())
GOLDEN = """\
filter intp-k3f91 ingress action mirred egress redirect dev inif-k3f91
filter intp-k3f92 egress action mirred egress mirror dev intp-k3f93
filter intp-k3f92 ingress action mirred egress mirror dev intp-k3f93 action mirred egress redirect dev inif-k3f92
qdisc inif-k3f91 root tbf rate 100000000bit burst 125000b limit 750000b
qdisc inif-k3f92 root tbf rate 1000000000bit burst 200000b limit 6450000b
qdisc intp-k3f91 root tbf rate 10000000bit burst 67050b limit 134100b
"""


def test_the_traffic_control_of_a_switch_is_the_golden_one() -> None:
    assert "".join(f"{line}\n" for line in sorted(listing(shapes([PLAIN, PROBE, SOURCE, LIMITED])))) == GOLDEN


def test_a_change_is_shown_in_the_plan() -> None:
    before = Standing(LAN, {LIMITED.tap: replace(LIMITED, traffic=TrafficPolicy())})
    plan = plan_change(before, Standing(LAN, {LIMITED.tap: LIMITED}), *_WHERE)
    assert plan.steps == ("change the rules of port intp-k3f91",)
    assert "+qdisc intp-k3f91 root tbf rate 10000000bit burst 67050b limit 134100b" in plan.diff.splitlines()


@given(st.integers(64_000, MOST_BITS_PER_S))
def test_a_bucket_always_holds_a_large_packet_and_what_may_wait(bits_per_s: int) -> None:
    made = bucket(bits_per_s, None)
    assert made.burst_bytes >= 67_050
    assert made.queue_bytes - made.burst_bytes >= 67_050
    assert made.burst_bytes <= max(67_050, bits_per_s // 800)


_ROLES = st.sampled_from(("none", "source", "destination"))
_RATES = st.none() | st.integers(64_000, MOST_BITS_PER_S)


@given(st.lists(st.tuples(_ROLES, _RATES, _RATES), max_size=8))
def test_copies_go_from_sources_to_destinations_and_never_in_a_circle(
    wishes: list[tuple[MirrorRole, int | None, int | None]],
) -> None:
    ports = [
        port_of(number, TrafficPolicy(mirror=role, max_in_bits_per_s=inside, max_out_bits_per_s=outside))
        for number, (role, inside, outside) in enumerate(wishes, start=1)
    ]
    found = shapes(ports)
    roles = {port.tap: port.traffic.mirror for port in ports}
    for device, shape in found.items():
        for copy in (*shape.copy_in, *shape.copy_out):
            assert (roles[device], roles[copy]) == ("source", "destination")
    for port in ports:
        shape = found.get(port.tap)
        assert (shape is not None and shape.root is not None) == (port.traffic.max_in_bits_per_s is not None)
        led = limiter(port.tap) if port.traffic.max_out_bits_per_s is not None else None
        assert (shape.lead_in if shape else None) == led
        assert (led in found) == (led is not None)
    assert shapes(reversed(ports)) == found


@pytest.mark.parametrize(
    ("wish", "code"),
    [
        ({"max_in_bits_per_s": 1}, "nic.bandwidth"),
        ({"max_out_bits_per_s": MOST_BITS_PER_S + 1}, "nic.bandwidth"),
        ({"burst_bytes": 10}, "nic.bandwidth"),
    ],
)
def test_impossible_wishes_are_refused(wish: dict[str, int], code: str) -> None:
    with pytest.raises(Invalid) as refused:
        TrafficPolicy(**wish)  # type: ignore[arg-type]
    assert refused.value.code == code
    assert refused.value.remedy
