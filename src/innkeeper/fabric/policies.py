"""Policies: storages, QoS policies, and what disks have for themselves; all durable when a call returns.

For worker threads. Raises throughout: ``NotFound``, ``Conflict``, ``Invalid``, and what ``Meta.transaction`` raises.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from uuid import UUID

from innkeeper.fabric.catalog import Disk, Storage
from innkeeper.fabric.core import PoolCore
from innkeeper.fabric.policy import DiskSettings, Policy
from innkeeper.fabric.qos import QosPolicy
from innkeeper.model.problems import Conflict, Invalid, NotFound


class PoolPolicies(PoolCore):
    """What data is held to."""

    on_policies: Callable[[], None] = staticmethod(lambda: None)
    """Called, from any thread, when a QoS policy, or who is under one, has changed."""
    recode_wanted = False
    """A policy that stored data is held to has changed since the curator last looked."""

    # -- storages --------------------------------------------------------------------------------------------------

    def storage_create(self, storage_id: str, **policy: Any) -> dict[str, Any]:
        """Make a storage; what ``policy`` leaves out is as in ``Policy()``."""
        check_id("storage", storage_id)
        wanted = Storage(storage_id, Policy().changed(**policy))
        with self.catalog.admin:
            known = self.catalog.storages.get(storage_id)
            if known is not None and known != wanted:
                raise Conflict("storage.exists", f"storage {storage_id} exists with another policy")
            if known is None:
                self._check_writable()
                self._check_qos(wanted.policy.qos_id)
                self.check_promises(wanted.policy.reservation_bytes)
                with self.catalog.meta.transaction() as change:
                    change.put_storage(storage_id, wanted.policy.to_json())
                self.catalog.storages[storage_id] = wanted
            return self._storage_facts(wanted)

    def storage_set(self, storage_id: str, **policy: Any) -> dict[str, Any]:
        """Change a storage's policy: what is drained from now on follows it, what is stored follows by the curator.

        Raises ``NoSpace`` (``pool.promised``) where there is no room for a reservation.
        """
        with self.catalog.admin:
            storage = self.catalog.storage(storage_id)
            before, wanted = storage.policy, storage.policy.changed(**policy)
            if wanted != before:
                self._check_writable()
                self._check_qos(wanted.qos_id)
                storage.policy = wanted
                try:
                    if wanted.reservation_bytes > before.reservation_bytes:
                        self.check_promises()
                    with self.catalog.meta.transaction() as change:
                        change.put_storage(storage_id, wanted.to_json())
                except BaseException:
                    storage.policy = before
                    raise
                self._policies_changed()
            return self._storage_facts(storage)

    def storage_ls(self) -> list[dict[str, Any]]:
        with self.catalog.admin:
            return [self._storage_facts(each) for each in self.catalog.storages.values()]

    def storage_rm(self, storage_id: str) -> None:
        """Remove a storage without disks; one that is not there is no error."""
        with self.catalog.admin:
            if storage_id not in self.catalog.storages:
                return
            used = {disk.storage_id for disk in self.catalog.disks.values()}
            used.update(snapshot.storage_id for snapshot in self.catalog.snapshots.values())
            if storage_id in used:
                raise Conflict(
                    "storage.in_use", f"storage {storage_id} has disks or snapshots", remedy="remove them first"
                )
            self._check_writable()
            with self.catalog.meta.transaction() as change:
                change.run("DELETE FROM storages WHERE id=?", (storage_id,))
            del self.catalog.storages[storage_id]

    # -- QoS -------------------------------------------------------------------------------------------------------

    def qos_set(self, qos_id: str, **policy: Any) -> dict[str, Any]:
        """Make a QoS policy, or change it; what is left out is as in ``QosPolicy()``. Raises ``Invalid``."""
        check_id("qos", qos_id)
        wanted = QosPolicy.of(policy)
        with self.catalog.admin:
            if self.catalog.qos.get(qos_id) != wanted:
                self._check_writable()
                with self.catalog.meta.transaction() as change:
                    change.run("INSERT OR REPLACE INTO qos VALUES (?, ?)", (qos_id, wanted.to_json()))
                self.catalog.qos[qos_id] = wanted
                self._policies_changed()
        return {"id": qos_id, **asdict(wanted)}

    def qos_rm(self, qos_id: str) -> None:
        """Remove a policy that nothing is under; one that is not there is no error. Raises ``Conflict``
        (``qos.in_use``)."""
        with self.catalog.admin:
            if qos_id not in self.catalog.qos:
                return
            users = [disk.id for disk in self.catalog.disks.values() if disk.settings.qos_id == qos_id]
            users += [each.id for each in self.catalog.storages.values() if each.policy.qos_id == qos_id]
            if users:
                raise Conflict(
                    "qos.in_use",
                    f"{len(users)} disks and storages are under the policy",
                    remedy="free them of it first",
                )
            with self.catalog.meta.transaction() as change:
                change.run("DELETE FROM qos WHERE id=?", (qos_id,))
            del self.catalog.qos[qos_id]
        self._policies_changed()

    def qos_ls(self) -> list[dict[str, Any]]:
        """The policies, with the disks that are under each."""
        with self.catalog.admin:
            under: dict[str, list[str]] = {}
            for disk in self.catalog.disks.values():
                under.setdefault(self.catalog.qos_of(disk), []).append(disk.id)
            return [
                {"id": qos_id, **asdict(policy), "disks": under.get(qos_id, [])}
                for qos_id, policy in self.catalog.qos.items()
            ]

    def _check_qos(self, qos_id: str) -> None:
        if qos_id and qos_id not in self.catalog.qos:
            raise NotFound("qos.not_found", f"there is no QoS policy {qos_id} in the pool")

    # -- disks' own ------------------------------------------------------------------------------------------------

    def checked_settings(self, before: DiskSettings, wanted: dict[str, Any]) -> DiskSettings:
        """Raises ``Invalid``, ``NotFound``."""
        try:
            settings = before.changed(**wanted)
        except TypeError as strange:
            raise Invalid("disk.settings", "a disk has no such setting", cause=str(strange)) from strange
        self._check_qos(settings.qos_id)
        return settings

    def disk_set(self, disk_id: str, storage_id: str | None = None, **settings: Any) -> dict[str, Any]:
        """Change a disk's storage and settings, also in use: new data follows at once, what is stored by the curator.

        Raises ``NoSpace`` (``pool.promised``) where there is no room for a thick disk, ``Invalid``, ``NotFound``.
        """
        with self.catalog.admin:
            disk = self.catalog.disk(disk_id)
            before = disk.storage_id, disk.settings
            wanted = self.catalog.storage(storage_id or disk.storage_id).id, self.checked_settings(before[1], settings)
            if wanted != before:
                self._check_writable()
                disk.storage_id, disk.settings = wanted
                try:
                    if disk.settings.thick and not before[1].thick:
                        self.check_promises()
                    with self.catalog.meta.transaction() as change:
                        change.run(
                            "UPDATE disks SET storage_id=?, settings=? WHERE id=?",
                            (disk.storage_id, disk.settings.to_json(), disk_id),
                        )
                except BaseException:
                    disk.storage_id, disk.settings = before
                    raise
                disk.credit_bytes = 0
                self._policies_changed()
            return self._disk_facts(disk)

    def _policies_changed(self) -> None:
        self.recode_wanted = True
        self.on_policies()
        self.on_room()

    # -- facts -----------------------------------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self.read_only:
            raise self.refusal()

    def _storage_facts(self, storage: Storage) -> dict[str, Any]:
        disks = [disk for disk in self.catalog.disks.values() if disk.storage_id == storage.id]
        return {
            "id": storage.id,
            **asdict(storage.policy),
            "disks": len(disks),
            "logical_bytes": sum(disk.size_bytes for disk in disks),
            "data_bytes": sum(self.held_bytes(disk) for disk in disks),
        }

    def _disk_facts(self, disk: Disk) -> dict[str, Any]:
        return {
            "id": disk.id,
            "size_bytes": disk.size_bytes,
            "storage_id": disk.storage_id,
            "epoch": disk.epoch,
            "origin": disk.origin or None,
            "parent_id": disk.parent or None,
            "pool_id": str(self.pool_id),
            "data_bytes": self.catalog.data_bytes(disk),
            "undrained_bytes": disk.undrained_bytes,
            "log_room_bytes": max(0, self.log_room_of(disk)),
            "promised_bytes": self.promised_to(disk),
            **asdict(disk.settings),
            "attachments": [each.id for each in self.catalog.attachments.values() if each.disk_id == disk.id],
            "snapshots": [each.id for each in self.catalog.snapshots.values() if each.disk_id == disk.id],
        }


def check_id(what: str, text: str) -> None:
    """Raises ``Invalid`` (``<what>.id``) unless ``text`` is a UUID."""
    try:
        UUID(text)
    except ValueError as wrong:
        raise Invalid(f"{what}.id", f"{text!r} is no UUID") from wrong
