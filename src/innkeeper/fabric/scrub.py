"""Scrubbing: everything stored is read again before it is needed, what is damaged is repaired or told.

Group after group, in idle time so that all is read once a week, or now when asked. A damaged extent is put right from
the content cache where that has it, or with a copy that someone brings (``repair``: the daemon takes it from a backup
repository): its hash says whether the copy is right. What cannot be repaired stays on the list, with the disks and
snapshots that stand on it.
"""

from __future__ import annotations

import base64
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from blake3 import blake3

from innkeeper.fabric.groups import ITEM_EXTENT, ITEM_MAP, ITEM_PIECE, SlotTable, check_header
from innkeeper.fabric.items import is_dead, wrong_with
from innkeeper.fabric.layers import View
from innkeeper.fabric.layout import (
    BLOCK,
    KIND_EXTENT,
    PAGE,
    PAGES_PER_BLOCK,
    SLOT_BITS,
    entry_place,
    pack_entry,
)
from innkeeper.fabric.marks import Marks, present
from innkeeper.fabric.moves import PoolMoves
from innkeeper.fabric.objects import StoreError
from innkeeper.fabric.space import Limits
from innkeeper.model.problems import Failed, Invalid, NotFound, Problem, Unavailable
from innkeeper.system.clock import Activity
from innkeeper.system.files import Io

PASS_S = 7 * 86400.0
SLICE_BYTES = 128 << 20
LOOK_S = 60.0
BUSY_S = 5.0
_ITEMS = {ITEM_EXTENT: "extent", ITEM_PIECE: "piece", ITEM_MAP: "map page"}


@dataclass(frozen=True, slots=True)
class Damage:
    """A damaged item; ``slot`` is None where the index of a whole group is damaged. ``hash`` of an extent, in hex."""

    group: int
    slot: int | None
    item: str
    path: str
    offset: int
    hash: str | None
    what: str


