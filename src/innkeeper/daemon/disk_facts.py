"""What the fabric says of a disk, as people are told it, and the other way round."""

from __future__ import annotations

from typing import Any

from innkeeper.daemon.pools import HOME
from innkeeper.model import views
from innkeeper.model.resources import Disk


def settings_of(disk: Disk) -> dict[str, Any]:
    """A disk's own settings as the fabric says them."""
    return {"tier": disk.tier or "", "thick": disk.thick, "qos_id": disk.qos_id or ""}


def place_of(facts: dict[str, Any]) -> views.DiskPlace:
    return views.DiskPlace(**{**facts, "device": facts["device"] or HOME})


def activity_of(meter: dict[str, Any]) -> views.DiskActivity:
    """A meter with mean latencies."""
    means = {}
    for what in ("read", "write", "flush"):
        histogram = meter[f"{what}_s"]
        means[f"{what}_ms"] = round(1000 * histogram["sum_s"] / max(1, sum(histogram["counts"])), 3)
    counts = {name: meter[name] for name in ("reads", "read_bytes", "writes", "written_bytes", "flushes", "waits")}
    return views.DiskActivity(**counts, **means)
