"""Maximum bandwidth and mirroring as what the kernel's traffic control does at devices. Pure.

A token bucket at the tap's root holds back what goes to the vm. What comes from it is led through a device of its own
(an IFB) with a token bucket, before anything else of the switch sees it. Mirroring is part of the same filters: the
netdev family's hooks see nothing of what a filter has led away.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from innkeeper.network.policy import PortPolicy
from innkeeper.network.ruleset import TAP_PREFIX

LIMITER_PREFIX = "inif-"
_LARGE_PACKET = 65_536 + 1_514
"""A packet that a guest hands over whole, to be cut on the wire; a bucket that cannot hold it would cut it early."""
_BURST_S = 0.010
_QUEUE_S = 0.050


@dataclass(frozen=True, slots=True)
class Bucket:
    """A token bucket: rate, what may pass at once, and what may wait (bytes)."""

    rate_bytes_per_s: int
    burst_bytes: int
    queue_bytes: int


@dataclass(frozen=True, slots=True)
class Shape:
    """What traffic control does at a device.

    ``root``: the bucket before it sends. ``copy_in`` and ``copy_out`` are devices that get copies of what it takes and
    sends; ``lead_in`` the device that what it takes goes through.
    """

    root: Bucket | None = None
    copy_in: tuple[str, ...] = ()
    lead_in: str | None = None
    copy_out: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self != NOTHING


NOTHING = Shape()


def limiter(tap: str) -> str:
    """The device that a tap's frames are led through."""
    return LIMITER_PREFIX + tap.removeprefix(TAP_PREFIX)


def bucket(bits_per_s: int, burst_bytes: int | None) -> Bucket:
    """The bucket for a maximum: its queue holds 50 ms, and a large packet besides the burst."""
    rate = bits_per_s // 8
    burst = burst_bytes or max(int(rate * _BURST_S), _LARGE_PACKET)
    return Bucket(rate, burst, burst + max(int(rate * _QUEUE_S), _LARGE_PACKET))


def shapes(ports: Iterable[PortPolicy]) -> dict[str, Shape]:
    """Device -> its shape, for the ports of one switch; devices with nothing to do are left out.

    What passes a mirror's source is copied to every destination of its switch. A port is one or the other, so copies
    are never copied again.
    """
    plugged = sorted(ports, key=lambda port: port.tap)
    copies = tuple(port.tap for port in plugged if port.traffic.mirror == "destination")
    found: dict[str, Shape] = {}
    for port in plugged:
        traffic = port.traffic
        seen = copies if traffic.mirror == "source" else ()
        led = None
        if traffic.max_out_bits_per_s is not None:
            led = limiter(port.tap)
            found[led] = Shape(root=bucket(traffic.max_out_bits_per_s, traffic.burst_bytes))
        root = None
        if traffic.max_in_bits_per_s is not None:
            root = bucket(traffic.max_in_bits_per_s, traffic.burst_bytes)
        if shape := Shape(root, seen, led, seen):
            found[port.tap] = shape
    return found


def listing(wanted: dict[str, Shape]) -> list[str]:
    """The shapes as the lines of tc(8) that would make them, for differences shown to people."""
    lines = []
    for device, shape in sorted(wanted.items()):
        if shape.root is not None:
            rate, burst, queue = shape.root.rate_bytes_per_s * 8, shape.root.burst_bytes, shape.root.queue_bytes
            lines.append(f"qdisc {device} root tbf rate {rate}bit burst {burst}b limit {queue}b")
        taken = [f"mirred egress mirror dev {copy}" for copy in shape.copy_in]
        taken += [f"mirred egress redirect dev {shape.lead_in}"] if shape.lead_in else []
        if taken:
            lines.append(f"filter {device} ingress action {' action '.join(taken)}")
        if shape.copy_out:
            sent = [f"mirred egress mirror dev {copy}" for copy in shape.copy_out]
            lines.append(f"filter {device} egress action {' action '.join(sent)}")
    return lines
