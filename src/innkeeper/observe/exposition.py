"""The fabric's meters in Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats).

Names follow its rules: base units, ``_total`` for counters, ``le`` buckets that add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from innkeeper.fabric.meters import BOUNDS_S

_DISK_COUNTERS = {
    "reads": ("innkeeper_disk_reads", "Reads answered."),
    "read_bytes": ("innkeeper_disk_read_bytes", "Bytes read."),
    "writes": ("innkeeper_disk_writes", "Writes taken."),
    "written_bytes": ("innkeeper_disk_written_bytes", "Bytes written."),
    "flushes": ("innkeeper_disk_flushes", "Flushes taken."),
    "waits": ("innkeeper_disk_held_back", "Times that a QoS policy, a quota or the log held requests back."),
}
_DISK_LATENCIES = {
    "read_s": ("innkeeper_disk_read_seconds", "From taking a read to its answer."),
    "write_s": ("innkeeper_disk_write_seconds", "From taking a write to its answer."),
    "flush_s": ("innkeeper_disk_flush_seconds", "From taking a flush, or a write through, to its answer."),
}
_DISK_GAUGES = {
    "size_bytes": ("innkeeper_disk_size_bytes", "Size of the disk."),
    "data_bytes": ("innkeeper_disk_data_bytes", "What of the disk is no hole, as far as it is drained."),
    "undrained_bytes": ("innkeeper_disk_log_bytes", "What of the disk waits in the log."),
}
_POOL_GAUGES = {
    "capacity_bytes": "What the pool's file systems hold.",
    "free_bytes": "What is free of that.",
    "used_bytes": "What the pool takes.",
    "logical_bytes": "Sizes of all disks.",
    "log_bytes": "Undrained bytes of the log.",
    "log_limit_bytes": "The log's bound.",
    "promised_bytes": "Kept free for thick disks and storages' reservations.",
    "groups": "Groups stored.",
    "disks": "Disks.",
    "snapshots": "Snapshots.",
    "attachments": "Attachments.",
    "damaged": "Stored items found damaged.",
}
_CACHE_GAUGES = {
    "limit_bytes": "Bound of the content cache.",
    "used_bytes": "What the content cache holds.",
}
_CACHE_COUNTERS = {
    "hits": "Extents found in the content cache.",
    "misses": "Extents read and decoded.",
    "evictions": "Extents dropped from the content cache.",
}
_STAGES = {
    "append_s": ("innkeeper_log_append_seconds", "One append to the log."),
    "sync_s": ("innkeeper_log_sync_seconds", "One sync of the log."),
    "drain_s": ("innkeeper_drain_seconds", "The drain of one layer."),
}
_WORK = {
    "drained_pages": "Pages of 4 KiB drained from the log.",
    "put_bytes": "Bytes that drains put into groups.",
    "sweeps": "Sweeps.",
    "groups_removed": "Groups removed by sweeps.",
    "groups_compacted": "Groups compacted by sweeps.",
    "swept_bytes": "Bytes taken back by sweeps.",
    "groups_moved": "Groups moved between devices.",
    "moved_bytes": "Bytes moved between devices.",
    "groups_recoded": "Groups packed anew by the curator.",
    "recoded_bytes": "Bytes of groups packed anew.",
    "scrubbed_bytes": "Bytes read and verified by the scrub.",
}


def exposition(metrics: Mapping[str, Any], disks: Mapping[str, str], policies: Mapping[str, str]) -> str:
    """The text for what the fabric's ``metrics`` reports; ``disks``, ``policies``: names by id, where known."""
    registry = CollectorRegistry()
    registry.register(
        _Collected([*_of_pool(metrics), *_of_disks(metrics, disks), *_of_flows(metrics, disks, policies)])
    )
    return generate_latest(registry).decode()


class _Collected(Collector):
    """Metrics that are collected already."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def _of_pool(metrics: Mapping[str, Any]) -> Iterator[Metric]:
    pool, stages = metrics["pool"], metrics["stages"]
    for name, text in _POOL_GAUGES.items():
        yield GaugeMetricFamily(f"innkeeper_pool_{name}", text, value=pool[name])
    for name, text in _CACHE_GAUGES.items():
        yield GaugeMetricFamily(f"innkeeper_cache_{name}", text, value=pool["cache"][name])
    for name, text in _CACHE_COUNTERS.items():
        yield CounterMetricFamily(f"innkeeper_cache_{name}", text, value=pool["cache"][name])
    yield GaugeMetricFamily(
        "innkeeper_curator_left_bytes", "What the curator has still to pack anew.", value=pool["curator"]["left_bytes"]
    )
    for name, (full_name, text) in _STAGES.items():
        family = HistogramMetricFamily(full_name, text)
        _add(family, [], stages[name])
        yield family
    for name, text in _WORK.items():
        yield CounterMetricFamily(f"innkeeper_work_{name}", text, value=stages[name])


def _of_disks(metrics: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Metric]:
    meters: Mapping[str, Any] = metrics["meters"]
    for name, (full_name, text) in _DISK_GAUGES.items():
        gauge = GaugeMetricFamily(full_name, text, labels=["disk"])
        for disk_id, facts in metrics["disks"].items():
            gauge.add_metric([names.get(disk_id, disk_id)], facts[name])
        yield gauge
    for name, (full_name, text) in _DISK_COUNTERS.items():
        counter = CounterMetricFamily(full_name, text, labels=["disk"])
        for disk_id, facts in meters.items():
            counter.add_metric([names.get(disk_id, disk_id)], facts[name])
        yield counter
    for name, (full_name, text) in _DISK_LATENCIES.items():
        family = HistogramMetricFamily(full_name, text, labels=["disk"])
        for disk_id, facts in meters.items():
            _add(family, [names.get(disk_id, disk_id)], facts[name])
        yield family


def _of_flows(metrics: Mapping[str, Any], disks: Mapping[str, str], policies: Mapping[str, str]) -> Iterator[Metric]:
    rate = GaugeMetricFamily(
        "innkeeper_qos_iops", "Normalised I/Os a second under a QoS policy.", labels=["qos", "disk"]
    )
    missed = GaugeMetricFamily(
        "innkeeper_qos_minimum_missed", "1 where a policy's minimum cannot be held.", labels=["qos", "disk"]
    )
    for flow in metrics["flows"]:
        disk_id = flow["disk_id"] or ""
        labels = [policies.get(flow["qos_id"], flow["qos_id"]), disks.get(disk_id, disk_id)]
        rate.add_metric(labels, flow["iops"])
        missed.add_metric(labels, float(flow["minimum_missed"]))
    yield rate
    yield missed


def _add(family: HistogramMetricFamily, labels: list[str], facts: Mapping[str, Any]) -> None:
    buckets, below = [], 0
    for bound, count in zip([*BOUNDS_S, float("inf")], facts["counts"], strict=True):
        below += count
        buckets.append(("+Inf" if bound == float("inf") else repr(bound), below))
    family.add_metric(labels, buckets=buckets, sum_value=facts["sum_s"])
