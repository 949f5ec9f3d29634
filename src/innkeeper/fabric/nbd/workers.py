"""Threads for requests that block.

Few where reads wait for disks, many where they may wait for an object store, and for streams, which keep processors
busy, as many as there are processors.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.system.priority import level

READ_WORKERS = 4
FAR_WORKERS = 32
"""Of pools that have an object store: what waits for that is not to hold up what is on disks."""


class Workers:
    """Threads for what blocks; threads begin when there is work for them."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools
        self._near = ThreadPoolExecutor(READ_WORKERS, thread_name_prefix="nbd", initializer=level)
        self._far = ThreadPoolExecutor(FAR_WORKERS, thread_name_prefix="nbd-far", initializer=level)
        self._packing = os.cpu_count() or 1
        self.packing = ThreadPoolExecutor(self._packing, thread_name_prefix="nbd-pack", initializer=level)
        """The threads that pack the blocks of streams: more of them only take the interpreter from each other."""

    def of(self, pool: Pool) -> ThreadPoolExecutor:
        """The threads for a pool's requests."""
        return self._far if pool.devices.any_remote else self._near

    @property
    def count(self) -> int:
        """How many requests they take at once."""
        far = any(pool.devices.any_remote for pool in self._pools.all())
        return READ_WORKERS + self._packing + (FAR_WORKERS if far else 0)

    def shutdown(self) -> None:
        self._near.shutdown()
        self._far.shutdown()
        self.packing.shutdown()
