"""QoS policies: what disks may take of the pool, and what they are sure of."""

from __future__ import annotations

from typing import Any

from innkeeper.daemon.rooms import Rooms
from innkeeper.fabric.qos import QosPolicy
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Problem
from innkeeper.model.resources import Disk, Pool, Qos, Storage

_BOUNDS = ("max_iops", "min_iops", "max_bytes_per_s", "min_bytes_per_s")
_POLICY = (*_BOUNDS, "burst_s", "aggregated")
_NAMED = 5


def _policy(qos: Qos) -> dict[str, Any]:
    return {name: getattr(qos, name) for name in _POLICY}


class QosPolicies:
    """The ``qos`` noun."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def settle(self) -> None:
        """Give the fabric every policy as it is desired."""
        for qos in self._rooms.store.ls(Qos):
            await self._rooms.fabric.qos_set(qos.id, **_policy(qos))

    async def tell(self, _pool: Pool) -> None:
        """A pool has been opened: it gets the policies that all pools have."""
        await self.settle()

    async def create(self, request: ask.QosCreate, *, dry_run: bool = False) -> Qos | views.Plan:
        """Raises ``Conflict`` (``qos.name_taken``), ``Invalid`` (``qos.policy``)."""
        self._rooms.check_name_free(Qos, request.name)
        qos = Qos(**request.model_dump())
        policy = QosPolicy.of(_policy(qos))
        if dry_run:
            shared = "its disks together" if policy.aggregated else "each of its disks"
            bounds = [f"{name.replace('_', ' ')} {value}" for name, value in _policy(qos).items() if value is not None]
            return views.Plan(
                summary=f"create QoS policy {qos.name}", steps=[f"for {shared}: {', '.join(bounds[:-1])}"]
            )
        await self._rooms.fabric.qos_set(qos.id, **_policy(qos))
        return self._rooms.store.create(qos)

    async def ls(self) -> list[Qos]:
        return self._rooms.store.ls(Qos)

    async def show(self, ref: str) -> views.QosDetail:
        qos = self._rooms.store.get(Qos, ref)
        disks = [facts["disks"] for facts in await self._rooms.fabric.qos_ls() if facts["id"] == qos.id]
        flows = (await self._rooms.fabric.metrics())["flows"]
        return views.QosDetail(
            **{name: getattr(qos, name) for name in Qos.model_fields},
            disk_ids=disks[0] if disks else [],
            flows=[
                views.QosFlow(disk_id=flow["disk_id"], iops=flow["iops"], minimum_missed=flow["minimum_missed"])
                for flow in flows
                if flow["qos_id"] == qos.id
            ],
        )

    async def set(self, ref: str, request: ask.QosSet, *, revision: int | None = None) -> Qos:
        """Raises ``Conflict`` (``state.stale``), ``Invalid`` (``qos.policy``)."""
        qos = self._rooms.store.get(Qos, ref)
        wanted = request.model_dump(exclude_unset=True)
        kept = {name: value for name, value in wanted.items() if value is not None or name in _BOUNDS}
        after = _policy(qos) | {name: value for name, value in kept.items() if name in _POLICY}
        QosPolicy.of(after)
        changed = self._rooms.change(qos, revision, **kept)
        await self._rooms.fabric.qos_set(qos.id, **after)
        return changed

    async def rm(self, ref: str) -> Qos:
        """Raises ``Conflict`` (``qos.in_use``)."""
        qos = self._rooms.store.get(Qos, ref)
        users = [f"disk {disk.name}" for disk in self._rooms.store.find(Disk, qos_id=qos.id)]
        users += [f"storage {storage.name}" for storage in self._rooms.store.find(Storage, qos_id=qos.id)]
        if users:
            raise Conflict(
                "qos.in_use",
                f"{len(users)} disks and storages are under QoS policy {qos.name!r}",
                cause=", ".join(users[:_NAMED]),
                remedy="free them of it first, with --no-qos",
            )
        await self._rooms.fabric.qos_rm(qos.id)
        self._rooms.store.delete("qos", qos.id)
        return qos

    async def alarms(self) -> list[str]:
        """What people are to know: minimums that cannot be held."""
        try:
            flows = (await self._rooms.fabric.metrics())["flows"]
        except Problem:
            return []
        names = {qos.id: qos.name for qos in self._rooms.store.ls(Qos)}
        disks = {disk.id: disk.name for disk in self._rooms.store.ls(Disk)}
        return [
            f"the minimum of QoS policy {names.get(flow['qos_id'], flow['qos_id'])} cannot be held"
            + (f" for disk {disks.get(flow['disk_id'], flow['disk_id'])}" if flow["disk_id"] else "")
            for flow in flows
            if flow["minimum_missed"]
        ]
