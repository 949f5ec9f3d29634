"""What a port may take of the network, and what becomes of its frames on the way. Frozen values, checked here. Pure.

Directions are the vm's: ``in`` is towards it, ``out`` is from it. Rates count whole frames without the checksum, as the
kernel does.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from innkeeper.model.problems import Invalid

Direction = Literal["in", "out"]
MirrorRole = Literal["none", "source", "destination"]

DIRECTIONS: tuple[Direction, ...] = ("in", "out")
LEAST_BITS_PER_S = 64_000
MOST_BITS_PER_S = 32_000_000_000
LEAST_BURST_BYTES = 2048
MOST_BURST_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, order=True)
class Meter:
    """What passes between a port and ``remote`` (an IP prefix) in one direction is counted."""

    direction: Direction
    remote: str

    def __post_init__(self) -> None:
        try:
            normal = str(ipaddress.ip_network(self.remote))
        except ValueError as wrong:
            raise Invalid(
                "nic.meter", f"{self.remote!r} is not a prefix", cause=str(wrong), remedy="write it like 10.0.0.0/8"
            ) from wrong
        if normal != self.remote:
            raise Invalid(
                "nic.meter", f"{self.remote!r} is not a prefix in its shortest form", remedy=f"write {normal}"
            )


@dataclass(frozen=True, slots=True)
class TrafficPolicy:
    """``burst_bytes`` may pass at once before a maximum holds; None: 10 ms of it, at least one large packet.

    On its switch's uplink a port is sure of ``min_out_bits_per_s``, or of a part by ``min_weight`` (1 to 100).
    A switch's ``destination`` ports get copies of all frames of its ``source`` ports. ``dscp`` is set on what the vm
    sends, ``pcp`` (802.1p) on what leaves by the uplink with a tag; None keeps its own. Raises ``Invalid``
    (``nic.bandwidth``, ``nic.dscp``, ``nic.pcp``).
    """

    max_in_bits_per_s: int | None = None
    max_out_bits_per_s: int | None = None
    burst_bytes: int | None = None
    mirror: MirrorRole = "none"
    dscp: int | None = None
    pcp: int | None = None
    meters: tuple[Meter, ...] = ()
    min_weight: int | None = None
    min_out_bits_per_s: int | None = None

    @property
    def has_minimum(self) -> bool:
        return self.min_weight is not None or self.min_out_bits_per_s is not None

    def __post_init__(self) -> None:
        _check("nic.bandwidth", "a weight", self.min_weight, 1, 100, "")
        _check("nic.bandwidth", "a rate", self.min_out_bits_per_s, LEAST_BITS_PER_S, MOST_BITS_PER_S, "bit/s")
        for rate in (self.max_in_bits_per_s, self.max_out_bits_per_s):
            _check("nic.bandwidth", "a rate", rate, LEAST_BITS_PER_S, MOST_BITS_PER_S, "bit/s")
        _check("nic.bandwidth", "a burst", self.burst_bytes, LEAST_BURST_BYTES, MOST_BURST_BYTES, "bytes")
        _check("nic.dscp", "a DSCP", self.dscp, 0, 63, "")
        _check("nic.pcp", "a priority", self.pcp, 0, 7, "")


def _check(code: str, what: str, value: int | None, least: int, most: int, unit: str) -> None:
    if value is not None and not least <= value <= most:
        span = f"{least} to {most} {unit}".rstrip()
        raise Invalid(code, f"{value} cannot be {what}", remedy=f"choose one of {span}")
