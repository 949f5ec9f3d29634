"""The gate: which connections are under which QoS policy, whatever pool their disks are in, and how busy all is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from innkeeper.fabric.catalog import Attachment
from innkeeper.fabric.pools import Pools
from innkeeper.fabric.qos import TICK_S, Balance, Flow, QosPolicy

SATURATED = 0.75
"""Share of a processor that is used or waited for, of the time that a host does not keep it from the machine, from
which on the fabric has little more to give."""
_NO_IDLE, _IN_PART = 0.1, 0.25
"""It has little more to give either when this share of a processor is all that the machine has left, and it uses so
much itself: then those who ask are slowed by each other, and what is not done for one is gained by another."""
_SMOOTH = 0.2


class Gate:
    """Flows by policy, balanced ten times a second; for the event loop."""

    def __init__(self, pools: Pools, is_busy: Callable[[], bool]) -> None:
        self._pools = pools
        self._is_busy = is_busy
        """Whether some connection waits for the log, or for others' turn at the medium."""
        self._loop = asyncio.get_running_loop()
        self._clock = pools.default.io.clock
        self._balance = Balance()
        self._flows: dict[str, Flow] = {}
        self._rates: dict[str, float] = {}
        self._ticking: asyncio.TimerHandle | None = None
        self._busy = self._idle = self._stolen = self._at = 0.0

    def close(self) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None

    def flows(self, attachments: Iterable[Attachment]) -> dict[str, Flow | None]:
        """The flow that each attachment's requests draw on, by its id; those that nobody uses are forgotten."""
        catalogs = [pool.catalog for pool in self._pools.all()]
        minimums = any(policy.has_minimum for catalog in catalogs for policy in list(catalog.qos.values()))
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
            self._is_saturated(1.0)  # what counts is from now on
            self._at = self._clock.monotonic()
            self._ticking = self._loop.call_later(TICK_S, self._tick)
        return found

    def _policy_of(self, attachment: Attachment) -> tuple[str, QosPolicy]:
        qos_id, policy = "", QosPolicy()
        for pool in self._pools.all():
            disk = pool.catalog.disks.get(attachment.disk_id or "")
            if disk is not None and not pool.catalog.arrives(disk.id):
                qos_id = pool.catalog.qos_of(disk)
                policy = pool.catalog.qos.get(qos_id, policy)
        if policy.aggregated:
            return qos_id, policy
        return f"{qos_id}/{attachment.disk_id or attachment.snapshot_id}", policy

    def _tick(self) -> None:
        self._ticking = None
        at = self._clock.monotonic()
        since = max(at - self._at, 1e-3)
        saturated = self._is_saturated(since)
        self._at = at
        for key, flow in self._flows.items():
            before = self._rates.get(key, 0.0)
            self._rates[key] = before + _SMOOTH * (flow.taken / since - before)
        self._balance.tick(self._flows.values(), saturated, self._clock.monotonic())
        if self._flows:
            self._ticking = self._loop.call_later(TICK_S, self._tick)

    def _is_saturated(self, since: float) -> bool:
        """Whether no more could have been given in the last ``since`` seconds."""
        busy, idle, stolen = self._clock.busy(), self._clock.idle(), self._clock.stolen()
        had = max(since - (stolen - self._stolen), 0.1 * since)
        used, left = (busy - self._busy) / had, (idle - self._idle) / had
        self._busy, self._idle, self._stolen = busy, idle, stolen
        return used > SATURATED or (left < _NO_IDLE and used > _IN_PART) or self._is_busy()

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
