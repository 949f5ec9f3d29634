"""Getting a guest going again after its storage was away: QEMU pauses it on an I/O error, and we continue it.

After an outage longer than the reconnect delay each request that had failed pauses the guest once more, so ``cont`` is
repeated until the guest stays running.
"""

from __future__ import annotations

import asyncio
import logging

from innkeeper.compute.monitor import Monitor
from innkeeper.model.problems import Problem

log = logging.getLogger(__name__)

RETRY_S = 0.5
SLOWEST_RETRY_S = 5.0
STEADY_CHECKS = 3
"""So many looks in a row must see the guest running."""


async def continue_until_steady(monitor: Monitor) -> None:
    """Return once the guest runs and stays so; only cancelling ends a wait for storage that never comes back."""
    steady, pause_s = 0, RETRY_S
    while steady < STEADY_CHECKS:
        try:
            status = (await monitor.execute("query-status", timeout_s=60.0))["status"]
            if status == "running":
                steady, pause_s = steady + 1, RETRY_S
            elif status == "io-error":
                steady, pause_s = 0, min(SLOWEST_RETRY_S, pause_s * 1.2)
                await monitor.execute("cont", timeout_s=60.0)
            else:
                return
        except Problem as away:
            log.debug("waiting for storage: %s", away)
            steady = 0
        await asyncio.sleep(pause_s)
