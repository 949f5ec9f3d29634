"""How well a maximum of bandwidth holds: what arrives of a flood of whole frames."""

from __future__ import annotations

import time
from functools import partial

from bench.network.world import World, guard, new_world, ports_of, within
from bench.report import Context, Row
from innkeeper.network.meter_dump import read_statistics
from innkeeper.network.policy import PortPolicy
from innkeeper.network.shaping import Shape, bucket
from innkeeper.network.traffic_control import TrafficControl

RATES_MBITS = (10, 100, 1000)
_WITHIN = 0.05
_FRAME_BYTES = 1514


def rates(context: Context) -> list[Row]:
    """What arrives of a flood of frames of 1,514 bytes towards a vm with a maximum."""
    seconds = 2.0 if context.quick else 5.0
    ends = ports_of(2)
    found = []
    for megabits in RATES_MBITS:
        with new_world(f"rate{megabits}", (ends[0], ends[1]), guard(ends), _FRAME_BYTES) as world:
            within(world.namespace, partial(_bound, ends[1], megabits * 1_000_000))
            got = _arrives(world, seconds)
        off = abs(got - megabits) / megabits
        goal = f"within {_WITHIN:.0%}"
        found.append(
            Row(f"maximum of {megabits:,} Mbit/s", got, "Mbit/s", "set", megabits, got / megabits, goal, off <= _WITHIN)
        )
    return found


def _bound(port: PortPolicy, bits_per_s: int) -> None:
    control = TrafficControl()
    try:
        control.set_shape(port.tap, Shape(root=bucket(bits_per_s, None)))
    finally:
        control.close()


def _arrives(world: World, seconds: float) -> float:
    """Mbit/s of frames at the receiver while the sender floods, after its first half second."""
    world.flood.send(0.5)
    before, began = _octets(world), time.perf_counter()
    world.flood.send(seconds)
    return (_octets(world) - before) * 8 / 1e6 / (time.perf_counter() - began)


def _octets(world: World) -> int:
    return within(world.receiver, lambda: read_statistics("eth0")["eth0"][0])
