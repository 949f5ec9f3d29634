"""Changed blocks between two snapshots of a disk of 16 TiB, a tenth of it full, a thousandth of it changed: in runs of
64 MiB, and scattered over all that is full. Beside it a plain loop over both maps, as a program would compare them that
has no radix of immutable pages to skip by.

The pool is opened afresh for every figure: no map page is in the fabric's memory, all are in the page cache.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

from bench.report import Context, Row, at_most
from bench.synthesis import LEAF_BYTES, TIB, SparseDisk, spread
from innkeeper.fabric.diff import changed_masks
from innkeeper.fabric.layout import BLOCK, FANOUT
from innkeeper.fabric.maps import leaf_entry
from innkeeper.fabric.pool import Pool
from innkeeper.system.files import Io

SIZE_BYTES = 16 * TIB
_CHANGED = 0.001


def _make(path: Path, full: float) -> dict[str, tuple[str, str]]:
    """The pool; snapshots before and after, by what lies between them."""
    pool = Pool.open(Io(), str(path), background=False)
    try:
        disk = SparseDisk(pool, SIZE_BYTES)
        leaves = spread(disk, full)
        disk.fill_leaves(leaves)
        first = disk.snapshot()
        changed = int(SIZE_BYTES * _CHANGED)
        chance = Random(2)
        disk.fill_leaves(sorted(chance.sample(leaves, changed // LEAF_BYTES)))
        runs = disk.snapshot()
        each = max(1, changed // BLOCK // len(leaves))
        disk.change_blocks(
            leaf * FANOUT + within for leaf in leaves for within in sorted(chance.sample(range(FANOUT), each))
        )
        return {"in runs of 64 MiB": (first, runs), "scattered": (runs, disk.snapshot())}
    finally:
        pool.close()


def _ours(path: Path, base: str, snapshot: str) -> tuple[float, int]:
    """(seconds, blocks) of what changed."""
    pool = Pool.open(Io(), str(path), background=False)
    try:
        views = [pool.catalog.snapshot(each).frozen.view for each in (snapshot, base)]
        began = time.perf_counter()
        blocks = sum(int(mask.sum()) for _, mask in changed_masks(pool.store, *views))
        return time.perf_counter() - began, blocks
    finally:
        pool.close()


def _plainly(path: Path, base: str, snapshot: str) -> tuple[float, int]:
    """As ``_ours``, by looking at every entry of both maps."""
    pool = Pool.open(Io(), str(path), background=False)
    try:
        store = pool.store
        mine, other = (pool.catalog.snapshot(each).frozen.view.root for each in (snapshot, base))
        began = time.perf_counter()
        blocks = 0
        for leaf in range(SIZE_BYTES // LEAF_BYTES):
            left, right = leaf_entry(store, mine, leaf), leaf_entry(store, other, leaf)
            if not left and not right:
                continue
            for one, two in zip(store.map_page(left), store.map_page(right), strict=True):
                if one != two:
                    blocks += 1
        return time.perf_counter() - began, blocks
    finally:
        pool.close()


def rows(context: Context) -> list[Row]:
    """The rows of changed blocks."""
    path = context.work / "pool"
    full = 0.01 if context.quick else 0.1
    limits_s = {"in runs of 64 MiB": 0.2, "scattered": 2.0}
    found = []
    for what, (base, snapshot) in _make(path, full).items():
        seconds, blocks = min(_ours(path, base, snapshot) for _ in range(3))
        plain, expected = _plainly(path, base, snapshot)
        if blocks != expected:
            raise RuntimeError(f"{blocks} changed blocks were found, {expected} there are")
        name = f"changed blocks, 16 TiB {full:.0%} full, {blocks * BLOCK >> 30} GiB changed {what}"
        found.append(at_most(name, seconds, "s", limits_s[what], "compare of all entries", plain))
    return found
