"""Snapshots of disks in several pools at one instant.

The logs of all the pools are held for the appends, so that no write is acknowledged between them: it is one cut through
all the disks. Each pool then makes its part durable by itself.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from typing import Any

from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Problem


def snapshot_together(parts: list[tuple[Pool, dict[str, str]]]) -> list[dict[str, Any]]:
    """Snapshot the disks of every part: ``(pool, {snapshot_id: disk_id})``, the pools in one order for all callers.

    All or none: what an earlier call that was cut short left in some of the pools goes first, what this one cannot
    finish goes too. Raises what ``Pool.snapshot_create`` raises.
    """
    if len(parts) == 1:
        return parts[0][0].snapshot_create(parts[0][1])
    with ExitStack() as held:
        for pool, _ in parts:
            held.enter_context(pool.catalog.admin)
        wanted = [(pool, snapshots, pool.snapshot_check(snapshots)) for pool, snapshots in parts]
        if any(disks for _, _, disks in wanted):
            for pool, snapshots in parts:
                for snapshot_id in snapshots:
                    pool.snapshot_rm(snapshot_id)
            _take([(pool, pool.snapshot_check(snapshots)) for pool, snapshots in parts])
        return [pool.snapshot_show(snapshot_id) for pool, snapshots in parts for snapshot_id in snapshots]


def _take(parts: list[tuple[Pool, dict[str, Any]]]) -> None:
    with ExitStack() as held:
        for pool, _ in parts:
            held.enter_context(pool.lock)
        sealed = [(pool, disks, pool.snapshot_seal(disks)) for pool, disks in parts]
    try:
        for pool, disks, seal in sealed:
            pool.snapshot_keep(disks, seal)
    except Problem:
        for pool, disks in parts:
            for snapshot_id in disks:
                with suppress(Problem):
                    pool.snapshot_rm(snapshot_id)
        raise
