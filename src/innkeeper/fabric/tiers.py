"""The pool's devices at work: added and drained while in use, groups moved between them."""

from __future__ import annotations

import errno
from typing import Any

from innkeeper.fabric.devices import DRAINING, HOME, ONLINE, Device
from innkeeper.fabric.marks import Marks, present
from innkeeper.fabric.space import Limits
from innkeeper.fabric.sweep import PoolSweep
from innkeeper.fabric.tiering import TOUCH_S, DeviceFacts, GroupFacts, Heat, Move, due, plan
from innkeeper.model.problems import Failed, NoSpace, Problem
from innkeeper.system.clock import Activity
from innkeeper.system.files import Io


class PoolTiers(PoolSweep):
    """Adding, draining and removing devices, and moving groups."""

    _mover: Activity | None = None
    _sampled_at = 0.0
    tier_problem: Problem | None = None

    def __init__(self, io: Io, path: str, limits: Limits) -> None:
        self._moves: list[Move] = []
        self.heat = Heat()
        super().__init__(io, path, limits)

    def start_upkeep(self) -> None:
        super().start_upkeep()
        self._mover = self.io.scheduler.start("fabric-tiers", self._tier_step)

    def stop_upkeep(self) -> None:
        if self._mover is not None:
            self._mover.stop()
            self._mover = None
        super().stop_upkeep()

    # -- devices ---------------------------------------------------------------------------------------------------

    def device_add(self, device_id: str, path: str, tier: str) -> dict[str, Any]:
        """Take a directory into the pool; one that is being drained comes back. Raises as ``Devices.add``."""
        self._check_writable()
        with self.maintenance:
            device = Device(device_id, path.rstrip("/"), tier)
            known = self.devices.all.get(device_id)
            if known is not None and known.path == device.path and known.state == DRAINING:
                self.devices.change(device_id, ONLINE)
            else:
                self.devices.add(device)
        self._wake()
        self.on_room()
        return self._device_facts(self.devices.all[device_id])

    def device_rm(self, device_id: str) -> None:
        """Let a device go: its groups move to others, then it is no part of the pool any more.

        Raises ``Conflict`` (``device.home``), ``NotFound``, ``NoSpace`` (``device.no_room``) where the others have no
        room for what it holds.
        """
        self._check_writable()
        with self.maintenance:
            device = self.devices.other(device_id)
            held = sum(row.size_bytes for row in self.store.rows.values() if row.device == device_id)
            rest = self.devices.space(lambda each: each.state == ONLINE and each.id != device_id)[1]
            if rest - self._home_reserve_bytes() < held:
                raise NoSpace(
                    "device.no_room",
                    f"the other devices have no room for what is on {device.path}",
                    cause=f"it holds {held} bytes, they have {max(0, rest - self._home_reserve_bytes())}",
                    remedy="add another device first, or remove disks",
                )
            self.devices.change(device_id, DRAINING)
            self.writers.leave(device_id)
        self._wake()

    def device_ls(self) -> list[dict[str, Any]]:
        """The devices with what they hold."""
        return [self._device_facts(device) for device in list(self.devices.all.values())]

    def _device_facts(self, device: Device) -> dict[str, Any]:
        _, total, free = self.devices.room(device)
        rows = [row for row in list(self.store.rows.values()) if row.device == device.id]
        return {
            "id": device.id,
            "path": device.path,
            "tier": device.tier,
            "state": device.state,
            "total_bytes": total,
            "free_bytes": free,
            "groups": len(rows),
            "group_bytes": sum(row.size_bytes for row in rows),
        }

    # -- moving ----------------------------------------------------------------------------------------------------

    def tier(self) -> dict[str, int]:
        """Make the moves that are due now; for worker threads, and by hand. Returns ``{"moved": groups}``."""
        self._check_writable()
        self._moves = self._plan()
        moved = 0
        while self._moves:
            moved += self._move_next()
        self._let_go_of_empty()
        return {"moved": moved}

    def _wake(self) -> None:
        self._sampled_at = 0.0
        if self._mover is not None:
            self._mover.kick()

    def _tier_step(self) -> float:
        """One move if one is due; a plan every ``TOUCH_S``."""
        if self.read_only or self.paused or len(self.devices.all) == 1:
            self._sample()
            return TOUCH_S
        try:
            if not self._moves:
                if self.io.clock.monotonic() - self._sampled_at < TOUCH_S and self._sampled_at:
                    return TOUCH_S
                self._moves = self._plan()
            began = self.io.clock.monotonic()
            if self._moves:
                self._move_next()
            self._let_go_of_empty()
        except Problem as problem:
            self._moves = []
            self.tier_problem = problem
            return TOUCH_S
        self.tier_problem = None
        return self.rest_after(self.io.clock.monotonic() - began) if self._moves else TOUCH_S

    def _plan(self) -> list[Move]:
        now = self._sample()
        devices = [self._facts_of(device) for device in self.devices.all.values()]
        hot = self.heat.warm(now)
        bound = any(row.tier for row in list(self.store.rows.values()))
        if not due(devices, bool(hot) or bound):
            return []
        with self.maintenance:
            rows = dict(self.store.rows)
            try:
                still = self.writers.numbers | self._held_groups()
            except OSError as refused:
                raise _move_problem(refused, self.devices.all[HOME]) from refused
        self.heat.forget(rows)
        groups = [
            GroupFacts(number, row.device, row.size_bytes, self.heat.last.get(number, 0.0), number in hot, row.tier)
            for number, row in rows.items()
            if number not in still
        ]
        return plan(devices, groups)

    def _sample(self) -> float:
        """Note which groups were read since the last look; the time of it."""
        now = self._sampled_at = self.io.clock.monotonic()
        touched, self.store.touched = self.store.touched, set()
        scanned, self.store.scanned = self.store.scanned, set()
        self.heat.sample(now, touched, scanned)
        return now

    def _facts_of(self, device: Device) -> DeviceFacts:
        volume, total, free = self.devices.room(device)
        reserve = self._home_reserve_bytes() if device.id == HOME else 0
        return DeviceFacts(device.id, device.tier, device.state, total, max(0, free - reserve), volume)

    def _held_groups(self) -> set[int]:
        """Groups that a held snapshot reaches: who holds it may read their files directly."""
        with self.catalog.admin:
            roots = [self.catalog.snapshots[each].frozen.view.root for each in set(self.catalog.holds.values())]
        return set(Marks.of_roots(self.store, roots).live) if roots else set()

    def _move_next(self) -> int:
        """Carry out the next move of the plan, if it still makes sense; how many groups were moved."""
        move = self._moves.pop(0)
        with self.maintenance:
            row = self.store.rows.get(move.number)
            device = self.devices.all.get(move.device)
            if row is None or device is None or device.state != ONLINE or row.device == move.device:
                return 0
            state = row.state
            try:
                if move.number in self.writers.numbers or move.number in self._held_groups():
                    return 0
                table = self.store.table(move.number)
                self.meters.moved_bytes += self.rewrite(row, table, present(table), device)
                self.meters.groups_moved += 1
            except OSError as refused:
                self._moves = []
                raise _move_problem(refused, device) from refused
            self.store.rows[move.number].state = state
        self.on_room()
        return 1

    def _let_go_of_empty(self) -> None:
        """Remove drained devices that hold nothing any more."""
        with self.maintenance:
            used = {row.device for row in self.store.rows.values()}
            for device in list(self.devices.all.values()):
                if device.state == DRAINING and device.id not in used:
                    self.devices.remove(device.id)


def _move_problem(refused: OSError, device: Device) -> Problem:
    if refused.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("device.full", f"{device.path} is full", cause=str(refused), remedy="free space there")
    return Failed("device.failed", f"{device.path} fails", cause=str(refused), remedy="look at its disk's health")
