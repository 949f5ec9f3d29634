"""The pool's heart: opening and recovery, staging and appending, syncing, and who may use the space.

Threads: staging, ``submit`` and reads without waiting belong to the event loop; syncs, blocking reads and all control
operations to worker threads. ``lock`` is short and shared with the log; it guards what is pending and every layer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from uuid import UUID

from innkeeper.fabric.catalog import Catalog
from innkeeper.fabric.devices import Device, Devices, read_identity, write_identity
from innkeeper.fabric.drain import Drainer
from innkeeper.fabric.fingerprints import Fingerprints
from innkeeper.fabric.groups import UNFINISHED, parse_group_name
from innkeeper.fabric.groupwriter import GroupWriters
from innkeeper.fabric.layers import Layer
from innkeeper.fabric.layout import MAX_DISK_BYTES, PAGE, ZERO_PAGE
from innkeeper.fabric.logformat import DATA, MAX_RECORD_PAGES, RESIZE, ZERO, Record
from innkeeper.fabric.meta import Meta
from innkeeper.fabric.meters import PoolMeters
from innkeeper.fabric.oplog import OpLog, Staged
from innkeeper.fabric.reader import Reader
from innkeeper.fabric.replay import Replay, confirm_on_medium, read_log, records_of
from innkeeper.fabric.space import Limits, PoolSpace
from innkeeper.fabric.store import LIVE, GroupStore
from innkeeper.model.problems import Corrupt, Failed, Invalid, Problem
from innkeeper.system.files import Buffer, Io, Lock

NUMBERS_AT_ONCE = 64
GENERATION_SHIFT = 32
"""Generations of one opening of the pool share their upper bits: none is ever used twice, even where a power cut took a
segment's header and left its batches."""
END_PAGE = MAX_DISK_BYTES // PAGE


