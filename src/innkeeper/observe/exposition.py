"""The fabric's meters in Prometheus' text format (prometheus.io/docs/instrumenting/exposition_formats).

Names follow its rules: base units, ``_total`` for counters, ``le`` buckets that add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from innkeeper.fabric.meters import BOUNDS_S

Pools = Sequence[tuple[str, Mapping[str, Any]]]
"""What each pool measures, by its name."""
Value = Callable[[Mapping[str, Any]], float]

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
    "log_room_bytes": ("innkeeper_disk_log_room_bytes", "What it may write before the log holds it back."),
}
_POOL_GAUGES = {
    "capacity_bytes": "What the pool's file systems hold.",
    "free_bytes": "What is free of that.",
    "used_bytes": "What the pool takes.",
    "logical_bytes": "Sizes of all disks.",
    "log_bytes": "What of the log is taken, overwritten writes included.",
    "log_undrained_bytes": "What waits in the log to be drained, without overwritten writes.",
    "log_drain_at_bytes": "From where on the log is drained at once.",
    "log_limit_bytes": "The log's bound: from there on it holds writers back.",
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
    "commit_s": ("innkeeper_meta_commit_seconds", "One commit of a transaction of meta."),
    "read_s": ("innkeeper_group_read_seconds", "One read of a group by a worker."),
    "sweep_s": ("innkeeper_sweep_seconds", "Removing or compacting one group."),
    "move_s": ("innkeeper_move_seconds", "Moving one group to another device."),
    "recode_s": ("innkeeper_recode_seconds", "Packing one group anew."),
    "scrub_s": ("innkeeper_scrub_seconds", "Reading and verifying one group."),
}
_LOOKUPS = {
    "hits": ("innkeeper_lookup_hits", "Lookups that a cache of the fabric answered.", CounterMetricFamily),
    "misses": ("innkeeper_lookup_misses", "Lookups that had to read.", CounterMetricFamily),
    "used_bytes": ("innkeeper_lookup_used_bytes", "What a cache of the fabric holds.", GaugeMetricFamily),
    "limit_bytes": ("innkeeper_lookup_limit_bytes", "Its bound.", GaugeMetricFamily),
}
_STORAGE_GAUGES = {
    "data_bytes": "What its disks hold, undrained writes included.",
    "logical_bytes": "Sizes of its disks.",
    "quota_bytes": "What they may hold; 0: no bound.",
    "reservation_bytes": "What is kept for them.",
    "disks": "Disks.",
}
_DEVICE_GAUGES = {
    "total_bytes": "What its file system holds.",
    "free_bytes": "What is free of that.",
    "group_bytes": "What the pool has there.",
    "groups": "Groups there.",
    "copies": "Fast copies there of groups that a slow device has.",
    "copy_bytes": "What those take.",
    "away": "Whether it is an object store that does not answer as it should.",
}
_WORK = {
    "logged_bytes": "Bytes of writes that went to the log.",
    "drained_pages": "Pages of 4 KiB drained from the log.",
    "drained_blocks": "Blocks of 64 KiB of sequential streams, which went past the log, put into maps by drains.",
    "put_bytes": "Bytes that drains put into groups.",
    "sweeps": "Sweeps.",
    "groups_removed": "Groups removed by sweeps.",
    "groups_compacted": "Groups compacted by sweeps.",
    "swept_bytes": "Bytes taken back by sweeps.",
    "groups_moved": "Groups moved between devices.",
    "moved_bytes": "Bytes moved between devices.",
    "copies_made": "Groups that got a copy on a fast device.",
    "copied_bytes": "Bytes of copies made on fast devices.",
    "groups_recoded": "Groups packed anew by the curator.",
    "recoded_bytes": "Bytes of groups packed anew.",
    "scrubbed_bytes": "Bytes read and verified by the scrub.",
}


def _at(*keys: str) -> Value:
    """Where a value is in what a pool measures."""

    def value(facts: Mapping[str, Any]) -> float:
        found: Any = facts
        for key in keys:
            found = found[key]
        return float(found)

    return value


_POOL_STATES: dict[str, tuple[str, Value]] = {
    "innkeeper_curator_left_bytes": (
        "What the curator has still to pack anew.",
        _at("pool", "curator", "left_bytes"),
    ),
    "innkeeper_curator_paused": (
        "1 while background work is paused.",
        _at("pool", "curator", "paused"),
    ),
    "innkeeper_pool_read_only": (
        "1 where the pool takes no writes.",
        lambda facts: float(facts["pool"]["read_only"] is not None),
    ),
    "innkeeper_pool_scrubbed_timestamp_seconds": (
        "When all had been read and verified last; 0: never.",
        lambda facts: facts["pool"]["scrubbed_at"] or 0.0,
    ),
}


def exposition(metrics: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """The text for what the fabric's ``metrics`` reports; ``names``: what people call what it knows by id."""
    pools = [(names.get(each["pool"]["id"], each["pool"]["id"]), each) for each in metrics["pools"]]
    found = [
        *_of_pools(pools),
        *_of_places(pools, names),
        *_of_disks(metrics, names),
        *_of_flows(metrics, names),
    ]
    return text_of(found)


