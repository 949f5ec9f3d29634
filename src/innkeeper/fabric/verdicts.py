"""Verdicts: what of each disk and snapshot is damaged, and where it may be had from instead.

Every group, every map page and every page of the log is read and verified once; then each disk's maps are walked for
what they name of it. A damaged range reads as an error and never as data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from innkeeper.fabric.groups import ITEM_EXTENT
from innkeeper.fabric.items import is_dead, wrong_with
from innkeeper.fabric.layers import CRC_MASK, POSITION_SHIFT, Layer, View, find
from innkeeper.fabric.layout import (
    FANOUT,
    KIND_EXTENT,
    KIND_MAP,
    KIND_PIECE,
    KIND_SPLIT,
    MAX_GROUP,
    PAGE,
    PAGES_PER_BLOCK,
    SLOT_BITS,
    crc32c,
    entry_kind,
    entry_place,
)
from innkeeper.fabric.maps import block_entry, sub_table
from innkeeper.fabric.marks import Slots, present
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Problem

LOST = "lost"
REPOSITORY = "repository"
EQUAL = "equal"
_MOST_RANGES = 1000


@dataclass(slots=True)
class Range:
    """Bytes of a disk that cannot be read: ``where`` in the pool's files, and what helps: ``equal`` (the same content
    is stored elsewhere in the pool, a repair takes it), ``repository`` (a scrub takes it from a backup repository that
    has it), ``snapshot <id>`` (what was there before), ``lost``."""

    offset_bytes: int
    length_bytes: int
    where: str
    recover: str


@dataclass(slots=True)
class Verdict:
    """A disk or snapshot: ``whole``, or ``damaged`` in ``ranges``."""

    kind: str
    id: str
    disk_id: str
    size_bytes: int
    state: str = "whole"
    bad_bytes: int = 0
    ranges: list[Range] = field(default_factory=list)


@dataclass(slots=True)
class Findings:
    """What is damaged in the pool's files: slots by group, whole groups, pages of the log by layer."""

    slots: dict[int, dict[int, tuple[str, str]]] = field(default_factory=dict)
    """Slot -> (where, the extent's hash in hex or "")."""
    groups: dict[int, str] = field(default_factory=dict)
    """Where groups that cannot be read at all are damaged."""
    pages: dict[Layer, dict[int, str]] = field(default_factory=dict)
    equal: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    """Damaged extents, and sound ones with the same content."""
    sound: dict[int, Slots] = field(default_factory=dict)
    """Which slots of groups hold something sound."""
    paths: dict[int, str] = field(default_factory=dict)

    def is_sound(self, group: int, slot: int) -> bool:
        slots = self.sound.get(group)
        return slots is not None and slot < len(slots) and bool(slots[slot])

    def of(self, entry: int) -> tuple[str, str] | None:
        """(where, how to recover) of what a map entry names, None where it is sound."""
        group, slot = entry_place(entry)
        if self.is_sound(group, slot):
            return None
        if group in self.groups:
            return self.groups[group], LOST
        found = self.slots.get(group, {}).get(slot)
        if found is None:
            return f"{self.paths.get(group, f'group {group}')}: nothing is left in slot {slot}", LOST
        where, digest = found
        if (group, slot) in self.equal:
            return where, EQUAL
        return where, REPOSITORY if digest else LOST


def search(pool: Pool) -> Findings:
    """Read and verify all that is stored; for worker threads."""
    findings = Findings()
    sound: dict[bytes, tuple[int, int]] = {}
    wanted: dict[bytes, list[tuple[int, int]]] = {}
    for number in sorted(pool.store.rows):
        try:
            pool.store.forget(number)
            table = pool.store.own_table(number)
        except (Problem, OSError) as broken:
            findings.groups[number] = _told(broken)
            continue
        findings.paths[number] = table.file.path
        findings.sound[number] = whole = present(table)
        bad: dict[int, tuple[str, str]] = {}
        for slot in range(table.slots):
            if is_dead(table, slot):
                continue
            row = table.row(slot)
            wrong = wrong_with(table, slot, row)
            digest = table.extent_hash(slot) if row.item == ITEM_EXTENT else None
            if wrong is not None:
                whole[slot] = False
                bad[slot] = (f"{table.file.path} at byte {row.offset}: {wrong}", digest.hex() if digest else "")
                if digest is not None:
                    wanted.setdefault(digest, []).append((number, slot))
            elif digest is not None:
                sound[digest] = (number, slot)
        if bad:
            findings.slots[number] = bad
    for digest, places in wanted.items():
        if digest in sound:
            findings.equal.update(dict.fromkeys(places, sound[digest]))
    for layer in list(pool.catalog.layers):
        pages = dict(_bad_pages(pool, layer))
        if pages:
            findings.pages[layer] = pages
    return findings


def _told(broken: Problem | OSError) -> str:
    return broken.detail if isinstance(broken, Problem) else str(broken)


def _bad_pages(pool: Pool, layer: Layer) -> Iterator[tuple[int, str]]:
    for page, value in list(layer.pages.items()):
        if not value:
            continue
        path, offset = pool.log.place(value >> POSITION_SHIFT)
        try:
            data = pool.log.read(value >> POSITION_SHIFT, 1)
        except OSError as refused:
            yield page, f"{path} at byte {offset}: {refused}"
            continue
        if len(data) != PAGE or crc32c(data) != value & CRC_MASK:
            yield page, f"{path} at byte {offset}: a page of the log fails its checksum"


