"""The curator: stored data follows the policies that it is under now.

A pass marks what the disks of each storage reach and what is bound to a tier, and gives each group the tier its data is
to stay on. A group whose extents were packed by other policies than they are under now, or that got cold, is packed
anew: the strongest policy counts where storages share an extent. That happens outside the maintenance lock; when the
group was moved, compacted or held meanwhile, the work is thrown away. All background work but the drain rests after
each group for as long as the foreground needs (``rest_s``), and not at all while the curator is paused.
"""

from __future__ import annotations

import errno
import json
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np

from innkeeper.fabric.marks import Marks, Slots, present
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.meters import Histogram
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.scrub import PoolScrub
from innkeeper.fabric.space import Limits
from innkeeper.fabric.store import LIVE
from innkeeper.model.problems import Failed, NoSpace, Problem
from innkeeper.system.clock import Activity
from innkeeper.system.files import Io

PASS_EVERY_S = 6 * 3600.0
LOOK_EVERY_S = 30.0
STRAINED_S = 2e-3
"""An append to the log that takes longer than this on average tells of a foreground in need."""
_REMEMBER_EVERY_S = 3600.0


def strength(policy: Policy) -> tuple[int, int]:
    """Orders policies by how hard they pack."""
    return ("off", "lz4", "zstd").index(policy.compression), policy.level


def rest_s(work_s: float, appends: int, append_s: float) -> float:
    """How long to rest after ``work_s`` of work, during which the foreground appended so often, taking so long each.

    None where there is no foreground, as long as the work where there is one, twenty times that where it suffers.
    """
    if not appends:
        return 0.0
    return work_s * (1.0 if append_s < STRAINED_S else 20.0)


