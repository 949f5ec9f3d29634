"""A volume: an attachment in use, a disk to read and write or a snapshot to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from innkeeper.fabric.bypass import Stored
from innkeeper.fabric.catalog import WRITER, Attachment, Disk, Snapshot
from innkeeper.fabric.core import checked_range
from innkeeper.fabric.layers import Layer, View
from innkeeper.fabric.layout import BLOCK, PAGE, SECTOR, crc32c
from innkeeper.fabric.logformat import DATA, MAP, MAX_RECORD_BLOCKS, ZERO, Record
from innkeeper.fabric.store import WouldBlock
from innkeeper.model.problems import Corrupt, Failed, NoSpace, Refused, Unavailable
from innkeeper.system.files import Buffer

if TYPE_CHECKING:
    from innkeeper.fabric.core import PoolCore

RETRIES = 4
T = TypeVar("T")


class Volume:
    """Reads and writes of one attachment. Offsets and lengths in bytes, any; multiples of 4,096 are cheap.

    ``stage_*`` and ``read_nowait`` are for the event loop, ``read_blocking`` and ``allocation`` for worker threads.
    Every call raises ``Invalid`` (``disk.range``) outside the disk, ``Refused`` (``attachment.fenced``) once a younger
    epoch exists, ``Failed`` (``disk.lost``) when acknowledged writes were lost, ``Corrupt`` for damaged data.
    """

    __slots__ = ("_attachment", "_closed", "_disk", "_pool", "_snapshot")

    def __init__(self, pool: PoolCore, attachment: Attachment, disk: Disk | None, snapshot: Snapshot | None) -> None:
        self._pool = pool
        self._attachment = attachment
        self._disk = disk
        self._snapshot = snapshot
        self._closed = False
        for layer in self._layer().view.layers:
            if layer.damaged:
                raise Corrupt(
                    "disk.damaged",
                    f"{disk.id if disk else attachment.snapshot_id} has undrained writes that are damaged",
                    cause=layer.damaged,
                    remedy="restore it from a backup, or revert it to a snapshot",
                )

    @property
    def attachment(self) -> Attachment:
        return self._attachment

    @property
    def size_bytes(self) -> int:
        if self._disk is not None:
            return self._disk.size_bytes
        assert self._snapshot is not None
        return self._snapshot.size_bytes

    @property
    def writable(self) -> bool:
        return self._disk is not None and self._attachment.role == WRITER and not self._pool.read_only

    @property
    def minimum_block(self) -> int:
        """The block size to advertise: 4,096, or 512 when the size is no multiple of that."""
        return PAGE if self.size_bytes % PAGE == 0 else SECTOR

    def close(self) -> None:
        """End the use; every later call is refused."""
        self._closed = True

    # -- writing ---------------------------------------------------------------------------------------------------

    def stage_write(self, offset: int, data: Buffer) -> None:
        """Join ``data`` to the pool's pending batch; the buffer must stay as it is until ``submit``.

        Edges that are no whole page are merged with what is there, which may wait for one read. Raises ``NoSpace``
        (``pool.full``) and ``Unavailable`` (``log.full``: ask ``pool.log_room()`` first) besides the class's problems.
        """
        length = len(data)
        disk = self._writer(offset, length)
        pool = self._pool
        if not length:
            return
        pool.admit(disk, length + PAGE)
        if offset % PAGE or length % PAGE:
            offset, data = self._merged(offset, data)
            length = len(data)
        if length == PAGE:
            if type(data) is not bytes:
                data = bytes(data)
            crcs = [crc32c(data)]
        else:
            view = memoryview(data)
            crcs = [crc32c(bytes(view[at : at + PAGE])) for at in range(0, length, PAGE)]
        record = Record(disk.number, disk.epoch, DATA, offset // PAGE, len(crcs), crcs)
        with pool.lock:
            pool.stage_pages(disk.open, record, data)

    def streams(self, offset: int, length: int) -> bool:
        """Note a write, and say whether it is part of a stream, to be written by ``store_blocks`` and ``stage_stored``.

        For the event loop. Raises as ``stage_write``.
        """
        disk = self._writer(offset, length)
        if not disk.stream.takes(offset, length) or length - -offset % BLOCK < BLOCK:
            return False
        self._pool.admit(disk, length + PAGE)
        return True

    def expects(self, offset: int) -> bool:
        """Whether a long write there would be part of a stream: best received into a buffer of its own."""
        return self._disk is not None and self._disk.stream.goes_on(offset)

    def store_blocks(self, offset: int, data: Buffer) -> Stored | None:
        """Store the whole blocks within a write of a stream, for worker threads; None where the groups take no more.

        Then the log is to have it, by ``stage_write``. Raises as ``stage_write``.
        """
        disk = self._writer(offset, len(data))
        pool = self._pool
        first, last = -(-offset // BLOCK), (offset + len(data)) // BLOCK
        policy, tier = pool.catalog.storages[disk.storage_id].policy, pool.catalog.tier_of(disk)
        try:
            return pool.bypass.put(memoryview(data)[first * BLOCK - offset : last * BLOCK - offset], policy, tier)
        except (OSError, NoSpace, Failed):
            return None

    def stage_stored(self, offset: int, data: Buffer, stored: Stored | None) -> None:
        """Join a write of a stream, after ``store_blocks``, to the pool's pending batch; for the event loop.

        Raises as ``stage_write``; then what was stored is nobody's.
        """
        if stored is None:
            self.stage_write(offset, data)
            return
        pool = self._pool
        first, end = -(-offset // BLOCK), offset + len(data)
        last = first + len(stored.entries)
        view = memoryview(data)
        try:
            disk = self._writer(offset, len(data))
            if offset < first * BLOCK:
                self.stage_write(offset, view[: first * BLOCK - offset])
            if last * BLOCK < end:
                self.stage_write(last * BLOCK, view[last * BLOCK - offset :])
        except BaseException:
            pool.bypass.release(stored.entries)
            raise
        with pool.lock:
            for block in range(first, last, MAX_RECORD_BLOCKS):
                entries = stored.entries[block - first : block - first + MAX_RECORD_BLOCKS]
                page = block * BLOCK // PAGE
                record = Record(disk.number, disk.epoch, MAP, page, len(entries), entries=entries, frames=stored.frames)
                pool.stage_record(disk.open, record)

    def give_up(self, stored: Stored | None) -> None:
        """No write names what was stored: the client is gone."""
        if stored is not None:
            self._pool.bypass.release(stored.entries)

    def flushed(self) -> None:
        """The client asks for what it wrote to be safe: whatever stream there was begins anew."""
        if self._disk is not None:
            self._disk.stream.flushed()

    def stage_zero(self, offset: int, length: int) -> None:
        """The range reads as zeros afterwards; costs one record however long it is."""
        disk = self._writer(offset, length)
        start, end = offset, offset + length
        size = disk.size_bytes
        first, last = -(-start // PAGE), (end // PAGE if end < size else -(-end // PAGE))
        if first > last or (first == last and length):
            self.stage_write(offset, bytes(length))
            return
        if start % PAGE:
            self.stage_write(start, bytes(first * PAGE - start))
        if end > last * PAGE:
            self.stage_write(last * PAGE, bytes(end - last * PAGE))
        self._stage_range(disk, first, last - first)

    def stage_trim(self, offset: int, length: int) -> None:
        """The whole pages within the range read as zeros afterwards; the edges keep what they have."""
        disk = self._writer(offset, length)
        end = offset + length
        first, last = -(-offset // PAGE), (end // PAGE if end < disk.size_bytes else -(-end // PAGE))
        self._stage_range(disk, first, last - first)

    def _stage_range(self, disk: Disk, page: int, count: int) -> None:
        if count > 0:
            disk.plight.until = 0.0  # there will be more room than when it was refused
            with self._pool.lock:
                self._pool.stage_record(disk.open, Record(disk.number, disk.epoch, ZERO, page, count))

    def log_room(self) -> int:
        """Bytes that it may stage before the log pushes back; at most 0 when it does."""
        return self._pool.log_room() if self._disk is None else self._pool.log_room_of(self._disk)

    def waits_for_room(self, length: int) -> bool:
        """Whether a write of ``length`` bytes has to wait for a drain or a sweep, to see whether there is room."""
        return self._disk is not None and self._pool.waits_for_room(self._disk, length + PAGE)

    def _merged(self, offset: int, data: Buffer) -> tuple[int, bytes]:
        """``data`` widened to whole pages with what the disk has there, staged writes included."""
        start = offset // PAGE * PAGE
        end = -(-(offset + len(data)) // PAGE) * PAGE
        head = self._page_at(start)[: offset - start] if offset > start else b""
        stop = offset + len(data)
        tail = b""
        if stop < end:
            tail = bytes(end - stop) if stop >= self.size_bytes else self._page_at(end - PAGE)[stop % PAGE :]
        return start, b"".join((head, data, tail))

    def _page_at(self, offset: int) -> bytes:
        with self._pool.lock:
            staged = self._pool.pending_page(self._layer(), offset // PAGE)
        return staged or self._with_retry(lambda view: self._pool.reader.page(view, offset // PAGE))

    # -- reading ---------------------------------------------------------------------------------------------------

    def read_nowait(self, offset: int, length: int) -> Buffer | None:
        """The bytes when all are in memory, else ``None``: then ``read_blocking`` in a thread gives them or says why
        not."""
        self._usable(offset, length)
        view = self._layer().view
        try:
            if length == PAGE and not offset % PAGE:
                return self._pool.reader.page_in_memory(view, offset // PAGE)
            return self._read(view, offset, length, True)
        except (WouldBlock, Corrupt, OSError):
            return None

    def read_blocking(self, offset: int, length: int) -> bytes:
        """The bytes; waits for the medium."""
        self._usable(offset, length)
        return self._with_retry(lambda view: self._read(view, offset, length, False))

    def _read(self, view: View, offset: int, length: int, nowait: bool) -> bytes:
        reader = self._pool.reader
        if length == PAGE and not offset % PAGE:
            return reader.page(view, offset // PAGE, nowait=nowait)
        if not length:
            return b""
        first = offset // PAGE
        parts = reader.pages(view, first, -(-(offset + length) // PAGE) - first, nowait=nowait)
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if len(data) != length:
            skip = offset - first * PAGE
            data = data[skip : skip + length]
        return data

    def _with_retry(self, read: Callable[[View], T]) -> T:
        """Read a view, again with a newer one where a drain or a sweep has meanwhile taken its ground away."""
        for _ in range(RETRIES):
            view = self._layer().view
            try:
                result = read(view)
            except FileNotFoundError:
                continue  # its group has been written anew: the row says where
            except Corrupt:
                if self._layer().view is view and not any(layer.gone for layer in view.layers):
                    raise
                continue
            except OSError as refused:
                raise Failed(
                    "disk.read", "stored bytes cannot be read", cause=str(refused), remedy="look at the disk's health"
                ) from refused
            if not any(layer.gone for layer in view.layers):
                return result
        try:
            return read(self._layer().view)
        except OSError as refused:
            raise Failed(
                "disk.read", "stored bytes cannot be read", cause=str(refused), remedy="look at the disk's health"
            ) from refused

    def allocation(self, offset: int, length: int) -> list[tuple[int, int]]:
        """(length, NBD base:allocation flags) runs covering the range. May wait for map pages."""
        self._usable(offset, length)
        return self._with_retry(lambda view: self._pool.reader.allocation(view, offset, length))

    # -- guards ----------------------------------------------------------------------------------------------------

    def _layer(self) -> Layer:
        if self._disk is not None:
            return self._disk.open
        assert self._snapshot is not None
        return self._snapshot.frozen

    def _usable(self, offset: int, length: int) -> None:
        if self._closed:
            raise Unavailable("attachment.closed", f"attachment {self._attachment.id} is closed")
        disk = self._disk
        if disk is not None:
            checked_range(offset, length, disk.size_bytes)
            if self._attachment.role == WRITER:
                self._check_epoch(disk)
        else:
            checked_range(offset, length, self.size_bytes)

    def _check_epoch(self, disk: Disk) -> None:
        epoch = self._attachment.epoch
        if epoch != disk.epoch:
            raise Refused(
                "attachment.fenced",
                f"attachment {self._attachment.id} has epoch {epoch}, disk {disk.id} has {disk.epoch}",
                remedy="another writer has taken the disk; this one must end",
            )
        if epoch <= disk.lost:
            raise Failed(
                "disk.lost",
                f"writes to disk {disk.id} that were accepted are gone from the medium",
                remedy="power the guest off and on; look at the disk's health",
            )

    def _writer(self, offset: int, length: int) -> Disk:
        """The disk, when this volume may write the range."""
        self._usable(offset, length)
        disk = self._disk
        if disk is None or self._attachment.role != WRITER:
            raise Refused("attachment.read_only", f"attachment {self._attachment.id} may only read")
        if self._pool.read_only:
            raise self._pool.refusal()
        return disk
