"""The pool's devices at work: added and drained while in use, groups moved between them."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import Any

from innkeeper.fabric.copies import total_bytes
from innkeeper.fabric.devices import DRAINING, HOME, ONLINE, Device
from innkeeper.fabric.marks import present
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.objects import ObjectShelf
from innkeeper.fabric.shelves import Draft
from innkeeper.fabric.space import Limits
from innkeeper.fabric.sweep import PoolSweep
from innkeeper.fabric.tiering import (
    TOUCH_S,
    DeviceFacts,
    GroupFacts,
    Heat,
    Move,
    copy_budget,
    due,
    plan,
    plan_copies,
    wants_copy,
)
from innkeeper.model.problems import Failed, NoSpace, Problem
from innkeeper.system.blobs import Credentials
from innkeeper.system.clock import Activity
from innkeeper.system.files import Io

AWAY = "away"
BOUNDLESS = 1 << 60
"""What an object store is taken to hold."""
LOOK_EVERY_S = 300.0
LOOK_AGAIN_S = 30.0
ORPHANS_EVERY_S = 24 * 3600.0


class PoolTiers(PoolSweep):
    """Adding, draining and removing devices, and moving groups."""

    _mover: Activity | None = None
    _sampled_at = 0.0
    tier_problem: Problem | None = None

    def __init__(self, io: Io, path: str, limits: Limits) -> None:
        self._moves: list[Move] = []
        self.heat = Heat()
        self.away: dict[str, Problem] = {}
        """Object stores that did not answer, or not as they should, with what they said."""
        self._to_copy: list[int] = []
        """Groups that are to get a fast copy."""
        self._looked_at_store: dict[str, float] = {}
        self._orphans_looked_at: dict[str, float] = {}
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

    def device_add(
        self,
        device_id: str,
        path: str,
        tier: str,
        *,
        endpoint: str = "",
        region: str = "",
        source: str = "",
        credentials: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """Take a directory, an object store or the file system of a block device (``source``, mounted at ``path``) into
        the pool; one that is being drained comes back, and a store's ``credentials`` (``access_key_id``,
        ``secret_access_key``) are changed. Raises as ``Devices.add``."""
        self._check_writable()
        with self.maintenance:
            device = Device(device_id, path.rstrip("/"), tier, endpoint=endpoint, region=region, source=source)
            known = self.devices.all.get(device_id)
            draining = known is not None and known.path == device.path and known.state == DRAINING
            if draining and not credentials:
                self.devices.change(device_id, ONLINE)
            else:
                self.devices.add(device, Credentials(**credentials) if credentials else None)
        self.away.pop(device_id, None)
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
            held = sum(row.size_bytes for row in list(self.store.rows.values()) if row.device == device_id)
            rest = self.devices.space(lambda each: each.state == ONLINE and each.id != device_id)[1]
            boundless = any(each.id != device_id and each.state == ONLINE for each, _ in self.devices.remote())
            if not boundless and rest - self._home_reserve_bytes() < held:
                raise NoSpace(
                    "device.no_room",
                    f"the other devices have no room for what is on {device.path}",
                    cause=f"it holds {held} bytes, they have {max(0, rest - self._home_reserve_bytes())}",
                    remedy="add another device first, or remove disks",
                )
            self.devices.change(device_id, DRAINING)
            self.drop_copies(device_id)
            self.writers.leave(device_id)
            self.bypass.leave(device_id)
        self._wake()

    def device_ls(self) -> list[dict[str, Any]]:
        """The devices with what they hold."""
        return [self._device_facts(device) for device in list(self.devices.all.values())]

    def _device_facts(self, device: Device) -> dict[str, Any]:
        _, total, free = self.devices.room(device)
        rows = [row for row in list(self.store.rows.values()) if row.device == device.id]
        copies = [copy for copy in self.copies.held().values() if copy.device == device.id]
        return {
            "id": device.id,
            "path": device.path,
            "tier": device.tier,
            "state": device.state,
            "kind": device.kind,
            "source": device.source,
            "endpoint": device.endpoint,
            "region": device.region,
            "away": int(device.id in self.away),
            "problem": str(self.away[device.id]) if device.id in self.away else None,
            "total_bytes": total,
            "free_bytes": free,
            "copies": len(copies),
            "copy_bytes": total_bytes(copies),
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
        while self._to_copy:
            self._copy_next()
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
            if self.paused and self.copies.held() and self._room_is_short():
                self.drop_copies()
            return TOUCH_S
        try:
            self._look_at_stores()
            if not self._moves and not self._to_copy:
                if self.io.clock.monotonic() - self._sampled_at < TOUCH_S and self._sampled_at:
                    return TOUCH_S
                self._moves = self._plan()
            began = self.io.clock.monotonic()
            if self._moves:
                self._move_next()
            elif self._to_copy:
                self._copy_next()
            self._let_go_of_empty()
        except Problem as problem:
            self._moves = []
            self.tier_problem = problem
            return TOUCH_S
        self.tier_problem = None
        return self.rest_after(self.io.clock.monotonic() - began) if self._moves or self._to_copy else TOUCH_S

    def _plan(self) -> list[Move]:
        now = self._sample()
        devices = [self._facts_of(device) for device in self.devices.all.values()]
        hot = self.heat.warm(now)
        bound = any(row.tier for row in list(self.store.rows.values()))
        if not due(devices, bool(hot) or bound):
            return []
        self._plan_copies(devices, hot)
        devices = [self._facts_of(device) for device in self.devices.all.values()]
        with self.maintenance:
            rows = dict(self.store.rows)
            try:
                still = self.busy_groups | self._held_groups()
            except OSError as refused:
                raise _move_problem(refused, self.devices.all[HOME]) from refused
        self.heat.forget(rows)
        groups = [
            GroupFacts(number, row.device, row.size_bytes, self.heat.last.get(number, 0.0), number in hot, row.tier)
            for number, row in rows.items()
            if number not in still
        ]
        return plan(devices, groups)

    def _plan_copies(self, devices: list[DeviceFacts], hot: set[int]) -> None:
        """Drop the copies that have no room any more, and note what is to get one."""
        held = self.copies.held()
        by_id = {device.id: device for device in devices}
        groups = {
            number: GroupFacts(
                number, row.device, row.size_bytes, self.heat.last.get(number, 0.0), number in hot, row.tier
            )
            for number, row in list(self.store.rows.items())
            if number in held or number in hot
        }
        wanted = [group for group in groups.values() if wants_copy(group, by_id[group.device])]
        budget = copy_budget(devices, total_bytes(held.values()))
        drop, self._to_copy = plan_copies(wanted, [groups[number] for number in held if number in groups], budget)
        for number in drop:
            self.copies.drop(number)
            self.store.forget(number)
        if drop:
            self.on_room()

    def drop_copies(self, device_id: str | None = None) -> None:
        """Remove all copies, or those on a device."""
        for number, copy in self.copies.held().items():
            if device_id in (None, copy.device):
                self.copies.drop(number)
                self.store.forget(number)
        self.on_room()

    def _copy_next(self) -> None:
        """Make the next copy, if its group still is what it was; what fails is left for another time."""
        row = self.store.rows.get(self._to_copy.pop(0))
        if row is None or row.number in self.busy_groups:
            return
        reserve = {HOME: self._home_reserve_bytes()}
        device = self.copies.place(row.size_bytes, reserve)
        if device is None:
            return
        try:
            self.copies.make(row, self.store.open(row), device)
        except OSError as refused:
            self._to_copy = []
            raise _move_problem(refused, device) from refused
        if self.store.rows.get(row.number) is not row:
            self.copies.drop(row.number)
        self.store.forget(row.number)
        self.meters.copies_made += 1
        self.meters.copied_bytes += row.size_bytes

    def _sample(self) -> float:
        """Note which groups were read since the last look; the time of it."""
        now = self._sampled_at = self.io.clock.monotonic()
        touched, self.store.touched = self.store.touched, set()
        scanned, self.store.scanned = self.store.scanned, set()
        self.heat.sample(now, touched, scanned)
        return now

    def _facts_of(self, device: Device) -> DeviceFacts:
        if device.remote:
            state = AWAY if device.id in self.away else device.state
            return DeviceFacts(device.id, device.tier, state, BOUNDLESS, BOUNDLESS, remote=True)
        volume, total, free = self.devices.room(device)
        reserve = self._home_reserve_bytes() if device.id == HOME else 0
        return DeviceFacts(device.id, device.tier, device.state, total, max(0, free - reserve), volume)

    def _move_next(self) -> int:
        """Carry out the next move of the plan, if it still makes sense; how many groups were moved.

        The group is copied outside the maintenance lock, for a store that is far or a disk that is slow.
        """
        move = self._moves.pop(0)
        with self.maintenance:
            row = self.store.rows.get(move.number)
            device = self.devices.all.get(move.device)
            if row is None or device is None or device.state != ONLINE or row.device == move.device:
                return 0
            try:
                if move.number in self.busy_groups or move.number in self._held_groups():
                    return 0
                table = self.store.table(move.number)
            except OSError as refused:
                raise self._move_failed(refused, device) from refused
        began = self.io.clock.monotonic()
        try:
            draft, fresh = self.written(row, table, present(table), device)
            moved = self.take(row, fresh, draft)
        except OSError as refused:
            if isinstance(refused, FileNotFoundError) and self.store.rows.get(move.number) is not row:
                return 0
            raise self._move_failed(refused, device) from refused
        if moved:
            self.meters.moved_bytes += fresh.size_bytes
            self.meters.groups_moved += 1
            self.meters.move_s.add(self.io.clock.monotonic() - began)
        return int(moved)

    def _move_failed(self, refused: OSError, device: Device) -> Problem:
        self._moves = []
        self._looked_at_store = {}
        return _move_problem(refused, device)

    def take(self, row: GroupRow, fresh: GroupRow, draft: Draft) -> bool:
        """Let what was written outside the lock take its place, unless the group has changed or is held by now."""
        with self.maintenance:
            device = self.devices.all.get(fresh.device)
            changed = self.store.rows.get(row.number) is not row or device is None or device.state != ONLINE
            try:
                if changed or row.number in self._held_groups():
                    draft.abandon()
                    return False
            except BaseException:
                draft.abandon()
                raise
            self.swap_in(replace(fresh, state=row.state, tier=row.tier), draft)
        self.on_room()
        return True

    def _let_go_of_empty(self) -> None:
        """Remove drained devices that hold nothing any more."""
        with self.maintenance:
            used = {row.device for row in list(self.store.rows.values())}
            for device in list(self.devices.all.values()):
                if device.state == DRAINING and device.id not in used:
                    self.devices.remove(device.id)
                    self.away.pop(device.id, None)

    # -- object stores ---------------------------------------------------------------------------------------------

    def _look_at_stores(self) -> None:
        """See now and then that each store is there and the right one, and remove what nothing names there."""
        now = self.io.clock.monotonic()
        for device, shelf in self.devices.remote():
            if now < self._looked_at_store.get(device.id, now):
                continue
            try:
                self.devices.look(device)
                if now >= self._orphans_looked_at.get(device.id, now):
                    self._orphans_looked_at[device.id] = now + ORPHANS_EVERY_S
                    self._remove_orphans(device, shelf)
                self.away.pop(device.id, None)
                self._looked_at_store[device.id] = now + LOOK_EVERY_S
            except (Problem, OSError) as away:
                self.away[device.id] = away if isinstance(away, Problem) else _move_problem(away, device)
                self._looked_at_store[device.id] = now + LOOK_AGAIN_S

    def _remove_orphans(self, device: Device, shelf: ObjectShelf) -> None:
        youngest = shelf.remove_orphans(dict(self.store.rows), self._numbers_end)
        if youngest >= self._numbers_end:
            self.read_only = f"group {youngest} in {device.path} is younger than meta.db, which was rolled back"


def _move_problem(refused: OSError, device: Device) -> Problem:
    if refused.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace("device.full", f"{device.path} is full", cause=str(refused), remedy="free space there")
    return Failed("device.failed", f"{device.path} fails", cause=str(refused), remedy="look at its disk's health")