class PoolCurator(PoolScrub):
    """Passes over all groups, one group of work at a time."""

    _curator: Activity | None = None

    def __init__(self, io: Io, path: str, limits: Limits) -> None:
        self._to_recode: dict[int, dict[str, Slots]] = {}
        """Groups to pack anew: codes of policies, each with the slots that are under it."""
        self._policies: dict[str, Policy] = {}
        self._touched: dict[int, float] = {}
        """When groups were read last, by the clock; groups that nothing is known of count from when they were seen."""
        self._pass_at: float | None = None
        self._remembered_at = 0.0
        self._looked_at: tuple[int, float] = 0, 0.0
        self.curator_problem: Problem | None = None
        super().__init__(io, path, limits)
        meta = self.catalog.meta
        self.paused = bool(meta.get("curator_paused", 0))
        self._touched = {int(key): at for key, at in json.loads(meta.get("touched", "{}")).items()}

    def start_upkeep(self) -> None:
        super().start_upkeep()
        self._curator = self.io.scheduler.start("fabric-curator", self._curate_step)

    def stop_upkeep(self) -> None:
        if self._curator is not None:
            self._curator.stop()
            self._curator = None
        super().stop_upkeep()

    # -- pausing and resting ---------------------------------------------------------------------------------------

    def curator_pause(self, paused: bool) -> dict[str, Any]:
        """Let all background work but the drain rest, also after a restart, or go on."""
        with self.catalog.admin:
            if paused != self.paused:
                self._check_writable()
                with self.catalog.meta.transaction() as change:
                    change.put("curator_paused", int(paused))
                self.paused = paused
        if not paused and self._curator is not None:
            self._curator.kick()
        return self.curator_show()

    def rest_after(self, work_s: float) -> float:
        count, total_s = _looked(self.meters.append_s)
        before, self._looked_at = self._looked_at, (count, total_s)
        appends = count - before[0]
        return rest_s(work_s, appends, (total_s - before[1]) / max(1, appends))

    def curator_show(self) -> dict[str, Any]:
        """``left_groups`` and ``left_bytes``: what of the present pass is to be packed anew."""
        left = [self.store.rows[number].size_bytes for number in list(self._to_recode) if number in self.store.rows]
        return {
            "paused": self.paused,
            "pass_at": self._pass_at,
            "left_groups": len(left),
            "left_bytes": sum(left),
            "groups_recoded": self.meters.groups_recoded,
            "recoded_bytes": self.meters.recoded_bytes,
        }

    # -- passes ----------------------------------------------------------------------------------------------------

    def _curate_step(self) -> float:
        if self.read_only or self.paused:
            return LOOK_EVERY_S
        now = self.io.clock.now()
        self._note_touched(now)
        try:
            if self._to_recode:
                return self._recode_next()
            due = self._pass_at is None or now - self._pass_at >= PASS_EVERY_S or now < self._pass_at
            if self.recode_wanted or (due and self._cold_counts()):
                self.curate_plan()
            self.curator_problem = None
        except Problem as problem:
            self._to_recode = {}
            self.curator_problem = problem
            return LOOK_EVERY_S
        return 0.0 if self._to_recode else LOOK_EVERY_S

    def curate_plan(self) -> dict[str, Any]:
        """Begin a pass: give groups their tiers and find those to be packed anew; for worker threads."""
        self._check_writable()
        self.recode_wanted = False
        now = self.io.clock.now()
        try:
            with self.maintenance:
                self._bind_to_tiers()
                self._to_recode = self._find_work(now)
        except OSError as refused:
            raise Failed(
                "curator.failed", f"a pass over {self.path} failed", cause=str(refused), remedy="look at its disk"
            ) from refused
        self._pass_at = now
        return self.curator_show()

    def curate_next(self) -> dict[str, Any]:
        """Pack the next group of the pass anew; for worker threads."""
        self._check_writable()
        if self._to_recode:
            self._recode_next()
        return self.curator_show()

    # -- tiers -----------------------------------------------------------------------------------------------------

    def _bind_to_tiers(self) -> None:
        """Where any fast disk's data is, the group stays fast; where there is only slow disks', slow."""
        with self.catalog.admin:
            roots: dict[str, list[Any]] = {"": [], "fast": [], "slow": []}
            for disk in self.catalog.disks.values():
                roots[self.catalog.tier_of(disk)].append(disk.open.view.root)
            bound = any(row.tier for row in list(self.store.rows.values()))
        if not roots["fast"] and not roots["slow"] and not bound:
            return
        reached = {tier: set(Marks.of_roots(self.store, of).live) for tier, of in roots.items()}
        changed = []
        busy = self.busy_groups
        for number, row in list(self.store.rows.items()):
            if number in reached["fast"]:
                tier = "fast"
            else:
                tier = "slow" if number in reached["slow"] and number not in reached[""] else ""
            if tier != row.tier and number not in busy:
                changed.append(replace(row, tier=tier, state=LIVE))
        if changed:
            with self.catalog.admin, self.catalog.meta.transaction() as change:
                for fresh in changed:
                    change.put_group(fresh)
            for fresh in changed:
                self.store.rows[fresh.number].tier = fresh.tier
            self._wake()

    # -- packing anew ----------------------------------------------------------------------------------------------

    def _cold_counts(self) -> bool:
        return any(storage.policy.cold_level for storage in list(self.catalog.storages.values()))

    def _note_touched(self, now: float) -> None:
        """Keep when groups were read, and tell meta from time to time; only where some storage asks for it."""
        if not self._cold_counts():
            return
        rows = self.store.rows
        read, self.store.read_of_late = self.store.read_of_late, set()
        for number in read:
            self._touched[number] = now
        for number in list(rows):
            self._touched.setdefault(number, now)
        if not 0 <= now - self._remembered_at < _REMEMBER_EVERY_S:
            self._touched = {number: at for number, at in self._touched.items() if number in rows}
            self._remembered_at = now
            with suppress(Problem), self.catalog.admin, self.catalog.meta.transaction() as change:
                change.put("touched", json.dumps(self._touched))

    def _find_work(self, now: float) -> dict[int, dict[str, Slots]]:
        """Which groups are to be packed anew, and how."""
        with self.catalog.admin:
            roots: dict[str, list[Any]] = {storage_id: [] for storage_id in self.catalog.storages}
            for disk in self.catalog.disks.values():
                roots[disk.storage_id].append(disk.open.view.root)
            for snapshot in self.catalog.snapshots.values():
                roots[snapshot.storage_id].append(snapshot.frozen.view.root)
            policies = {each.id: each.policy for each in self.catalog.storages.values()}
        ordered = sorted(policies, key=lambda storage_id: strength(policies[storage_id]))
        marks = {
            storage_id: Marks.of_roots(self.store, roots[storage_id]) for storage_id in ordered if roots[storage_id]
        }
        self._policies = {}
        work = {}
        busy = self.busy_groups
        for number, row in list(self.store.rows.items()):
            if number in busy:
                continue
            wanted: dict[str, Slots] = {}
            for storage_id, reached in marks.items():
                if number in reached.live:
                    coding = self._coding_for(policies[storage_id], number, row, now)
                    _claim(wanted, coding, reached.live[number])
            if wanted and not set(wanted) <= set(row.coding.split(",")):
                work[number] = wanted
        return work

    def _coding_for(self, policy: Policy, number: int, row: GroupRow, now: float) -> str:
        """The code that a storage's data in a group is to have; what was packed harder when it got cold stays so."""
        cold = policy.cold_level and now - self._touched.get(number, now) >= policy.cold_after_s
        coding = policy.code
        if policy.cold_level and (cold or policy.cold_code in row.coding.split(",")):
            coding = policy.cold_code
            policy = replace(policy, compression="zstd", level=policy.cold_level)
        self._policies[coding] = policy
        return coding

    def _recode_next(self) -> float:
        """Pack one group anew; how long to rest afterwards."""
        number, wanted = next(iter(self._to_recode.items()))
        del self._to_recode[number]
        row = self.store.rows.get(number)
        if row is None:
            return 0.0
        began = self.io.clock.monotonic()
        device = self.devices.all[row.device]
        try:
            table = self.store.table(number)
            policies = {
                slot: self._policies[code]
                for code, mask in wanted.items()
                for slot in np.flatnonzero(mask[: table.slots]).tolist()
            }
            draft, fresh = self.written(row, table, present(table), device, policies=policies)
            if self.take(row, replace(fresh, coding=",".join(sorted(wanted))), draft):
                self.meters.groups_recoded += 1
                self.meters.recoded_bytes += row.size_bytes
                self.meters.recode_s.add(self.io.clock.monotonic() - began)
        except OSError as refused:
            if refused.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace(
                    "device.full", f"{device.path} is full", cause=str(refused), remedy="free space"
                ) from refused
            raise Failed(
                "curator.failed", f"group {number} cannot be packed anew", cause=str(refused), remedy="look at its disk"
            ) from refused
        return self.rest_after(self.io.clock.monotonic() - began)


def _claim(wanted: dict[str, Slots], coding: str, mask: Slots) -> None:
    """Give the slots to a coding; those who come later pack harder, and take them from the others."""
    for other, known in wanted.items():
        if other != coding:
            overlap = min(len(known), len(mask))
            known[:overlap] &= ~mask[:overlap]
    wanted[coding] = mask.copy() if coding not in wanted else _union(wanted[coding], mask)
    for other in [other for other, known in wanted.items() if not known.any()]:
        del wanted[other]


def _union(one: Slots, other: Slots) -> Slots:
    longer, shorter = (one, other) if len(one) >= len(other) else (other, one)
    result = longer.copy()
    result[: len(shorter)] |= shorter
    return result


def _looked(histogram: Histogram) -> tuple[int, float]:
    return sum(histogram.counts), histogram.sum_s