class PoolCore(PoolSpace):
    """State and data path of an open pool; see ``pool.Pool`` for the whole."""

    def __init__(self, io: Io, path: str, limits: Limits) -> None:
        self.io = io
        self.path = path
        self.limits = limits
        self.read_only: str | None = None
        self.on_room: Callable[[], None] = lambda: None
        """Called, from any thread, when the log has room again."""
        self.maintenance = threading.RLock()
        self._pending: list[tuple[Layer, Staged]] = []
        self._pending_bytes = 0
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
            raise Failed(
                "pool.unusable", f"the pool in {path} cannot be opened", cause=str(refused), remedy="look at its disk"
            ) from refused
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
        self._meta = meta = Meta(files, f"{path}/meta.db")
        files.sync_dir(path)
        self._found_or_check(meta)
        self.incarnation = str(meta.get("incarnation"))
        self.catalog = Catalog(meta)
        self.catalog.load()
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
        self.store = GroupStore(
            files, self.devices, self.pool_id, content_bytes=int(meta.get("cache_bytes", 0)) or None
        )
        self._load_groups(meta)
        self.reader = Reader(self.log, self.store)
        self._fingerprints = Fingerprints(files, f"{path}/fingerprints.db")
        self.writers = GroupWriters(
            files, self._place_of_group, self.pool_id, self._next_group_number, group_bytes=self.limits.group_bytes
        )
        self.drainer = Drainer(self.log, self.store, self.reader, self.writers, self._fingerprints)
        self._recover(meta)

    def _open_devices(self) -> None:
        """The pool's id and its devices; a new id where the directory is new."""
        files, path = self.io.files, self.path
        known = read_identity(files, path)
        if known is None:
            known = UUID(bytes=self.io.random.token(16), version=4), []
            write_identity(files, path, *known)
        self.pool_id, others = known
        self.devices = self._held_devices = Devices(files, path, self.pool_id, others)
        for device in self.devices.all.values():
            files.mkdir(device.groups)

    def _found_or_check(self, meta: Meta) -> None:
        known = meta.get("pool")
        if known is None:
            if any(self.io.files.listdir(device.groups) for device in self.devices.all.values()):
                raise Corrupt(
                    "meta.lost",
                    f"the groups of {self.path} are there, but its meta.db is not",
                    remedy="run 'inn fabric check --repair' to rebuild it from the groups",
                )
            with meta.transaction() as change:
                change.put("pool", str(self.pool_id))
                change.put("incarnation", str(UUID(bytes=self.io.random.token(16), version=4)))
        elif known != str(self.pool_id):
            raise Corrupt(
                "meta.foreign", f"{self.path}/meta.db belongs to pool {known}", remedy="put the right one back"
            )

    def _load_groups(self, meta: Meta) -> None:
        """Group rows from meta; files that no row names are remains of a crash and go."""
        for row in meta.groups():
            row.state = LIVE
            self.store.rows[row.number] = row
        self._numbers_end = self._next_number = int(meta.get("next_group", 1))
        for device in self.devices.all.values():
            for name in self.io.files.listdir(device.groups):
                place = parse_group_name(name)
                if place is None:
                    if name.endswith(UNFINISHED):
                        self.io.files.unlink(f"{device.groups}/{name}")
                    continue
                if place[0] >= self._numbers_end:
                    self.read_only = f"group {place[0]} is younger than meta.db, which was rolled back"
                    return
                row_of = self.store.rows.get(place[0])
                if row_of is None or (row_of.generation, row_of.device) != (place[1], device.id):
                    self.io.files.unlink(f"{device.groups}/{name}")

    def _place_of_group(self, tier: str) -> Device:
        return self.devices.place(self._home_reserve_bytes(), self.limits.group_bytes, tier)

    def _next_group_number(self) -> int:
        if self._next_number == self._numbers_end:
            end = self._numbers_end + NUMBERS_AT_ONCE
            with self.catalog.meta.transaction() as change:
                change.put("next_group", end)
            self._numbers_end = end
        self._next_number += 1
        return self._next_number - 1

    # -- recovery --------------------------------------------------------------------------------------------------

    def _recover(self, meta: Meta) -> None:
        """Fill the layers from the log, make sure that all of it is on the medium, begin a new segment."""
        needed_from = int(meta.get("log_needed_from", 1))
        self.io.files.sync_dir(f"{self.path}/log")  # a segment that an earlier process could not finish making
        replay = read_log(self.io.files, f"{self.path}/log", self.pool_id, needed_from=needed_from)
        confirm_on_medium(replay)
        for segment in replay.segments:
            self.log.adopt(segment)
        resized = self._apply(replay)
        self._note_damage(replay)
        self.catalog.relink()
        floor = max((layer.from_seq for layer in self.catalog.layers), default=0)
        sealed = max((layer.seal_seq or 0 for layer in self.catalog.layers), default=0)
        sequence = max(replay.last_sequence, floor, sealed, needed_from - 1)
        if self.read_only:
            self.log.sequence = self.log.synced_upto = sequence
            return
        life = int(meta.get("log_life", 0)) + 1
        needed_from = self.catalog.oldest_needed(sequence)
        with meta.transaction() as change:
            change.put("log_life", life)
            change.put("log_needed_from", needed_from)  # before the trim, or a freed batch would count as damage
            if resized or replay.lost_disks:
                self.catalog.write_all(change)
        self.log.generation = life << GENERATION_SHIFT
        self.log.start(sequence, replay.last_sequence, needed_from)

    def _apply(self, replay: Replay) -> bool:
        """Give every record to the layer it belongs to; returns whether a disk's size changed."""
        named: dict[int, list[Layer]] = {}
        for layer in self.catalog.layers:
            if layer.seal_seq is not None:
                named.setdefault(layer.number, []).append(layer)
        resized = False
        for found in replay.batches:
            sequence = found.batch.sequence
            if sequence < replay.needed_from:
                continue
            for record, position in records_of(found):
                disk = self.catalog.by_number.get(record.disk)
                target = next(
                    (each for each in named.get(record.disk, ()) if each.from_seq < sequence <= (each.seal_seq or 0)),
                    None,
                )
                if target is None and disk is not None and sequence > disk.open.from_seq:
                    target = disk.open
                if target is None:
                    continue
                if record.disk in found.bad:
                    target.damaged = f"batch {sequence} of the log fails its checksum in {found.segment.file.path}"
                apply_record(target, record, position, sequence)
                if record.kind == RESIZE and disk is not None and sequence > disk.size_seq:
                    disk.size_bytes, disk.size_seq, resized = record.amount, sequence, True
        return resized

    def _note_damage(self, replay: Replay) -> None:
        if replay.damage:
            self.read_only = replay.damage
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
        self._pending = []
        self._pending_bytes = 0
        for layer, staged in pending:
            apply_record(layer, staged.record, staged.position, first)
        return sequence

    def pending_page(self, layer: Layer, page: int) -> bytes | None:
        """A page as it is staged for ``layer``, or ``None``. Under ``lock``."""
        for target, staged in reversed(self._pending):
            record = staged.record
            if target is layer and record.page <= page < record.page + record.amount:
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
        return sequence > self.log.synced_upto or self.log.broken is not None

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
            remedy="run 'inn fabric check' and restore the disks it names from a backup",
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
    if record.kind not in (DATA, ZERO, RESIZE):
        return
    if layer.first_seq is None:
        layer.first_seq = sequence
    if record.kind == DATA:
        layer.put(record.page, position, record.crcs)
    elif record.kind == ZERO:
        layer.zero(record.page, record.amount)
    elif record.kind == RESIZE:
        first = -(-record.amount // PAGE)
        layer.zero(first, END_PAGE - first)


def checked_range(offset: int, length: int, size: int) -> None:
    """Raises ``Invalid`` (``disk.range``) unless the range lies within ``size`` bytes."""
    if offset < 0 or length < 0 or offset + length > size:
        raise Invalid("disk.range", f"bytes {offset} to {offset + length} are not within the disk's {size}")
