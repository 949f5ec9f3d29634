"""The metrics are in the format that Prometheus reads, with names for people and buckets that add up."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from nbd_lab import NbdLab
from prometheus_client.parser import text_string_to_metric_families

from innkeeper.fabric.nbd import protocol as p
from innkeeper.observe.exposition import exposition


def test_what_a_fabric_measures_is_exposed(tmp_path: Path) -> None:
    lab = NbdLab(tmp_path)
    policy = str(uuid4())
    try:
        lab.pool.qos_set(policy, max_iops=100_000)
        export = lab.disk(1 << 20)
        (disk_id,) = (each["id"] for each in lab.pool.disk_ls())
        lab.pool.disk_set(disk_id, qos_id=policy)
        with lab.connect(export) as client:
            for number in range(5):
                client.ask(p.Command.WRITE, number * 4096, data=os.urandom(4096))
            client.ask(p.Command.FLUSH)
            lab.pool.drain()
            for number in range(3):
                client.ask(p.Command.READ, number * 4096, 4096)
            measured = {"pools": [lab.pool.metrics()], **lab.facts()}
            names = {disk_id: "web-disk", policy: "gold", lab.storage_id: "fast", str(lab.pool.pool_id): "main"}
            text = exposition(measured, names)
    finally:
        lab.close()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    disk, pool = ("disk", "web-disk"), ("pool", "main")
    assert samples["innkeeper_disk_writes_total", disk] == 5
    assert samples["innkeeper_disk_written_bytes_total", disk] == 5 * 4096
    assert samples["innkeeper_disk_reads_total", disk] == 3
    assert samples["innkeeper_disk_data_bytes", disk] == 5 * 4096
    assert samples["innkeeper_disk_write_seconds_count", disk] == 5
    assert samples["innkeeper_disk_write_seconds_bucket", disk, ("le", "+Inf")] == 5
    assert samples["innkeeper_disk_flush_seconds_count", disk] == 1
    assert samples["innkeeper_log_append_seconds_count", pool] >= 1
    assert samples["innkeeper_log_sync_seconds_count", pool] >= 1
    assert samples["innkeeper_drain_seconds_count", pool] == 1
    assert samples["innkeeper_work_drained_pages_total", pool] == 5
    assert samples["innkeeper_work_logged_bytes_total", pool] == 5 * 4096
    assert samples["innkeeper_meta_commit_seconds_count", pool] >= 3
    assert samples["innkeeper_pool_log_undrained_bytes", pool] == 0
    assert 0 < samples["innkeeper_pool_log_drain_at_bytes", pool] < samples["innkeeper_pool_log_limit_bytes", pool]
    assert samples["innkeeper_disk_log_room_bytes", disk] > 0
    assert samples["innkeeper_lookup_hits_total", ("cache", "map_pages"), pool] >= 1
    assert samples["innkeeper_storage_data_bytes", ("storage", "fast")] == 5 * 4096
    (device,) = [value for key, value in samples.items() if key[0] == "innkeeper_device_group_bytes"]
    assert device > 0
    for name in ("away", "copies", "copy_bytes"):
        assert [value for key, value in samples.items() if key[0] == f"innkeeper_device_{name}"] == [0]
    for stage in ("group_read", "sweep", "move", "recode", "scrub"):
        assert f"innkeeper_{stage}_seconds_count" in {key[0] for key in samples}
    assert samples["innkeeper_curator_paused", pool] == samples["innkeeper_pool_read_only", pool] == 0
    assert samples["innkeeper_pool_disks", pool] == 1
    assert samples["innkeeper_qos_minimum_missed", disk, ("qos", "gold")] == 0
    buckets = [value for key, value in samples.items() if key[0] == "innkeeper_disk_read_seconds_bucket"]
    assert buckets == sorted(buckets)
