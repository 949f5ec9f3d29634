"""The gate: which connections are under which QoS policy, and how busy the pool is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from innkeeper.fabric.catalog import Attachment
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.qos import TICK_S, Balance, Flow, QosPolicy

SATURATED = 0.75
"""Share of a processor from which the fabric has little more to give."""
_SMOOTH = 0.2


class Gate:
    """Flows by policy, balanced ten times a second; for the event loop."""

    def __init__(self, pool: Pool, waits_for_log: Callable[[], bool]) -> None:
        self._pool = pool
        self._waits_for_log = waits_for_log
        """Whether some connection waits for the log."""
        self._loop = asyncio.get_running_loop()
        self._clock = pool.io.clock
        self._balance = Balance()
        self._flows: dict[str, Flow] = {}
        self._rates: dict[str, float] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._busy = self._at = 0.0

    def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    def flows(self, attachments: Iterable[Attachment]) -> dict[str, Flow | None]:
        """The flow that each attachment's requests draw on, by its id; those that nobody uses are forgotten."""
        catalog = self._pool.catalog
        minimums = any(policy.min_iops for policy in list(catalog.qos.values()))
        found: dict[str, Flow | None] = {}
        kept: dict[str, Flow] = {}
        for attachment in attachments:
            key, policy = self._policy_of(attachment)
            if policy == QosPolicy() and not minimums:
                found[attachment.id] = None
                continue
            flow = kept.get(key) or self._flows.get(key)
            if flow is None or flow.policy != policy:
                flow = Flow(key, policy, self._balance.surplus, self._clock.monotonic())
            found[attachment.id] = kept[key] = flow
        self._flows = kept
        self._rates = {key: rate for key, rate in self._rates.items() if key in kept}
        if kept and self._ticking is None:
            self._busy, self._at = self._clock.busy(), self._clock.monotonic()
            self._ticking = self._loop.call_later(TICK_S, self._tick)
        return found

    def _policy_of(self, attachment: Attachment) -> tuple[str, QosPolicy]:
        catalog = self._pool.catalog
        disk = catalog.disks.get(attachment.disk_id or "")
        qos_id = catalog.qos_of(disk) if disk is not None else ""
        policy = catalog.qos.get(qos_id, QosPolicy())
        if policy.aggregated:
            return qos_id, policy
        return f"{qos_id}/{attachment.disk_id or attachment.snapshot_id}", policy

    def _tick(self) -> None:
        self._ticking = None
        busy, at = self._clock.busy(), self._clock.monotonic()
        since = max(at - self._at, 1e-3)
        saturated = busy - self._busy > SATURATED * since or self._waits_for_log()
        self._busy, self._at = busy, at
        for key, flow in self._flows.items():
            before = self._rates.get(key, 0.0)
            self._rates[key] = before + _SMOOTH * (flow.taken / since - before)
        self._balance.tick(self._flows.values(), saturated, self._clock.monotonic())
        if self._flows:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def facts(self) -> list[dict[str, Any]]:
        """Each flow: its policy's id, its disk (None under an aggregated policy), its I/Os a second of late, and
        whether its minimum cannot be held."""
        alarms = set(self._balance.alarms(self._flows.values(), self._clock.monotonic()))
        told = []
        for key in self._flows:
            qos_id, _, subject = key.partition("/")
            if qos_id:
                told.append(
                    {
                        "qos_id": qos_id,
                        "disk_id": subject or None,
                        "iops": round(self._rates.get(key, 0.0), 1),
                        "minimum_missed": key in alarms,
                    }
                )
        return told
