"""The way past the log for sequential streams: whole blocks become extents at once, and the log gets only their names.

A worker thread hashes and packs the blocks and appends them with an index frame to a group of its own (``put``); the
event loop then stages a MAP record that names them. So the extents are in the kernel before the record is, and
``sync``, which every sync of the log begins with, puts them on the medium before it. Meta need not know such a group: a
MAP record says where its last frame is, and recovery finds it by that (``mapped``). The next commit of a drain gives
meta the rows of all of them.

What a worker has found or stored is *in flight* until the record that names it is in a layer: no sweep takes it.

A group whose sync fails is read back, verified and written anew as its next generation, which is synced and told to
meta at once. When that fails too, ``broken`` says so, and every later sync is refused.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

from blake3 import blake3

from innkeeper.fabric.dedup import Dedup
from innkeeper.fabric.devices import Devices
from innkeeper.fabric.fingerprints import KEY_BYTES
from innkeeper.fabric.groupwriter import GroupWriter, GroupWriters, Packed, Written, pack_extent
from innkeeper.fabric.items import is_dead, wrong_with
from innkeeper.fabric.layout import BLOCK, HOLE, ZERO_BLOCK, corrupt, entry_place
from innkeeper.fabric.marks import present
from innkeeper.fabric.meta import GroupRow, Meta, Transaction
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.rewrite import write_generation
from innkeeper.fabric.store import GroupStore
from innkeeper.model.problems import Failed, Problem
from innkeeper.system.files import Buffer, File, FileSystem


class Stored(NamedTuple):
    """Blocks that are stored: their map entries, and the (group, last frame) of groups that meta need not know yet."""

    entries: list[int]
    frames: list[tuple[int, int]]


class Bypass:
    """Extents of streams, and the groups that they are in until meta knows these. Safe for threads."""

    def __init__(
        self, files: FileSystem, devices: Devices, store: GroupStore, meta: Meta, dedup: Dedup, writers: GroupWriters
    ) -> None:
        self._files = files
        self._devices = devices
        self._store = store
        self._meta = meta
        self._dedup = dedup
        self._writers = writers
        self._lock = threading.Lock()
        """Held over an append: only workers and syncs may wait for it."""
        self._sync_lock = threading.Lock()
        """Who has it waits for no lock of the pool but ``_lock`` and meta's."""
        self._flight_lock = threading.Lock()
        self._in_flight: Counter[int] = Counter()
        self._dirty: dict[int, File] = {}
        """Files with extents that are not known to be on the medium; below, those whose names are not."""
        self._unnamed: set[int] = set()
        self._rows: dict[int, GroupRow] = {}
        """Groups that meta does not know, or not as far as they reach now; below, as far as they are on the medium."""
        self._synced: dict[int, GroupRow] = {}
        self.broken: Problem | None = None
        self.put_bytes = 0
        """Bytes of blocks that went this way."""

    # -- storing ---------------------------------------------------------------------------------------------------

    def put(self, data: Buffer, policy: Policy, tier: str) -> Stored:
        """Store whole blocks; on return they are in the kernel, and in flight. For worker threads.

        Raises ``OSError`` and ``Problem``; then none of them is in flight.
        """
        view = memoryview(data)
        blocks = [bytes(view[at : at + BLOCK]) for at in range(0, len(view), BLOCK)]
        digests = [b"" if block == ZERO_BLOCK else blake3(block).digest() for block in blocks]
        places = self._dedup.places([digest for digest in digests if digest]) if policy.dedup else {}
        known: list[tuple[bytes, int | None, Packed | None]] = []
        taken: list[int] = []
        try:
            for block, digest in zip(blocks, digests, strict=True):
                if not digest:
                    known.append((b"", HOLE, None))
                    continue
                entry = self._known(places.get(digest[:KEY_BYTES]), digest, taken)
                known.append((digest, entry, None if entry else pack_extent(block, digest, None, policy, hurried=True)))
            with self._lock:
                entries = self._append(known, self._writers.of(tier), policy, taken)
                frames = [(group, self._rows[group].last_frame) for group in self._unknown_of(entries)]
        except BaseException:
            self.release(taken)
            raise
        self._dedup.fingerprints.add(
            (digest, entry) for (digest, _, packed), entry in zip(known, entries, strict=True) if packed is not None
        )
        self.put_bytes += len(view)
        return Stored(entries, frames)

    def _known(self, place: int | None, digest: bytes, taken: list[int]) -> int | None:
        """The entry of a stored extent, in flight from before it was verified: a sweep sees it or is seen by it."""
        if place is None:
            return None
        self._take(place, taken)
        entry = self._dedup.entry(place, digest)
        if entry is None:
            taken.pop()
            self.release([place])
        return entry

    def _append(
        self,
        known: list[tuple[bytes, int | None, Packed | None]],
        writer: GroupWriter,
        policy: Policy,
        taken: list[int],
    ) -> list[int]:
        """Put what is not known, and close it with an index frame; under ``_lock``."""
        fresh: dict[bytes, int] = {}
        entries = []
        try:
            for digest, entry, packed in known:
                if packed is not None:
                    entry = fresh.get(digest) if policy.dedup else None
                    if entry is None:
                        entry = fresh[digest] = writer.put_packed(packed, policy)
                    self._take(entry, taken)
                assert entry is not None
                entries.append(entry)
            written = writer.keep()
        except BaseException:
            writer.abandon()
            raise
        for each in written:
            self._adopt(each)
        return entries

    def _adopt(self, written: Written) -> None:
        number = written.row.number
        if written.first_slot == 0:
            self._unnamed.add(number)
        self._dirty[number] = written.file
        self._rows[number] = self._store.rows[number] = written.row
        self._store.extend(number, written.first_slot, written.rows, written.aux)

    def _unknown_of(self, entries: Iterable[int]) -> list[int]:
        return sorted({group for group in (entry_place(entry)[0] for entry in entries if entry) if group in self._rows})

    # -- what is in flight -----------------------------------------------------------------------------------------

    def _take(self, entry: int, taken: list[int]) -> None:
        taken.append(entry)
        with self._flight_lock:
            self._in_flight[_place(entry)] += 1

    def release(self, entries: Iterable[int]) -> None:
        """The record that names them is in a layer, or will never be."""
        with self._flight_lock:
            for entry in entries:
                place = _place(entry)
                self._in_flight[place] -= 1
                if self._in_flight[place] <= 0:
                    del self._in_flight[place]

    def in_flight(self) -> list[int]:
        """``group << 18 | slot`` of what a record may yet name."""
        with self._flight_lock:
            return list(self._in_flight)

    @property
    def numbers(self) -> set[int]:
        """Groups that are being written, or that meta does not know as far as they reach."""
        return self._writers.numbers | set(self._rows)

    @property
    def left(self) -> bool:
        """Whether meta does not know groups as far as they reach that nobody writes to any more."""
        return not set(self._rows) <= self._writers.numbers

    def leave(self, device_id: str) -> None:
        """Put nothing more into groups on that device."""
        with self._lock:
            self._writers.leave(device_id)

    # -- syncing ---------------------------------------------------------------------------------------------------

    def sync(self) -> None:
        """All that was put before is on the medium when this returns. Raises ``Problem`` (``log.lost``)."""
        with self._sync_lock:
            if self.broken is not None:
                raise self.broken
            if not self._dirty:
                return
            with self._lock:
                dirty, self._dirty = self._dirty, {}
                rows = {number: self._rows[number] for number in dirty}
            failed = self._sync_files(dirty, rows)
            for number, refused in failed.items():
                self._rescue(number, refused)
            with self._lock:
                self._synced.update((number, row) for number, row in rows.items() if number not in failed)

    def _sync_files(self, dirty: dict[int, File], rows: dict[int, GroupRow]) -> dict[int, OSError]:
        failed: dict[int, OSError] = {}
        for number, file in dirty.items():
            try:
                file.fdatasync()
            except OSError as refused:
                failed[number] = refused
        for device in {row.device for number, row in rows.items() if number in self._unnamed}:
            unnamed = {number for number, row in rows.items() if row.device == device} & self._unnamed
            try:
                self._files.sync_dir(self._devices.all[device].groups)
            except OSError as refused:
                failed.update((number, refused) for number in unnamed)
            with self._lock:
                self._unnamed -= unnamed
        return failed

    def _rescue(self, number: int, refused: OSError) -> None:
        """Write a group whose sync failed anew, from what the kernel still has of it."""
        try:
            with self._lock:
                self._writers.close(number)
                row, table = self._rows[number], self._store.table(number)
                for slot in range(table.slots):
                    wrong = None if is_dead(table, slot) else wrong_with(table, slot, table.row(slot))
                    if wrong is not None:
                        raise corrupt(table.file.path, table.row(slot).offset, wrong)
                draft = self._devices.shelf(row.device).draft(number, row.generation + 1)
                fresh = write_generation(draft.file, self._store.pool_id, row, table, present(table))
                draft.publish()
                with self._meta.transaction() as change:
                    change.put_group(fresh)
                    self._rows.pop(number)
                    self._synced.pop(number, None)
                self._dirty.pop(number, None)
                self._store.rows[number] = fresh
                self._store.forget(number)
                with suppress(OSError):  # what cannot be removed now goes when the pool is opened again
                    self._files.unlink(table.file.path)
        except (OSError, Problem) as again:
            self.broken = Failed(
                "log.lost",
                "writes that were accepted could not be put on the medium",
                cause=f"{refused}; then, written anew: {again}",
                remedy="look at the disk's health; power-cycle the guests of this pool after the fabric restarted",
            )
            raise self.broken from again

    # -- telling meta ----------------------------------------------------------------------------------------------

    def adopt_recovered(self, rows: dict[int, GroupRow]) -> None:
        """Groups that recovery found by the log; all of them are on the medium."""
        self._rows.update(rows)
        self._synced.update(rows)

    def record(self, change: Transaction) -> list[GroupRow]:
        """Write the rows of all groups that are on the medium; ``recorded`` is to be told when meta has them."""
        rows = list(self._synced.values())
        for row in rows:
            change.put_group(row)
        return rows

    def recorded(self, rows: Iterable[GroupRow]) -> None:
        """Meta has these rows."""
        with self._lock:
            for row in rows:
                if self._rows.get(row.number) is row:
                    del self._rows[row.number]
                if self._synced.get(row.number) is row:
                    del self._synced[row.number]


def _place(entry: int) -> int:
    return entry & ((1 << 48) - 1)
