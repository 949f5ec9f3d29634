"""Defects to plant, each with the run of a programme that has to notice it.

``plant`` changes the fabric through pytest's monkeypatch; ``noticed_by`` names a run in ``RUNS`` of ``test_planted``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from innkeeper.fabric import core, replay
from innkeeper.fabric.bypass import Bypass
from innkeeper.fabric.catalog import Catalog
from innkeeper.fabric.control import PoolControl
from innkeeper.fabric.core import PoolCore
from innkeeper.fabric.dedup import Dedup
from innkeeper.fabric.groupwriter import GroupWriter
from innkeeper.fabric.layout import KIND_EXTENT, entry_place, pack_entry
from innkeeper.fabric.logformat import RESIZE, ZERO
from innkeeper.fabric.marks import Marks
from innkeeper.fabric.meta import Meta
from innkeeper.fabric.oplog import OpLog
from innkeeper.fabric.store import GroupStore
from innkeeper.fabric.sweep import PoolSweep
from innkeeper.fabric.upkeep import PoolUpkeep
from innkeeper.fabric.volume import Volume
from innkeeper.system.simulation import SimulatedFile, SimulatedFiles

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Planted:
    name: str
    plant: Callable[[Patch], None]
    noticed_by: str


def _nothing(*_: Any, **__: Any) -> None:
    pass


def _acknowledge_before_write(patch: Patch) -> None:
    whole = PoolCore.sync_blocking

    def submit(pool: PoolCore) -> int:
        return pool.log.sequence

    def sync(pool: PoolCore, sequence: int) -> None:
        with pool.lock:
            pool.append_pending()
        whole(pool, pool.log.sequence)

    patch.setattr(PoolCore, "submit", submit)
    patch.setattr(PoolCore, "sync_blocking", sync)


def _flush_without_sync(patch: Patch) -> None:
    def sync(log: OpLog, sequence: int) -> None:
        log.synced_upto = log.sequence

    patch.setattr(OpLog, "sync", sync)


def _retry_on_the_same_segment(patch: Patch) -> None:
    def rescue(log: OpLog, refused: OSError) -> None:
        for segment in log.segments.values():
            if segment.tail:
                segment.file.fdatasync()
        log.synced_upto = log.sequence

    patch.setattr(OpLog, "_rescue", rescue)


def _no_sync_of(ending: str) -> Callable[[Patch], None]:
    """The directory whose path ends so is never synced."""

    def plant(patch: Patch) -> None:
        whole = SimulatedFiles.sync_dir

        def sync_dir(files: SimulatedFiles, path: str) -> None:
            if not path.endswith(ending):
                whole(files, path)

        patch.setattr(SimulatedFiles, "sync_dir", sync_dir)

    return plant


def _no_fdatasync_of(ending: str) -> Callable[[Patch], None]:
    """Files whose path ends so are never synced."""

    def plant(patch: Patch) -> None:
        whole = SimulatedFile.fdatasync

        def fdatasync(file: SimulatedFile) -> None:
            if not file.path.endswith(ending):
                whole(file)

        patch.setattr(SimulatedFile, "fdatasync", fdatasync)

    return plant


def _trim_before_meta(patch: Patch) -> None:
    whole = PoolUpkeep._commit

    def commit(pool: PoolUpkeep, layer: Any, drained: Any, writer: GroupWriter) -> None:
        pool.log.trim(pool.log.sequence + 1)
        whole(pool, layer, drained, writer)

    patch.setattr(PoolUpkeep, "_commit", commit)


def _match_what_is_closing(patch: Patch) -> None:
    def entry(dedup: Dedup, place: int, digest: bytes) -> int | None:
        group, slot = entry_place(place)
        if group not in dedup._store.rows or dedup._store.table(group).extent_hash(slot) != digest:
            return None
        return pack_entry(KIND_EXTENT, group, slot)

    patch.setattr(Dedup, "entry", entry)


def _snapshot_without_sync(patch: Patch) -> None:
    whole = PoolControl.snapshot_keep

    def keep(pool: PoolControl, disks: Any, seal: Any) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(PoolCore, "sync_blocking", _nothing)
            whole(pool, disks, seal)

    patch.setattr(PoolControl, "snapshot_keep", keep)


def _read_without_checksum(patch: Patch) -> None:
    def stored(store: GroupStore, file: Any, row: Any, nowait: bool) -> bytes:
        data: bytes = file.pread(row.stored, row.offset)
        return data

    patch.setattr(GroupStore, "_stored", stored)


def _forget_snapshots(patch: Patch) -> None:
    def roots(catalog: Catalog) -> list[Any]:
        return [layer.root for layer in catalog.layers if layer.base is None]

    patch.setattr(Catalog, "roots", roots)


def _remove_before_the_swap(patch: Patch) -> None:
    whole = PoolSweep.swap_in

    def swap_in(pool: PoolSweep, fresh: Any, draft: Any) -> None:
        old = pool.store.rows[fresh.number]
        pool.devices.shelf(old.device).remove(old)
        whole(pool, fresh, draft)

    patch.setattr(PoolSweep, "swap_in", swap_in)


def _skip_kind(kind: int, *, only_in_replay: bool) -> Callable[[Patch], None]:
    """Records of a kind have no effect."""

    def plant(patch: Patch) -> None:
        apply_record, replayed = core.apply_record, PoolCore._apply
        in_replay: list[bool] = []

        def applied(layer: Any, record: Any, position: int, sequence: int) -> None:
            if record.kind != kind or (only_in_replay and not in_replay):
                apply_record(layer, record, position, sequence)

        def replaying(pool: PoolCore, found: Any) -> bool:
            in_replay.append(True)
            try:
                return replayed(pool, found)
            finally:
                in_replay.pop()

        patch.setattr(core, "apply_record", applied)
        patch.setattr(PoolCore, "_apply", replaying)

    return plant


def _reuse_a_generation(patch: Patch) -> None:
    """A segment that is taken from those that are free keeps the generation of its earlier life."""
    roll = OpLog._roll

    def roll_again(log: OpLog, previous: int | None = None) -> Any:
        if log._free:
            log.generation = min(segment.generation for segment in log._free) - 1
        return roll(log, previous)

    patch.setattr(OpLog, "_roll", roll_again)


def _attribute(owner: Any, name: str, value: Any) -> Callable[[Patch], None]:
    return lambda patch: patch.setattr(owner, name, value)


def _no_layers_marked(patch: Patch) -> None:
    patch.setattr(Marks, "add_layers", _nothing)


PLANTED = (
    Planted("acknowledge before the write", _acknowledge_before_write, "recorded: write_page"),
    Planted("acknowledge a flush without a sync", _flush_without_sync, "recorded: write_page + flush"),
    Planted("sync the same segment again after a failure", _retry_on_the_same_segment, "failing: write_page + flush"),
    Planted("do not sync the groups' directory", _no_sync_of("/groups"), "recorded: drain"),
    Planted("do not sync the log's directory", _no_sync_of("/log"), "world"),
    Planted("commit meta before the groups are synced", _no_fdatasync_of(".0000.grp"), "recorded: drain"),
    Planted("swap a generation in before it is synced", _no_fdatasync_of(".new"), "recorded: shuffle"),
    Planted("name pool.json before it is synced", _no_fdatasync_of("pool.json.new"), "recorded: device_add"),
    Planted("meta commits without a sync", _no_fdatasync_of("meta.db-wal"), "recorded: create"),
    Planted("a refused transaction of meta counts", _attribute(Meta, "_recover", _nothing), "failing: snapshot"),
    Planted("an earlier epoch is accepted", _attribute(Volume, "_check_epoch", _nothing), "world"),
    Planted("replay without a look at checksums", _attribute(replay, "_bad_disks", lambda *_: frozenset()), "world"),
    Planted("recovery syncs nothing", _attribute(core, "confirm_on_medium", _nothing), "world"),
    Planted("trim the log before meta has committed", _trim_before_meta, "world with failing calls"),
    Planted("match a group that is being reclaimed", _match_what_is_closing, "recorded: sweep_meanwhile"),
    Planted("report a snapshot before it is synced", _snapshot_without_sync, "recorded: write_page + snapshot"),
    Planted("read without a look at the checksum", _read_without_checksum, "damage"),
    Planted("sweep what only snapshots stand on", _forget_snapshots, "world"),
    Planted("sweep what only undrained layers name", _no_layers_marked, "world"),
    Planted("remove a group before its successor is known", _remove_before_the_swap, "recorded: shuffle"),
    Planted("replay ignores zeroed ranges", _skip_kind(ZERO, only_in_replay=True), "recorded: trim"),
    Planted("what was cut off comes back", _skip_kind(RESIZE, only_in_replay=False), "recorded: regrow + regrow"),
    Planted("sync the log before its extents", _attribute(Bypass, "sync", _nothing), "recorded: stream + flush"),
    Planted("reuse a generation of the log", _reuse_a_generation, "world"),
    Planted("a refused append comes back", _attribute(OpLog, "_void", _nothing), "failing: write_long + flush"),
)
