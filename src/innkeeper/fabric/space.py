"""Space: who may still write how much.

What may be admitted is what the file systems have free, less what is reserved: for the drain of all that is undrained,
for the log's growth, the headroom, and what others were promised, which are the rest of thick disks and of storages'
reservations. A storage's quota bounds what its disks hold together. A disk is granted a few MiB at a time, so that the
write path compares one number. The log is shared fairly: a disk may fill ``LOG_SHARE`` times as much of it as is free,
so that one that writes without end leaves room for the others (the dynamic threshold of Choudhury and Hahne, 1998).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from innkeeper.fabric.catalog import Catalog, Disk
from innkeeper.fabric.groups import GROUP_BYTES
from innkeeper.fabric.oplog import SEGMENT_BYTES, OpLog
from innkeeper.fabric.relief import MOST_TRIES, MOST_WAIT_S, REFUSED_S, Relief
from innkeeper.model.problems import Failed, NoSpace, Problem, Unavailable

if TYPE_CHECKING:
    from innkeeper.fabric.devices import Devices
    from innkeeper.fabric.store import GroupStore
    from innkeeper.system.files import Io

GRANT_BYTES = 8 << 20
LOG_SHARE = 8
SHORT_OF_QUOTA = "quota"
SHORT_OF_ROOM = "room"


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of a pool, in bytes; tests make them small."""

    log_bytes: int = 512 << 20
    segment_bytes: int = SEGMENT_BYTES
    group_bytes: int = GROUP_BYTES
    capacity_bytes: int | None = None
    """What the pool may take of its file system; ``None``: all of it."""
    headroom_bytes: int = 256 << 20
    """Kept free of admitted writes, so that trims, drains and sweeps can still run."""