def text_of(found: list[Metric]) -> str:
    """Metrics as text."""
    registry = CollectorRegistry()
    registry.register(_Collected(found))
    return generate_latest(registry).decode()


class _Collected(Collector):
    """Metrics that are collected already."""

    def __init__(self, found: list[Metric]) -> None:
        self._found = found

    def collect(self) -> Iterable[Metric]:
        return self._found


def _of_pools(pools: Pools) -> Iterator[Metric]:
    def of(kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, value: Value) -> Metric:
        family = kind(name, text, labels=["pool"])
        for label, facts in pools:
            family.add_metric([label], value(facts))
        return family

    for name, text in _POOL_GAUGES.items():
        yield of(GaugeMetricFamily, f"innkeeper_pool_{name}", text, _at("pool", name))
    for name, text in _CACHE_GAUGES.items():
        full_name = f"innkeeper_cache_{name}"
        yield of(GaugeMetricFamily, full_name, text, _at("pool", "cache", name))
    for name, text in _CACHE_COUNTERS.items():
        full_name = f"innkeeper_cache_{name}"
        yield of(CounterMetricFamily, full_name, text, _at("pool", "cache", name))
    for full_name, (text, value) in _POOL_STATES.items():
        yield of(GaugeMetricFamily, full_name, text, value)
    for name, (full_name, text) in _STAGES.items():
        histogram = HistogramMetricFamily(full_name, text, labels=["pool"])
        for label, facts in pools:
            _add(histogram, [label], facts["stages"][name])
        yield histogram
    for name, text in _WORK.items():
        yield of(CounterMetricFamily, f"innkeeper_work_{name}", text, _at("stages", name))


def _of_places(pools: Pools, names: Mapping[str, str]) -> Iterator[Metric]:
    for name, (full_name, text, kind) in _LOOKUPS.items():
        family = kind(full_name, text, labels=["pool", "cache"])
        for pool, measured in pools:
            for cache, facts in measured["lookups"].items():
                family.add_metric([pool, cache], facts[name])
        yield family
    for name, text in _STORAGE_GAUGES.items():
        gauge = GaugeMetricFamily(f"innkeeper_storage_{name}", text, labels=["storage"])
        for _, measured in pools:
            for storage_id, facts in measured["storages"].items():
                gauge.add_metric([names.get(storage_id, storage_id)], facts[name])
        yield gauge
    for name, text in _DEVICE_GAUGES.items():
        gauge = GaugeMetricFamily(f"innkeeper_device_{name}", text, labels=["pool", "path", "tier"])
        for pool, measured in pools:
            for facts in measured["devices"]:
                gauge.add_metric([pool, facts["path"], facts["tier"]], facts[name])
        yield gauge


def _of_disks(metrics: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Metric]:
    meters: Mapping[str, Any] = metrics["meters"]
    disks = {disk_id: facts for each in metrics["pools"] for disk_id, facts in each["disks"].items()}
    for name, (full_name, text) in _DISK_GAUGES.items():
        gauge = GaugeMetricFamily(full_name, text, labels=["disk"])
        for disk_id, facts in disks.items():
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


def _of_flows(metrics: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Metric]:
    rate = GaugeMetricFamily(
        "innkeeper_qos_iops", "Normalised I/Os a second under a QoS policy.", labels=["qos", "disk"]
    )
    missed = GaugeMetricFamily(
        "innkeeper_qos_minimum_missed", "1 where a policy's minimum cannot be held.", labels=["qos", "disk"]
    )
    for flow in metrics["flows"]:
        disk_id = flow["disk_id"] or ""
        labels = [names.get(flow["qos_id"], flow["qos_id"]), names.get(disk_id, disk_id)]
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