def judge(pool: Pool, findings: Findings) -> list[Verdict]:
    """The verdict on every disk and snapshot."""
    with pool.catalog.admin:
        subjects = [("disk", disk.id, disk.id, disk.size_bytes, disk.open.view) for disk in pool.catalog.disks.values()]
        snapshots = sorted(pool.catalog.snapshots.values(), key=lambda each: -each.sequence)
        subjects += [("snapshot", each.id, each.disk_id, each.size_bytes, each.frozen.view) for each in snapshots]
    verdicts = []
    for kind, subject, disk_id, size, view in subjects:
        verdict = Verdict(kind, subject, disk_id, size)
        older = [each for each in snapshots if each.disk_id == disk_id and each.id != subject]
        bad: dict[int, tuple[str, str]] = {}
        for page, where, recover in _damage(pool, findings, view, size):
            if recover == LOST:
                recover = next((f"snapshot {e.id}" for e in older if _has(pool, findings, e.frozen.view, page)), LOST)
            bad[page] = where, recover
        _fill(verdict, bad)
        verdicts.append(verdict)
    return verdicts


def _fill(verdict: Verdict, bad: dict[int, tuple[str, str]]) -> None:
    for page, (where, recover) in sorted(bad.items()):
        offset = page * PAGE
        length = min(PAGE, verdict.size_bytes - offset)
        last = verdict.ranges[-1] if verdict.ranges else None
        verdict.bad_bytes += length
        if last and (last.offset_bytes + last.length_bytes, last.where, last.recover) == (offset, where, recover):
            last.length_bytes += length
        elif len(verdict.ranges) < _MOST_RANGES:
            verdict.ranges.append(Range(offset, length, where, recover))
    if bad:
        verdict.state = "damaged"


def _damage(pool: Pool, findings: Findings, view: View, size: int) -> Iterator[tuple[int, str, str]]:
    """(page, where, how to recover) of every damaged page of a view."""
    pages = -(-size // PAGE)
    for layer in view.layers:
        for page, where in findings.pages.get(layer, {}).items():
            if page < pages and find(view.layers, page) == layer.pages[page]:
                yield page, where, LOST
        for block, entry in list(layer.blocks.items()):
            hit = findings.of(entry) if entry else None
            if hit is None:
                continue
            for page in range(block * PAGES_PER_BLOCK, (block + 1) * PAGES_PER_BLOCK):
                if page < pages and find(view.layers, page) == -entry:
                    yield page, *hit
    for first, count, where, recover in _walk(pool, findings, view.root.entry, view.root.levels, 0):
        for page in range(first, min(first + count, pages)):
            if find(view.layers, page) is None:
                yield page, where, recover


def _walk(
    pool: Pool, findings: Findings, entry: int, level: int, first_block: int
) -> Iterator[tuple[int, int, str, str]]:
    """(first page, pages, where, how to recover) of what is damaged below a map entry."""
    if not entry:
        return
    span = FANOUT**level * PAGES_PER_BLOCK
    try:
        page = pool.store.map_page(entry)
    except (Problem, OSError) as broken:
        yield first_block * PAGES_PER_BLOCK, span, _told(broken), LOST
        return
    if level > 1:
        for index, child in enumerate(page):
            if entry_kind(child) == KIND_MAP:
                yield from _walk(pool, findings, child, level - 1, first_block + index * FANOUT ** (level - 1))
        return
    for index in _suspects(findings, page):
        block = first_block + index
        child = page[index]
        if entry_kind(child) == KIND_EXTENT:
            found = findings.of(child)
            if found:
                yield block * PAGES_PER_BLOCK, PAGES_PER_BLOCK, *found
        elif entry_kind(child) == KIND_SPLIT:
            for within, part in enumerate(sub_table(page, child)):
                found = findings.of(part) if entry_kind(part) in (KIND_EXTENT, KIND_PIECE) else None
                if found:
                    yield block * PAGES_PER_BLOCK + within, 1, *found


def _suspects(findings: Findings, page: memoryview) -> Iterable[int]:
    """Indexes of a leaf's blocks that name something damaged, and of all split ones."""
    entries = np.frombuffer(page, dtype=np.uint64)[:FANOUT]
    kinds = entries >> np.uint64(60)
    groups = ((entries >> np.uint64(SLOT_BITS)) & np.uint64(MAX_GROUP)).astype(np.int64)
    slots = (entries & np.uint64((1 << SLOT_BITS) - 1)).astype(np.int64)
    suspect = kinds == KIND_SPLIT
    for group in np.unique(groups[kinds == KIND_EXTENT]).tolist():
        own = np.flatnonzero((kinds == KIND_EXTENT) & (groups == group))
        whole = findings.sound.get(group, np.zeros(0, dtype=np.bool_))
        known = slots[own] < len(whole)
        suspect[own[~known]] = True
        suspect[own[known]] = ~whole[slots[own[known]]]
    return [int(index) for index in np.flatnonzero(suspect)]


def _has(pool: Pool, findings: Findings, view: View, page: int) -> bool:
    """Whether an older view has something sound at a page."""
    try:
        for layer in view.layers:
            if page in findings.pages.get(layer, {}):
                return False
        value = find(view.layers, page)
        if value:
            return value > 0 or findings.of(-value) is None
        if value == 0:
            return False
        entry, leaf = block_entry(pool.store, view.root, page // PAGES_PER_BLOCK)
        if leaf is not None and entry_kind(entry) == KIND_SPLIT:
            entry = sub_table(leaf, entry)[page % PAGES_PER_BLOCK]
        return bool(entry) and findings.of(entry) is None
    except (Problem, OSError):
        return False
