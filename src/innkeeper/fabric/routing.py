"""Which pool a control operation is for: the one that it names, else the one that has what it is about.

Lists are of all pools unless one is named. A subject that no open pool has is not absent while a pool is closed, which
may have it: what removes or shows it is then refused, so that nobody takes it for gone.
"""

from __future__ import annotations

from typing import Any

from innkeeper.fabric.instant import snapshot_together
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.model.problems import Unavailable

_SUBJECTS = {
    "disk_create": ("storage_id",),
    "disk_clone": ("snapshot_id",),
    "hold": ("snapshot_id",),
    "attach": ("disk_id", "snapshot_id"),
}
"""The arguments that lead to the pool, where it is not simply the one that the operation has."""
_LOOKED_AT = ("disk_id", "snapshot_id", "attachment_id", "hold_id", "storage_id")
_LISTS = frozenset({"disk_ls", "snapshot_ls", "storage_ls", "attachment_ls"})
_EVERYWHERE = frozenset({"qos_set", "qos_rm"})
_FORGIVING = frozenset({"detach", "release", "storage_create"})
"""Done where nothing is found: who gives something back twice, or gives it an id, need not know of closed pools."""


def call(pools: Pools, operation: str, arguments: dict[str, Any]) -> Any:
    """Perform an operation of ``Pool`` in the pool, or the pools, that it is for; for worker threads.

    ``arguments`` may name a ``pool``. Raises ``Unavailable`` (``pool.unavailable``) and what the operation raises.
    """
    named = arguments.pop("pool", None)
    if named is not None:
        return _in(pools, pools.get(named), operation, arguments)
    if operation == "snapshot_create":
        return snapshot_together(_parts(pools, arguments["snapshots"]))
    if operation in _LISTS and not any(arguments.values()):
        return _listed(pools, operation)
    if operation == "move_ls":
        return [one for pool in pools.all() for one in pool.move_ls()]
    if operation == "qos_ls":
        return _merged([pool.qos_ls() for pool in pools.all()])
    if operation in _EVERYWHERE:
        for pool in pools.all()[1:]:
            getattr(pool, operation)(**arguments)
    return _in(pools, _pool_of(pools, operation, arguments), operation, arguments)


def _in(pools: Pools, pool: Pool, operation: str, arguments: dict[str, Any]) -> Any:
    if operation == "device_add":
        pools.check_apart(str(arguments.get("path", "")).rstrip("/"), own=pool)
    return getattr(pool, operation)(**arguments)


def _pool_of(pools: Pools, operation: str, arguments: dict[str, Any]) -> Pool:
    for name in _SUBJECTS.get(operation, _LOOKED_AT):
        subject = arguments.get(name)
        if subject is not None:
            return pools.owner(name.removesuffix("_id"), str(subject), forgiving=operation in _FORGIVING)
    return pools.default


def _listed(pools: Pools, operation: str) -> list[dict[str, Any]]:
    """What every pool has, but for what is on its way there or has left."""
    return [one for pool in pools.all() for one in getattr(pool, operation)() if _counts(pools, pool, one)]


def _counts(pools: Pools, pool: Pool, facts: dict[str, Any]) -> bool:
    try:
        return pools.counts(pool, facts.get("disk_id", facts["id"]))
    except Unavailable:
        return False


def _parts(pools: Pools, snapshots: dict[str, str]) -> list[tuple[Pool, dict[str, str]]]:
    """The snapshots to take, by pool; pools in one order, whoever asks."""
    parts: dict[str, tuple[Pool, dict[str, str]]] = {}
    for snapshot_id, disk_id in snapshots.items():
        pool = pools.owner("disk", disk_id)
        parts.setdefault(str(pool.pool_id), (pool, {}))[1][snapshot_id] = disk_id
    return [parts[pool_id] for pool_id in sorted(parts)]


def _merged(lists: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """QoS policies, which every pool has, with the disks of all pools."""
    found: dict[str, dict[str, Any]] = {}
    for one in (each for part in lists for each in part):
        known = found.setdefault(one["id"], {**one, "disks": []})
        known["disks"] = [*known["disks"], *one["disks"]]
    return list(found.values())
