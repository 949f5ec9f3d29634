"""The pool's heart: opening and recovery, staging and appending, syncing, and who may use the space.

Threads: staging, ``submit`` and reads without waiting belong to the event loop; syncs, blocking reads and all control
operations to worker threads. ``lock`` is short and shared with the log; it guards what is pending and every layer.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from uuid import UUID

from innkeeper.fabric.bypass import Bypass
from innkeeper.fabric.catalog import Catalog
from innkeeper.fabric.copies import Copies
from innkeeper.fabric.dedup import Dedup
from innkeeper.fabric.devices import Device, Devices, read_identity, write_identity
from innkeeper.fabric.drain import Drainer
from innkeeper.fabric.fingerprints import Fingerprints
from innkeeper.fabric.groupwriter import GroupWriters
from innkeeper.fabric.layers import Layer
from innkeeper.fabric.layout import MAX_DISK_BYTES, PAGE, PAGES_PER_BLOCK, ZERO_PAGE
from innkeeper.fabric.logformat import DATA, MAP, MAX_RECORD_PAGES, RESIZE, ZERO, Record
from innkeeper.fabric.mapped import MappedGroups
from innkeeper.fabric.meta import GroupRow, Meta
from innkeeper.fabric.meters import PoolMeters
from innkeeper.fabric.oplog import OpLog, Staged
from innkeeper.fabric.reader import Reader
from innkeeper.fabric.replay import Replay, confirm_on_medium, read_log
from innkeeper.fabric.space import Limits, PoolSpace, unusable
from innkeeper.fabric.store import LIVE, GroupStore
from innkeeper.fabric.strays import find_strays
from innkeeper.model.problems import Corrupt, Failed, Invalid, Problem
from innkeeper.system.fairness import FairLock
from innkeeper.system.files import Buffer, Io, Lock

NUMBERS_AT_ONCE = 64
GENERATION_SHIFT = 32
"""Generations of one opening of the pool share their upper bits: none is ever used twice, even where a power cut took a
segment's header and left its batches."""
END_PAGE = MAX_DISK_BYTES // PAGE


