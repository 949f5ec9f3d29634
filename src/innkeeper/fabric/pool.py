"""The pool: the storage without sockets."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import Any

from innkeeper.fabric.cache import check_limit, default_bytes
from innkeeper.fabric.curator import PoolCurator
from innkeeper.fabric.layout import PAGE
from innkeeper.fabric.space import Limits
from innkeeper.fabric.upkeep import DRAIN_AT
from innkeeper.model.problems import Failed, Problem
from innkeeper.system.files import Io


class Pool(PoolCurator):
    """An open pool. One process opens a pool at a time (its lock); ``close`` it when done.

    Which thread may call what:

    * event loop, never waits for the medium: ``volume``, ``submit``, ``log_room``, ``needs_sync``; of a volume
      ``stage_write`` (pages wholly covered), ``stage_zero``, ``stage_trim``, ``read_nowait``, ``size_bytes``,
      ``close``;
    * worker threads: ``sync_blocking``, ``read_blocking``, ``allocation`` and every control operation;
    * ``on_room`` is called from whatever thread made room: use ``loop.call_soon_threadsafe`` in it.

    Push-back: stage nothing while ``log_room() <= 0``; go on at ``on_room``. Far beyond that ``stage_write`` raises
    ``Unavailable`` (``log.full``). After a failed ``submit`` every request staged since the last one is answered with
    the problem it raised.
    """

    @classmethod
    def open(cls, io: Io, path: str, *, limits: Limits | None = None, background: bool = True) -> Pool:
        """Open the pool in directory ``path``, founding it where there is none; recovers what a crash left.

        ``background=False`` leaves draining to explicit calls (tools and tests). Raises ``Conflict`` (``pool.locked``),
        ``Corrupt`` (``pool.format``, ``meta.*``, ``log.*``), ``Failed`` (``pool.unusable``).
        """
        pool = cls(io, path.rstrip("/"), limits or Limits())
        pool.count_data()
        if background:
            pool.start_upkeep()
        return pool

    def close(self) -> None:
        """Stop the background work, sync the log, release the lock. The pool cannot be used afterwards."""
        if self._closed:
            return
        self.stop_upkeep()
        try:
            if not self.read_only:
                self.submit()
                self.log.sync(self.log.sequence)
                with suppress(Problem), self.catalog.admin, self.catalog.meta.transaction() as change:
                    change.put("log_synced_upto", self.log.sequence)  # where its end is lost, it shows
        finally:
            self._release()

    def pool_show(self) -> dict[str, Any]:
        """What the pool is and holds."""
        trouble = (
            self.drain_problem
            or self.sweep_problem
            or self.tier_problem
            or self.scrub_problem
            or self.curator_problem
            or next(iter(list(self.away.values())), None)
        )
        with self.catalog.admin:
            total, free = self.devices.space()
            capacity = self.limits.capacity_bytes or total
            return {
                "id": str(self.pool_id),
                "incarnation": self.incarnation,
                "path": self.path,
                "capacity_bytes": capacity,
                "free_bytes": max(0, min(free, self.free_bytes())),
                "used_bytes": self.used_bytes(),
                "logical_bytes": sum(disk.size_bytes for disk in self.catalog.disks.values()),
                "log_bytes": self.log.used_bytes,
                "log_limit_bytes": self.limits.log_bytes,
                "log_drain_at_bytes": int(self.limits.log_bytes * DRAIN_AT),
                "log_undrained_bytes": PAGE * sum(len(layer.pages) for layer in list(self.catalog.layers)),
                "groups": len(self.store.rows),
                "damaged": len(self.damage()),
                "repaired": self.repaired,
                "scrubbed_at": self.scrubbed_at,
                "curator": self.curator_show(),
                "promised_bytes": self.promised_bytes(),
                "cache": asdict(self.store.content.facts()),
                "disks": len(self.catalog.disks),
                "snapshots": len(self.catalog.snapshots),
                "attachments": len(self.catalog.attachments),
                "holds": len(self.catalog.holds),
                "read_only": self.read_only,
                "upkeep_problem": trouble.as_dict() if trouble else None,
            }

    def metrics(self) -> dict[str, Any]:
        """What the stages have done since the fabric started, and what waits; cheap, for worker threads."""
        with self.catalog.admin:
            disks = {
                disk.id: {
                    "size_bytes": disk.size_bytes,
                    "data_bytes": self.catalog.data_bytes(disk),
                    "undrained_bytes": disk.undrained_bytes,
                    "log_room_bytes": max(0, self.log_room_of(disk)),
                }
                for disk in self.catalog.disks.values()
            }
        return {
            "pool": self.pool_show(),
            "stages": self.meters.facts(),
            "lookups": self.store.lookups(),
            "disks": disks,
            "storages": {each["id"]: each for each in self.storage_ls()},
            "devices": self.device_ls(),
        }

    def cache_resize(self, limit_bytes: int | None) -> dict[str, Any]:
        """Bound the content cache, now and after a restart; None: ``cache.default_bytes()``.

        Raises ``Invalid`` (``pool.cache``) for less than 8 MiB or more than the machine's memory.
        """
        check_limit(limit_bytes)
        with self.catalog.admin:
            self._check_writable()
            with self.catalog.meta.transaction() as change:
                change.put("cache_bytes", limit_bytes or 0)
            self.store.content.resize(limit_bytes or default_bytes())
        return asdict(self.store.content.facts())

    def ping(self) -> str:
        """``"pong"`` while the pool is of use. Raises ``Failed`` (``log.lost``) once the log is broken."""
        if self.log.broken is not None:
            raise Failed("log.lost", self.log.broken.detail, cause=self.log.broken.cause, remedy="restart the fabric")
        return "pong"