class PoolSpace:
    """What of a pool is free, promised and granted."""

    io: Io
    path: str
    limits: Limits
    read_only: str | None
    catalog: Catalog
    devices: Devices
    log: OpLog
    store: GroupStore
    relief: Relief
    removals: int
    _pending_bytes: int

    def refusal(self) -> Problem:
        raise NotImplementedError

    def ask_for_drain(self, disks: Iterable[Disk]) -> int | None:
        raise NotImplementedError

    def ask_for_sweep(self, ticket: int) -> None:
        raise NotImplementedError

    # -- the log ---------------------------------------------------------------------------------------------------

    def log_room(self) -> int:
        """Bytes that may be staged before the log pushes back; at most 0 when it does. Cheap, for the event loop."""
        return self.limits.log_bytes - self.log.used_bytes - self._pending_bytes

    def log_room_of(self, disk: Disk) -> int:
        """The same for one disk, which shares the log with others."""
        room = self.log_room()
        return min(room, LOG_SHARE * room - disk.logged_bytes)

    # -- admission -------------------------------------------------------------------------------------------------

    def admit(self, disk: Disk, size: int) -> None:
        """Take ``size`` bytes from what the disk may still write. Raises ``NoSpace`` (``pool.full``,
        ``storage.quota``), ``Unavailable``, ``Problem``."""
        if self.read_only:
            raise self.refusal()
        if self.log_room() < -2 * self.limits.segment_bytes:
            raise Unavailable("log.full", "the log is full", remedy="wait for the drain; ask log_room() before staging")
        disk.credit_bytes -= size
        if disk.credit_bytes < 0:
            disk.credit_bytes = 0
            short = self._grant(disk, size)
            if short is not None:
                raise self._no_space(disk, short)

    def has_room(self, disk: Disk, size: int) -> bool:
        """Whether the disk may write ``size`` bytes more as things are."""
        return disk.credit_bytes >= size or self._grant(disk, size) is None

    def waits_for_room(self, disk: Disk, size: int) -> bool:
        """Whether it is being found out if the disk may write ``size`` bytes more: what waits in the log counts twice
        until it is drained, and what is dead counts until it is swept. ``on_room`` is called when to ask again. Cheap
        where the disk may write."""
        if disk.credit_bytes >= size:
            return False
        short, plight = self._grant(disk, size), disk.plight
        if short is None or self.read_only:
            plight.over()
            return False
        now = self.io.clock.monotonic()
        hopeless = now < plight.until and plight.removals == self.removals
        if plight.ticket is None:
            plight.since = now
            if hopeless or not self._ask_relief(disk, short):
                return False
        if now - plight.since < MOST_WAIT_S and self._relief_goes_on(disk, short):
            return True
        plight.over()
        plight.until, plight.removals = now + REFUSED_S, self.removals
        return False

    def _relief_goes_on(self, disk: Disk, short: str) -> bool:
        """Whether something that the disk waits for is still to come, and is asked for."""
        plight, relief = disk.plight, self.relief
        assert plight.ticket is not None
        if relief.drained < plight.ticket:
            return True
        if short == SHORT_OF_QUOTA:
            return False
        if relief.swept < plight.ticket:
            self.ask_for_sweep(plight.ticket)
            return True
        plight.tries += 1
        return bool(relief.freed_bytes) and plight.tries <= MOST_TRIES and self._ask_relief(disk, short)

    def _ask_relief(self, disk: Disk, short: str) -> bool:
        """Ask for a drain of whatever the room that is short is shared with; False where nobody works."""
        disks = self._disks_of(disk.storage_id) if short == SHORT_OF_QUOTA else list(self.catalog.disks.values())
        disk.plight.ticket = self.ask_for_drain(each for each in disks if each.undrained_bytes)
        return disk.plight.ticket is not None

    def _grant(self, disk: Disk, size: int) -> str | None:
        """Let the disk write ``size`` bytes and some more; else what it is short of, and nothing is granted."""
        for credits_taken_back in (False, True):
            if credits_taken_back:
                for each in list(self.catalog.disks.values()):
                    each.credit_bytes = 0
            room = self._room_of(disk)
            quota = self._quota_left(disk.storage_id)
            left = (room if quota is None else min(room, quota)) - size
            if left >= 0:
                disk.credit_bytes = min(left, GRANT_BYTES)
                return None
        return SHORT_OF_QUOTA if quota is not None and quota < size else SHORT_OF_ROOM

    def _no_space(self, disk: Disk, short: str) -> NoSpace:
        if short == SHORT_OF_QUOTA:
            quota = self.catalog.storages[disk.storage_id].policy.quota_bytes
            return NoSpace(
                "storage.quota",
                f"the storage of disk {disk.id} has reached its quota of {quota} bytes",
                remedy="raise it with 'inn storage set --quota', or remove data from its disks",
            )
        return NoSpace(
            "pool.full",
            f"the pool in {self.path} has no room left",
            cause=f"{self.free_bytes()} bytes are free, {self._reserved_bytes()} of them reserved,"
            f" {self.promised_bytes()} promised to thick disks and storages",
            remedy="remove disks, snapshots or backups, or give its file system more space",
        )

    # -- quotas and promises ---------------------------------------------------------------------------------------

    def _disks_of(self, storage_id: str) -> list[Disk]:
        return [disk for disk in list(self.catalog.disks.values()) if disk.storage_id == storage_id]

    def held_bytes(self, disk: Disk) -> int:
        """What the disk holds; what waits in the log counts besides what it will replace."""
        return self.catalog.data_bytes(disk) + disk.undrained_bytes

    def _quota_left(self, storage_id: str) -> int | None:
        quota = self.catalog.storages[storage_id].policy.quota_bytes
        if not quota:
            return None
        return quota - sum(self.held_bytes(disk) + disk.credit_bytes for disk in self._disks_of(storage_id))

    def promised_to(self, disk: Disk) -> int:
        """What is kept free for a thick disk, with what its maps and indexes will take."""
        return _with_overhead(disk.size_bytes - self.held_bytes(disk)) if disk.settings.thick else 0

    def promised_bytes(self, besides: Disk | None = None) -> int:
        """What is kept free for thick disks and storages with a reservation; without what ``besides`` may draw on."""
        whole = 0
        by_storage: dict[str, list[Disk]] = {}
        for disk in list(self.catalog.disks.values()):
            by_storage.setdefault(disk.storage_id, []).append(disk)
        for storage_id, storage in list(self.catalog.storages.items()):
            disks = by_storage.get(storage_id, [])
            thick = sum(self.promised_to(disk) for disk in disks if disk is not besides)
            reserved = storage.policy.reservation_bytes
            if reserved and (besides is None or besides.storage_id != storage_id):
                thick = max(thick, _with_overhead(reserved - sum(self.held_bytes(disk) for disk in disks)))
            whole += thick
        return whole

    def check_promises(self, more_bytes: int = 0) -> None:
        """Raises ``NoSpace`` (``pool.promised``) unless all that is promised, and ``more_bytes``, is free."""
        promised, room = self.promised_bytes() + more_bytes, self.free_bytes() - self._reserved_bytes()
        if promised > max(0, room):
            raise NoSpace(
                "pool.promised",
                "the pool cannot promise that much",
                cause=f"{promised} bytes would be promised to thick disks and storages, {max(0, room)} are to be had",
                remedy="make the disk thin, reserve less, or add a device to the pool",
            )

    # -- what there is ---------------------------------------------------------------------------------------------

    def free_bytes(self) -> int:
        """Bytes the pool may still take."""
        free = self.devices.space()[1]
        if self.limits.capacity_bytes is not None:
            free = min(free, self.limits.capacity_bytes - self.used_bytes())
        return free

    def room_bytes(self) -> int:
        """Bytes that may still be admitted; negative where even what is reserved is not free."""
        room = self.free_bytes() - self._reserved_bytes() - self.promised_bytes()
        return min(room, self._home_room())

    def _room_of(self, disk: Disk) -> int:
        granted = sum(each.credit_bytes for each in list(self.catalog.disks.values()))
        room = self.free_bytes() - self._reserved_bytes() - self.promised_bytes(disk) - granted
        return min(room, self._home_room())

    def _home_room(self) -> int:
        """The log and meta are at home, whatever room other devices have."""
        if len(self.devices.all) == 1:
            return 1 << 62
        return self.io.files.space(self.path)[1] - self._home_reserve_bytes() // 2

    def _home_reserve_bytes(self) -> int:
        """What of the pool's own directory is kept for the log and meta."""
        return self._log_growth_bytes() + self.limits.headroom_bytes

    def _log_growth_bytes(self) -> int:
        return max(0, self.limits.log_bytes - len(self.log.segments) * self.limits.segment_bytes)

    def used_bytes(self) -> int:
        """Bytes the pool's groups and log take."""
        groups = sum(row.size_bytes for row in list(self.store.rows.values()))
        return groups + len(self.log.segments) * self.limits.segment_bytes

    def _reserved_bytes(self) -> int:
        """What the drain of all undrained writes may take at worst, the log's growth, and the headroom."""
        return 2 * (self.log.used_bytes + self._pending_bytes) + self._home_reserve_bytes()


def unusable(path: str, refused: OSError) -> Problem:
    """The problem of a pool whose files cannot be opened or made."""
    what, cause = f"the pool in {path} cannot be opened", str(refused)
    if refused.errno == errno.EROFS:
        remedy = "mount it writable: mount -o remount,rw"
        return Failed(
            "pool.read_only_files", f"{what}: its file system is mounted read-only", cause=cause, remedy=remedy
        )
    if refused.errno in (errno.ENOSPC, errno.EDQUOT):
        remedy = "free space there; a pool needs some 64 MiB to begin with"
        return NoSpace("pool.full", f"{what}: its file system is full", cause=cause, remedy=remedy)
    return Failed("pool.unusable", what, cause=cause, remedy="look at its disk")


def _with_overhead(data_bytes: int) -> int:
    """Room for that much data, incompressible, and its maps and indexes."""
    return 0 if data_bytes <= 0 else data_bytes + data_bytes // 32 + (1 << 20)