class PoolCore(PoolSpace):
    """State and data path of an open pool; see ``pool.Pool`` for the whole."""

    mending = False
    """Whether damage of the log is left out, so that the rest can be used again (``mend``)."""

    def __init__(self, io: Io, path: str, limits: Limits) -> None:
        self.io = io
        self.path = path
        self.limits = limits
        self.read_only: str | None = None
        self.rolled_back = False
        """Meta is older than what else the pool has: it is read-only, and ``rebuild`` helps."""
        self.on_room: Callable[[], None] = lambda: None
        """Called, from any thread, when the log has room again."""
        self.maintenance = FairLock()
        self._pending: list[tuple[Layer, Staged]] = []
        self._pending_bytes = 0
        self._numbers_lock = threading.Lock()
        self._record_pages = min(MAX_RECORD_PAGES, limits.segment_bytes // PAGE - 2)
        self.meters = PoolMeters()
        self._closed = False
        self._held_lock: Lock | None = None
        self._held_devices: Devices | None = None
        self._meta: Meta | None = None
        self._fingerprints: Fingerprints | None = None
        try:
            self._open()
        except OSError as refused:
            self._release()
            raise unusable(path, refused) from refused
        except BaseException:
            self._release()
            raise

    # -- opening ---------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        files, path = self.io.files, self.path
        for directory in (path, f"{path}/log"):
            files.mkdir(directory)
        self._held_lock = files.lock(f"{path}/lock")
        self._open_devices()
        self._meta = meta = Meta(files, f"{path}/meta.db", (self.io.clock, self.meters.commit_s))
        files.sync_dir(path)
        self._found_or_check(meta)
        self.incarnation = str(meta.get("incarnation"))
        self.catalog = Catalog(meta)
        try:
            self.catalog.load()
        except (ValueError, TypeError, KeyError, OverflowError) as senseless:  # pages of early pools have no checksums
            raise Corrupt(
                "meta.corrupt",
                f"what is in {path}/meta.db makes no sense",
                cause=f"{type(senseless).__name__}: {senseless}",
                remedy="run 'inn fabric check --repair'",
            ) from senseless
        self.catalog.collect()
        self.log = OpLog(
            files,
            f"{path}/log",
            self.pool_id,
            limit_bytes=self.limits.log_bytes,
            segment_bytes=self.limits.segment_bytes,
        )
        self.lock = self.log.lock
        self.log.on_moved = self._moved
        self.copies = Copies(files, self.devices)
        self.store = GroupStore(
            self.devices,
            self.copies,
            self.pool_id,
            content_bytes=int(meta.get("cache_bytes", 0)) or None,
            watch=(self.io.clock, self.meters.read_s),
        )
        strays = self._load_groups(meta)
        self.reader = Reader(self.log, self.store)
        self._fingerprints = Fingerprints(files, f"{path}/fingerprints.db")
        dedup = Dedup(self.store, self._fingerprints)
        self.writers = self._group_writers()
        self.drainer = Drainer(self.log, self.store, self.reader, self.writers, dedup)
        self.bypass = Bypass(files, self.devices, self.store, meta, dedup, self._group_writers())
        self.log.before_sync = self.bypass.sync
        self._recover(meta, strays)

    def _group_writers(self) -> GroupWriters:
        return GroupWriters(
            self.io.files,
            self._place_of_group,
            self.pool_id,
            self._next_group_number,
            group_bytes=self.limits.group_bytes,
        )

    def _open_devices(self) -> None:
        """The pool's id and its devices; a new id where the directory is new."""
        files, path = self.io.files, self.path
        known = read_identity(files, path)
        if known is None:
            known = UUID(bytes=self.io.random.token(16), version=4), []
            write_identity(files, path, *known)
        self.pool_id, others = known
        self.devices = self._held_devices = Devices(self.io, path, self.pool_id, others)
        for device in self.devices.local():
            files.mkdir(device.groups)

    def _found_or_check(self, meta: Meta) -> None:
        known = meta.get("pool")
        if known is None:
            local = self.devices.local()
            stored = self.devices.remote() or any(self.io.files.listdir(device.groups) for device in local)
            if stored or self.io.files.listdir(f"{self.path}/log"):
                raise Corrupt(
                    "meta.lost",
                    f"the groups or the log of {self.path} are there, but its meta.db is not",
                    remedy="run 'inn fabric check --repair' to rebuild it from them",
                )
            with meta.transaction() as change:
                change.put("pool", str(self.pool_id))
                change.put("incarnation", str(UUID(bytes=self.io.random.token(16), version=4)))
        elif known != str(self.pool_id):
            raise Corrupt(
                "meta.foreign", f"{self.path}/meta.db belongs to pool {known}", remedy="put the right one back"
            )

    def _load_groups(self, meta: Meta) -> list[GroupRow]:
        """Group rows from meta. Returns the files that no row names: remains of a crash, or groups that only the log
        names."""
        for row in meta.groups():
            row.state = LIVE
            self.store.rows[row.number] = row
            if row.device not in self.devices.all:
                raise Corrupt(
                    "device.unknown",
                    f"group {row.number} is on device {row.device}, which {self.path}/pool.json does not know",
                    remedy="run 'inn fabric check --repair'",
                )
        self._numbers_end = self._next_number = int(meta.get("next_group", 1))
        strays, rolled_back = find_strays(self.io.files, self.devices, self.pool_id, self.store.rows, self._numbers_end)
        if rolled_back:
            self._note_rolled_back(rolled_back)
        return strays

    def _note_rolled_back(self, why: str) -> None:
        self.rolled_back, self.read_only = True, self.read_only or why

    def _place_of_group(self, tier: str) -> Device:
        return self.devices.place(self._home_reserve_bytes(), self.limits.group_bytes, tier)

    def _next_group_number(self) -> int:
        with self._numbers_lock:
            if self._next_number == self._numbers_end:
                end = self._numbers_end + NUMBERS_AT_ONCE
                with self.catalog.meta.transaction() as change:
                    change.put("next_group", end)
                self._numbers_end = end
            self._next_number += 1
            return self._next_number - 1

    @property
    def busy_groups(self) -> set[int]:
        """Groups that are being written, or that meta does not know as far as they reach: they stay as they are."""
        return self.writers.numbers | self.bypass.numbers

    # -- recovery --------------------------------------------------------------------------------------------------

    def _recover(self, meta: Meta, strays: list[GroupRow]) -> None:
        """Fill the layers from the log, make sure that all of it is on the medium, begin a new segment."""
        needed_from = int(meta.get("log_needed_from", 1))
        self.io.files.sync_dir(f"{self.path}/log")  # a segment that an earlier process could not finish making
        mapped = MappedGroups(self.io.files, self.devices, self.pool_id, self.store.rows, self.catalog.layer_of)
        replay = read_log(
            self.io.files,
            f"{self.path}/log",
            self.pool_id,
            mapped,
            needed_from=needed_from,
            synced_upto=int(meta.get("log_synced_upto", 0)),
            cut=self.mending,
        )
        confirm_on_medium(replay, mapped)
        self._check_age(meta, replay, bool(strays))
        if replay.cut_from is not None and not self.read_only:
            self.keep_cut_log(replay)
        for segment in replay.segments:
            self.log.adopt(segment)
        self._adopt_mapped(replay, mapped)
        resized = self._apply(replay)
        self._note_damage(replay)
        self.catalog.relink()
        floor = max((layer.from_seq for layer in self.catalog.layers), default=0)
        sealed = max((layer.seal_seq or 0 for layer in self.catalog.layers), default=0)
        sequence = max(replay.last_sequence, floor, sealed, needed_from - 1)
        if self.read_only:
            self.log.sequence = self.log.synced_upto = sequence
            return
        for stray in strays:
            row = self.store.rows.get(stray.number)
            if row is None or (row.generation, row.device) != (stray.generation, stray.device):
                self.devices.shelf(stray.device).remove(stray)
        life = int(meta.get("log_life", 0)) + 1
        needed_from = self.catalog.oldest_needed(sequence)
        with meta.transaction() as change:
            change.put("log_life", life)
            change.put("log_needed_from", needed_from)  # before the trim, or a freed batch would count as damage
            change.put("devices", self._devices_as_text())
            if self.mending:
                change.put("log_synced_upto", sequence)
            if resized or replay.lost_disks:
                self.catalog.write_all(change)
        self.devices.on_changed = self._remember_devices
        self.log.generation = life << GENERATION_SHIFT
        self.log.start(sequence, replay.last_sequence, needed_from)

    def _adopt_mapped(self, replay: Replay, mapped: MappedGroups) -> None:
        """Take the groups that only the log names."""
        records = [
            record
            for found in replay.batches
            if found.batch.sequence >= replay.needed_from
            for record in found.batch.records
            if record.kind == MAP and self.catalog.layer_of(record.disk, found.batch.sequence) is not None
        ]
        rows = mapped.adopted(records)
        self.store.rows.update(rows)
        self.bypass.adopt_recovered(rows)
        self.copies.find(self.store.rows)

    def _devices_as_text(self) -> str:
        return json.dumps([asdict(each) for each in self.devices.all.values() if each.id])

    def _remember_devices(self) -> None:
        """Let meta know the devices too, for when pool.json is lost."""
        with suppress(Problem), self.catalog.admin, self.catalog.meta.transaction() as change:
            change.put("devices", self._devices_as_text())

    def keep_cut_log(self, replay: Replay) -> None:
        """Some of the log is left out and may be overwritten from now on; ``mend`` knows what to do."""

    def _check_age(self, meta: Meta, replay: Replay, strays: bool) -> None:
        """Note where the log knows of what meta does not: meta was put back, or lost its own log."""
        if strays and (replay.damage or replay.cut_from is not None):
            self._note_rolled_back("there are groups that meta.db does not know, and the log lacks what they have")
        life = max((segment.generation >> GENERATION_SHIFT for segment in replay.segments), default=0)
        if life > int(meta.get("log_life", 0)):
            self._note_rolled_back("the log is younger than meta.db, which was rolled back or has lost changes")
        elif replay.highest_disk >= self.catalog.next_disk:
            self._note_rolled_back(f"the log has writes of disk number {replay.highest_disk}, which meta.db does not")

    def _apply(self, replay: Replay) -> bool:
        """Give every record to the layer it belongs to; returns whether a disk's size changed."""
        resized = False
        for found in replay.batches:
            sequence = found.batch.sequence
            if sequence < replay.needed_from:
                continue
            targets: dict[int, Layer | None] = {}
            position = found.position
            for record in found.batch.records:
                number = record.disk
                if number not in targets:
                    targets[number] = self.catalog.layer_of(number, sequence)
                target = targets[number]
                if target is not None:
                    if number in found.bad:
                        where = found.segment.file.path
                        target.damaged = f"what batch {sequence} of the log in {where} holds is damaged"
                    apply_record(target, record, position, sequence)
                    if record.kind == RESIZE:
                        resized |= self._resized(number, record.amount, sequence)
                position += len(record.crcs)
        return resized

    def _resized(self, number: int, size_bytes: int, sequence: int) -> bool:
        """Take a RESIZE record's size, unless meta knows a younger one."""
        disk = self.catalog.by_number.get(number)
        if disk is None or sequence <= disk.size_seq:
            return False
        disk.size_bytes, disk.size_seq = size_bytes, sequence
        return True

    def _note_damage(self, replay: Replay) -> None:
        if replay.damage:
            self.read_only = self.read_only or replay.damage
        for number in replay.lost_disks:
            disk = self.catalog.by_number.get(number)
            if disk is not None:
                disk.lost = disk.epoch

    # -- staging and appending -------------------------------------------------------------------------------------

    def stage_pages(self, layer: Layer, record: Record, data: Buffer) -> None:
        """Join a DATA record to the pending batch; long ones are cut, so that any fits a segment."""
        count = record.amount
        most = self._record_pages
        if count <= most:
            self._pending.append((layer, Staged(record, (data,))))
        else:
            view = memoryview(data)
            for first in range(0, count, most):
                crcs = record.crcs[first : first + most]
                part = record._replace(page=record.page + first, amount=len(crcs), crcs=crcs)
                self._pending.append((layer, Staged(part, (view[first * PAGE : (first + len(crcs)) * PAGE],))))
        self._pending_bytes += count * PAGE + 64

    def stage_record(self, layer: Layer, record: Record) -> None:
        """Join a record without payload to the pending batch."""
        self._pending.append((layer, Staged(record)))
        self._pending_bytes += 64

    def submit(self) -> int:
        """Append all that was staged; on return it is in the kernel and readable. Returns the log's sequence number.

        Raises ``NoSpace`` or ``Failed``: then nothing of what was staged counts, and all of it is to be answered with
        that problem.
        """
        with self.lock:
            try:
                return self.append_pending()
            except Problem:
                for _, staged in self._pending:
                    self.bypass.release(staged.record.entries)
                self._pending = []
                self._pending_bytes = 0
                raise

    def append_pending(self, *more: tuple[Layer, Staged]) -> int:
        """Append what is staged, and ``more`` behind it; when that fails, what was staged stays so. Under ``lock``."""
        pending = [*self._pending, *more] if more else self._pending
        if not pending:
            return self.log.sequence
        first = self.log.sequence + 1
        began = self.io.clock.monotonic()
        sequence = self.log.append([staged for _, staged in pending])
        self.meters.append_s.add(self.io.clock.monotonic() - began)
        self.meters.logged_bytes += PAGE * sum(len(staged.record.crcs) for _, staged in pending)
        self._pending = []
        self._pending_bytes = 0
        for layer, staged in pending:
            apply_record(layer, staged.record, staged.position, first)
            if staged.record.kind == MAP:
                self.bypass.release(staged.record.entries)
        return sequence

    def pending_page(self, layer: Layer, page: int) -> bytes | None:
        """A page as it is staged for ``layer``, or ``None``. Under ``lock``."""
        for target, staged in reversed(self._pending):
            record = staged.record
            if target is not layer:
                continue
            if record.kind == MAP:
                index = page // PAGES_PER_BLOCK - record.page // PAGES_PER_BLOCK
                if 0 <= index < record.amount:
                    entry = record.entries[index]
                    return self.store.extent_pages(entry, page % PAGES_PER_BLOCK, 1) if entry else ZERO_PAGE
            elif record.page <= page < record.page + record.amount:
                if record.kind == ZERO:
                    return ZERO_PAGE
                if record.kind == DATA:
                    at = (page - record.page) * PAGE
                    return bytes(memoryview(staged.buffers[0])[at : at + PAGE])
        return None

    def sync_blocking(self, sequence: int) -> None:
        """Everything up to ``sequence`` is on the medium when this returns. For worker threads.

        Raises ``Failed`` (``log.lost``): no flush may be acknowledged any more, and every disk with a writer is lost to
        that writer's epoch, also after a restart.
        """
        began = self.io.clock.monotonic()
        try:
            self.log.sync(sequence)
        except Problem:
            self._note_lost()
            raise
        self.meters.sync_s.add(self.io.clock.monotonic() - began)

    def sync_groups(self) -> None:
        """What went past the log is on the medium when this returns. Raises as ``sync_blocking``; outside ``admin``."""
        try:
            self.bypass.sync()
        except Problem as lost:
            self.log.broken = lost
            self._note_lost()
            raise

    def _note_lost(self) -> None:
        with self.catalog.admin:
            fresh = [disk for disk in self.catalog.disks.values() if disk.lost < disk.epoch]
            for disk in fresh:
                disk.lost = disk.epoch
            if fresh:
                with suppress(Problem), self.catalog.meta.transaction() as change:
                    for disk in fresh:
                        change.run("UPDATE disks SET lost=epoch WHERE id=?", (disk.id,))

    def needs_sync(self, sequence: int) -> bool:
        """Whether ``sync_blocking(sequence)`` has anything to do. Cheap, for the event loop."""
        log = self.log
        return sequence > log.synced_upto or log.unsettled or log.broken is not None

    def _moved(self, places: dict[int, int]) -> None:
        for layer in self.catalog.layers:
            layer.moved(places)

    # -- refusing ------------------------------------------------------------------------------------------------------

    def refusal(self) -> Problem:
        """The problem of a pool that takes no writes."""
        return Failed(
            "pool.read_only",
            f"the pool in {self.path} is read-only",
            cause=self.read_only,
            remedy="run 'inn fabric check': it tells what can be repaired and what is lost",
        )

    # -- closing ---------------------------------------------------------------------------------------------------

    def _release(self) -> None:
        self._closed = True
        parts = self._fingerprints, self._meta, self._held_devices, self._held_lock
        self._fingerprints = self._meta = self._held_devices = self._held_lock = None
        with ExitStack() as closing:
            for part in reversed(parts):
                if part is not None:
                    closing.callback(part.close)


def apply_record(layer: Layer, record: Record, position: int, sequence: int) -> None:
    """Put a logged record into its layer's index; one that changes no content leaves the layer as it is."""
    if record.kind not in (DATA, ZERO, RESIZE, MAP):
        return
    if layer.first_seq is None:
        layer.first_seq = sequence
    if record.kind == DATA:
        layer.put(record.page, position, record.crcs)
    elif record.kind == MAP:
        layer.put_blocks(record.page // PAGES_PER_BLOCK, record.entries, (number for number, _ in record.frames))
    elif record.kind == ZERO:
        layer.zero(record.page, record.amount)
    elif record.kind == RESIZE:
        first = -(-record.amount // PAGE)
        layer.zero(first, END_PAGE - first)


def checked_range(offset: int, length: int, size: int) -> None:
    """Raises ``Invalid`` (``disk.range``) unless the range lies within ``size`` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise Invalid("disk.range", f"bytes {offset} to {offset + length} are not within the disk's {size}")