class PoolScrub(PoolMoves):
    """Scrub and repair."""

    _scrubber: Activity | None = None

    def __init__(self, io: Io, path: str, limits: Limits) -> None:
        self._damage: dict[tuple[int, int | None], Damage] = {}
        self._scrubbed_upto = 0
        self._last_group_at = 0.0
        self.scrubbed_at: float | None = None
        self.scrub_problem: Problem | None = None
        self.repaired = 0
        super().__init__(io, path, limits)
        meta = self.catalog.meta
        self._scrubbed_upto = int(meta.get("scrubbed_upto", 0))
        self._last_group_at = float(meta.get("scrubbed_group_at", io.clock.now()))
        self.scrubbed_at = meta.get("scrubbed_at")

    def start_upkeep(self) -> None:
        super().start_upkeep()
        self._scrubber = self.io.scheduler.start("fabric-scrub", self._scrub_step)

    def stop_upkeep(self) -> None:
        if self._scrubber is not None:
            self._scrubber.stop()
            self._scrubber = None
        super().stop_upkeep()

    def _scrub_step(self) -> float:
        """The next group when its time has come and there is little else to do."""
        numbers = sorted(self.store.rows)
        due_s = self._last_group_at + PASS_S / max(1, len(numbers)) - self.io.clock.now()
        if self.paused:
            return LOOK_S
        if self.read_only or not numbers or due_s > PASS_S:  # the clock was set back
            self._last_group_at = self.io.clock.now()
            return LOOK_S
        if due_s > 0:
            return min(LOOK_S, due_s)
        if self._log_is_long():
            return BUSY_S
        following = [number for number in numbers if number > self._scrubbed_upto] or numbers
        try:
            self._scrub_group(following[0])
            if any(group == following[0] for group, _ in self._damage):
                self.damage_ls()
            self._note_scrubbed(following[0] if len(following) > 1 else 0)
            self.scrub_problem = None
        except Problem as problem:
            self.scrub_problem = problem
        return BUSY_S

    def _note_scrubbed(self, upto: int) -> None:
        """Remember how far the pass is; 0: it is over."""
        self._scrubbed_upto = upto
        self._last_group_at = self.io.clock.now()
        with self.catalog.meta.transaction() as change:
            change.put("scrubbed_upto", upto)
            change.put("scrubbed_group_at", self._last_group_at)
            if not upto:
                self.scrubbed_at = self.io.clock.now()
                change.put("scrubbed_at", self.scrubbed_at)

    # -- by hand ---------------------------------------------------------------------------------------------------

    def scrub(self, after: int = 0, limit_bytes: int = SLICE_BYTES) -> dict[str, Any]:
        """Verify groups behind number ``after``, about ``limit_bytes`` of them; for worker threads.

        ``{"next", "groups", "bytes", "left_bytes"}``: ``next`` is the ``after`` of the following call, None at the end.
        What is found is in ``damage_ls``.
        """
        rows = dict(self.store.rows)
        numbers = [number for number in sorted(rows) if number > after]
        done = size = 0
        for number in numbers:
            if size >= limit_bytes:
                break
            self._scrub_group(number)
            size += rows[number].size_bytes
            done += 1
        over = done == len(numbers)
        if over and not self.read_only:
            self._note_scrubbed(0)
        left = sum(rows[number].size_bytes for number in numbers[done:])
        return {"next": None if over else numbers[done - 1], "groups": done, "bytes": size, "left_bytes": left}

    def _scrub_group(self, number: int) -> None:
        """Verify a group as it is now; one that moves or goes meanwhile is left to the next pass."""
        for key in [key for key in self._damage if key[0] == number]:
            del self._damage[key]
        row = self.store.rows.get(number)
        if row is None:
            return
        path = self.store.path(number)
        began = self.io.clock.monotonic()
        try:
            file = self.store.open(row)
            check_header(file.pread(PAGE, 0), self.pool_id, number, row.generation, path)
            table = SlotTable.load(file, number, row.generation, row.last_frame)
            assert table is not None
            found = list(self._damaged_in(table))
        except StoreError as away:
            raise Unavailable(
                "device.unreachable", f"{path} cannot be read", cause=str(away), remedy="look at the object store"
            ) from away
        except FileNotFoundError:
            if self.store.rows.get(number) is row:
                self._damage[number, None] = Damage(number, None, "group", path, 0, None, "the file is not there")
            return
        except (Problem, OSError) as broken:
            self._damage[number, None] = Damage(number, None, "group", path, 0, None, str(broken))
            return
        self.meters.scrubbed_bytes += row.size_bytes
        self.meters.scrub_s.add(self.io.clock.monotonic() - began)
        for damage in found:
            self._damage[number, damage.slot] = damage
        self._match_no_more(found)
        copies = {damage.slot: self._copy(damage) for damage in found if damage.slot is not None}
        for slot, data in copies.items():
            if data is not None and not self.read_only:
                self.put_right(number, slot, data)

    def _damaged_in(self, table: SlotTable) -> list[Damage]:
        found = []
        for slot in range(table.slots):
            if is_dead(table, slot):
                continue
            row = table.row(slot)
            wrong = wrong_with(table, slot, row)
            if wrong is not None:
                digest = table.extent_hash(slot)
                item = _ITEMS.get(row.item, f"item of kind {row.item}")
                found.append(
                    Damage(
                        table.number, slot, item, table.file.path, row.offset, digest.hex() if digest else None, wrong
                    )
                )
        return found

    def _match_no_more(self, found: list[Damage]) -> None:
        """Let the same content, when it is written again, be stored anew."""
        gone = [
            (bytes.fromhex(each.hash), each.group << SLOT_BITS | each.slot)
            for each in found
            if each.hash is not None and each.slot is not None
        ]
        if gone and self._fingerprints is not None:
            self._fingerprints.remove(gone)

    def _copy(self, damage: Damage) -> bytes | None:
        """The content of a damaged extent out of the cache, its group's fast copy, or another extent that has the
        same."""
        if damage.hash is None or damage.slot is None:
            return None
        entry = pack_entry(KIND_EXTENT, damage.group, damage.slot)
        data = self.store.content.get(entry)
        if data is None and damage.group in self.copies.held():
            with suppress(Problem, OSError):  # it is damaged too
                data = self.store.extent_pages(entry, 0, PAGES_PER_BLOCK)
        if data is None and self._fingerprints is not None:
            place = self._fingerprints.find(bytes.fromhex(damage.hash))
            if place is not None:
                with suppress(Problem, OSError):  # the hint was stale
                    data = self.store.extent_pages(pack_entry(KIND_EXTENT, *entry_place(place)), 0, PAGES_PER_BLOCK)
        return data if data is not None and blake3(data).hexdigest() == damage.hash else None

    # -- damage and repair -----------------------------------------------------------------------------------------

    def damage(self) -> list[Damage]:
        """What was found damaged and has not been reclaimed since."""
        for key in list(self._damage):
            if not self._is_there(*key):
                self._damage.pop(key, None)
        return list(self._damage.values())

    def _is_there(self, group: int, slot: int | None) -> bool:
        if group not in self.store.rows:
            return False
        try:
            return slot is None or not is_dead(self.store.table(group), slot)
        except (Problem, OSError):
            return True

    def damage_ls(self) -> list[dict[str, Any]]:
        """What the scrub found damaged and could not repair, each with the ids of disks and snapshots that need it.

        What none of them needs is dead, only not swept yet: it is forgotten.
        """
        found = self.damage()
        if not found:
            return []
        with self.maintenance:
            with self.catalog.admin:
                views = {disk.id: disk.open.view for disk in self.catalog.disks.values()}
                views |= {each.id: each.frozen.view for each in self.catalog.snapshots.values()}
            standing = {subject: self._reach(view) for subject, view in views.items()}
            told = []
            for each in found:
                subjects = sorted(subject for subject, marks in standing.items() if _needs(marks, each))
                if subjects:
                    told.append(asdict(each) | {"subjects": subjects})
                else:
                    self._damage.pop((each.group, each.slot), None)
        return told

    def _reach(self, view: View) -> Marks | None:
        """What a view reaches; None where its map cannot be read."""
        try:
            marks = Marks.of_roots(self.store, [view.root])
            marks.add_layers(view.layers)
            return marks
        except (Problem, OSError):
            return None

    def repair(self, group: int, slot: int, data_base64: str) -> dict[str, Any]:
        """Put a damaged extent right with its 64 KiB. Repeated, it changes nothing. ``{"repaired": bool}``.

        Raises ``Invalid`` (``repair.hash``) for other content than it had, ``NotFound`` (``repair.not_found``).
        """
        self._check_writable()
        try:
            data = base64.b64decode(data_base64, validate=True)
        except ValueError as wrong:
            raise Invalid("repair.hash", "the data is no base64", cause=str(wrong)) from wrong
        return {"repaired": self.put_right(group, slot, data)}

    def put_right(self, group: int, slot: int, data: bytes) -> bool:
        """Put a damaged extent right with its content; False where it is sound. Raises as ``repair``."""
        with self.maintenance:
            row = self.store.rows.get(group)
            if row is None:
                raise NotFound("repair.not_found", f"there is no group {group} any more", remedy="nothing needs repair")
            table = self.store.own_table(group)
            digest = table.extent_hash(slot)
            if digest is None:
                raise NotFound("repair.not_found", f"group {group} has no extent in slot {slot}", remedy="scrub again")
            if len(data) != BLOCK or blake3(data).digest() != digest:
                raise Invalid("repair.hash", "this is not what was stored there", remedy="bring another copy")
            if wrong_with(table, slot, table.row(slot)) is None:
                self._damage.pop((group, slot), None)
                return False
            if group in self.busy_groups:
                self.writers.leave(row.device)
                self.bypass.leave(row.device)
                self.settle_groups()
                row, table = self.store.rows[group], self.store.own_table(group)
            try:
                self.rewrite(row, table, present(table), self.devices.all[row.device], {slot: data})
            except OSError as refused:
                raise Failed(
                    "repair.failed", f"group {group} cannot be written", cause=str(refused), remedy="look at its disk"
                ) from refused
            self._damage.pop((group, slot), None)
            self.repaired += 1
            return True


def _needs(marks: Marks | None, damage: Damage) -> bool:
    if marks is None:
        return True
    mask = marks.live.get(damage.group)
    if mask is None or damage.slot is None:
        return mask is not None
    return damage.slot < len(mask) and bool(mask[damage.slot])
