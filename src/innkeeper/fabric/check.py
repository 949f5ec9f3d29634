"""Checking: every checksum and hash in every group, every map page, and that each entry leads to what it claims."""

from __future__ import annotations

from typing import Any

from innkeeper.fabric.diff import EMPTY_VIEW, changed
from innkeeper.fabric.groups import ITEM_EXTENT, ITEM_MAP, ITEM_PIECE, SlotTable, check_header
from innkeeper.fabric.items import is_dead, wrong_with
from innkeeper.fabric.layout import (
    FANOUT,
    KIND_EXTENT,
    KIND_MAP,
    KIND_PIECE,
    KIND_SPLIT,
    PAGE,
    SLOT_BITS,
    entry_kind,
    entry_place,
    unpack_entry,
)
from innkeeper.fabric.maps import walk_maps
from innkeeper.fabric.tiers import PoolTiers
from innkeeper.model.problems import Corrupt, Failed, Problem

_ITEM_OF_KIND = {KIND_EXTENT: ITEM_EXTENT, KIND_PIECE: ITEM_PIECE, KIND_MAP: ITEM_MAP}
MAX_PROBLEMS = 1000


class PoolCheck(PoolTiers):
    """Changed blocks and the check: reading what is stored."""

    def changed_blocks(
        self,
        snapshot_id: str,
        base_snapshot_id: str | None = None,
        start_block: int = 0,
        limit: int = 65536,
    ) -> dict[str, Any]:
        """64 KiB blocks in which a snapshot differs from the base; all that are no hole without one.

        ``{"blocks": [[block, kind, hash, location], ...], "next": block or None}``; kind ``hole``, ``data`` (read it
        through an attachment) or ``extent`` with its BLAKE3 hash (hex) and ``[group path, offset, stored bytes,
        codec]``, None for one in an object store.
        """
        for _ in range(4):
            with self.catalog.admin:
                view = self.catalog.snapshot(snapshot_id).frozen.view
                base = self.catalog.snapshot(base_snapshot_id).frozen.view if base_snapshot_id else EMPTY_VIEW
            try:
                blocks, after = changed(self.store, view, base, start_block, limit)
            except (Corrupt, FileNotFoundError):
                with self.catalog.admin:
                    if self.catalog.snapshot(snapshot_id).frozen.view is view:
                        raise
                continue
            except OSError as refused:
                raise Failed("disk.read", "stored bytes cannot be read", cause=str(refused)) from refused
            if not any(layer.gone for layer in (*view.layers, *base.layers)):
                break
        return {"blocks": blocks, "next": after}

    def check(self, repair: bool = False) -> dict[str, Any]:
        """Read everything stored and verify it; for worker threads, drains and sweeps wait meanwhile.

        ``{"groups", "items", "bytes", "map_pages", "problems": [...]}``. ``repair`` rebuilds the fingerprints; damaged
        data has no second copy here and stays reported.
        """
        problems: list[str] = []
        items = size = 0
        hashes: list[tuple[bytes, int]] = []
        with self.maintenance:
            rows = dict(self.store.rows)
            for number in sorted(rows):
                try:
                    file = self.store.open(rows[number])
                    check_header(file.pread(PAGE, 0), self.pool_id, number, rows[number].generation, file.path)
                    row = rows[number]
                    table = SlotTable.load(file, number, row.generation, row.last_frame)
                    assert table is not None
                    for slot in range(table.slots):
                        stored = _check_item(table, slot, problems, hashes)
                        items += stored > 0
                        size += stored
                except (Problem, OSError) as broken:
                    problems.append(str(broken))
            map_pages = self._check_maps(problems)
            if repair and self._fingerprints is not None and not self.read_only:
                self._fingerprints.clear()
                self._fingerprints.add(hashes)
        return {
            "groups": len(rows),
            "items": items,
            "bytes": size,
            "map_pages": map_pages,
            "problems": problems[:MAX_PROBLEMS],
            "problem_count": len(problems),
        }

    def _check_maps(self, problems: list[str]) -> int:
        with self.catalog.admin:
            roots = self.catalog.roots()
        seen: set[int] = set()
        for root in roots:
            try:
                for entry, level, page in walk_maps(self.store, root, seen):
                    self._check_page(entry, level, page, problems)
            except (Problem, OSError) as broken:
                problems.append(str(broken))
        return len(seen)

    def _check_page(self, entry: int, level: int, page: memoryview, problems: list[str]) -> None:
        sub_tables = (len(page) - FANOUT) // 16
        for index, child in enumerate(page):
            if not child:
                continue
            kind = entry_kind(child)
            where = f"map page {unpack_entry(entry)} level {level} entry {index}"
            if kind == KIND_SPLIT and level == 1 and index < FANOUT:
                if child & 0x3FFFF >= sub_tables:
                    problems.append(f"{where}: there is no sub-table {child & 0x3FFFF}")
                continue
            fits = kind == KIND_MAP if level > 1 else kind in (KIND_EXTENT, KIND_PIECE)
            if not fits:
                problems.append(f"{where}: an entry of kind {kind} does not belong there")
                continue
            group, slot = entry_place(child)
            try:
                item = self.store.table(group).row(slot).item
            except (Problem, OSError) as broken:
                problems.append(f"{where}: {broken}")
                continue
            if item != _ITEM_OF_KIND[kind]:
                problems.append(f"{where}: group {group} slot {slot} holds item kind {item}")


def _check_item(table: SlotTable, slot: int, problems: list[str], hashes: list[tuple[bytes, int]]) -> int:
    """Verify one slot; returns its stored bytes, 0 for a reclaimed one."""
    if is_dead(table, slot):
        return 0
    row = table.row(slot)
    wrong = wrong_with(table, slot, row)
    digest = table.extent_hash(slot)
    if wrong is not None:
        problems.append(f"{table.file.path} at byte {row.offset} (slot {slot}): {wrong}")
    elif digest is not None:
        hashes.append((digest, table.number << SLOT_BITS | slot))
    return row.stored
