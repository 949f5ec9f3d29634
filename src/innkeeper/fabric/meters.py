"""Meters: what each stage has done since the fabric started, in counts and latencies, for metrics and for people."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LOWEST_S = 16e-6
BUCKETS = 22
BOUNDS_S = tuple(LOWEST_S * 2**index for index in range(BUCKETS))
"""Upper bounds of the buckets: 16 µs, doubling up to 33.5 s; one more takes what was longer."""


class Histogram:
    """How often which latency was met."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (BUCKETS + 1)
        self.sum_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        index = int(seconds * (1 / LOWEST_S)).bit_length()
        self.counts[index if index < BUCKETS else BUCKETS] += times
        self.sum_s += seconds * times

    def facts(self) -> dict[str, Any]:
        return {"counts": list(self.counts), "sum_s": self.sum_s}


@dataclass(slots=True)
class DiskMeter:
    """What clients asked of a disk or snapshot. Latencies run from when a request was taken from its connection to its
    answer; ``waits``: how often a QoS policy, or the log, held its requests back."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0
    flushes: int = 0
    waits: int = 0
    read_s: Histogram = field(default_factory=Histogram)
    write_s: Histogram = field(default_factory=Histogram)
    flush_s: Histogram = field(default_factory=Histogram)

    def facts(self) -> dict[str, Any]:
        return {
            "reads": self.reads,
            "read_bytes": self.read_bytes,
            "writes": self.writes,
            "written_bytes": self.written_bytes,
            "flushes": self.flushes,
            "waits": self.waits,
            "read_s": self.read_s.facts(),
            "write_s": self.write_s.facts(),
            "flush_s": self.flush_s.facts(),
        }


@dataclass(slots=True)
class PoolMeters:
    """What the stages behind the connections did."""

    append_s: Histogram = field(default_factory=Histogram)
    sync_s: Histogram = field(default_factory=Histogram)
    drain_s: Histogram = field(default_factory=Histogram)
    commit_s: Histogram = field(default_factory=Histogram)
    read_s: Histogram = field(default_factory=Histogram)
    """Reads of stored items that had to wait for the medium, or might have."""
    sweep_s: Histogram = field(default_factory=Histogram)
    move_s: Histogram = field(default_factory=Histogram)
    recode_s: Histogram = field(default_factory=Histogram)
    scrub_s: Histogram = field(default_factory=Histogram)
    """The last four: one group each."""
    logged_bytes: int = 0
    """What clients wrote, as it went to the log."""
    drained_pages: int = 0
    drained_blocks: int = 0
    """Blocks of 64 KiB that had gone past the log."""
    put_bytes: int = 0
    """Bytes of items that drains put into groups."""
    sweeps: int = 0
    groups_removed: int = 0
    groups_compacted: int = 0
    swept_bytes: int = 0
    groups_moved: int = 0
    moved_bytes: int = 0
    copies_made: int = 0
    copied_bytes: int = 0
    groups_recoded: int = 0
    recoded_bytes: int = 0
    scrubbed_bytes: int = 0

    def facts(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: each.facts() if isinstance(each, Histogram) else each for name, each in found.items()}
