"""Recovery's view of the groups that MAP records of the log name and that meta need not know (``bypass``).

Such a group is found by its name on one of the devices, and its slots by the last index frame that a record tells. A
record counts when its frames and extents are there and whole; where meta knows the group as far, nothing is to be
proved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from uuid import UUID

from innkeeper.fabric.devices import Devices
from innkeeper.fabric.groups import SlotTable, check_header, group_path, read_frame
from innkeeper.fabric.items import is_dead, wrong_with
from innkeeper.fabric.layers import Layer
from innkeeper.fabric.layout import PAGE, entry_place
from innkeeper.fabric.logformat import MAP, Batch, Record
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.store import LIVE
from innkeeper.model.problems import Corrupt
from innkeeper.system.files import File, FileSystem


class MappedGroups:
    """Groups by number; ``rows`` are those that meta has, ``layer_of`` tells who needs a record of a disk."""

    def __init__(
        self,
        files: FileSystem,
        devices: Devices,
        pool_id: UUID,
        rows: dict[int, GroupRow],
        layer_of: Callable[[int, int], Layer | None],
    ) -> None:
        self._files = files
        self._devices = devices
        self._pool_id = pool_id
        self._rows = rows
        self._layer_of = layer_of
        self._files_of: dict[int, tuple[File, str] | None] = {}
        self._tables: dict[tuple[int, int], SlotTable | None] = {}
        self._verified: set[tuple[int, int]] = set()

    def missing(self, batch: Batch, *, deep: bool) -> set[int]:
        """The disks of MAP records that somebody needs and whose extents are not there; ``deep``: those are read and
        verified too."""
        return {
            record.disk
            for record in batch.records
            if record.kind == MAP
            and self._layer_of(record.disk, batch.sequence) is not None
            and not self._is_whole(record, deep)
        }

    def _is_whole(self, record: Record, deep: bool) -> bool:
        tables: dict[int, SlotTable] = {}
        for number, offset in record.frames:
            if self._meta_knows(number, offset):
                continue
            table = self._table(number, offset)
            if table is None:
                return False
            tables[number] = table
        for entry in record.entries:
            number, slot = entry_place(entry)
            if number in tables and not self._item_is_whole(tables[number], slot, deep):
                return False
        return True

    def _meta_knows(self, number: int, offset: int) -> bool:
        row = self._rows.get(number)
        return row is not None and (row.generation > 0 or row.last_frame >= offset)

    def _item_is_whole(self, table: SlotTable, slot: int, deep: bool) -> bool:
        if slot >= table.slots or is_dead(table, slot):
            return False
        if not deep or (table.number, slot) in self._verified:
            return True
        if wrong_with(table, slot, table.row(slot)) is not None:
            return False
        self._verified.add((table.number, slot))
        return True

    def _file(self, number: int) -> tuple[File, str] | None:
        """The group's file and the device it is on."""
        if number not in self._files_of:
            self._files_of[number] = None
            for device in self._devices.local():
                path = group_path(device.groups, number, 0)
                if self._files.exists(path):
                    self._files_of[number] = self._files.open(path), device.id
        return self._files_of[number]

    def _table(self, number: int, offset: int) -> SlotTable | None:
        """The group's slots up to the frame at ``offset``; None where that is not whole."""
        key = number, offset
        if key not in self._tables:
            self._tables[key] = None
            found = self._file(number)
            if found is not None:
                try:
                    check_header(found[0].pread(PAGE, 0), self._pool_id, number, 0, found[0].path)
                    self._tables[key] = SlotTable.load(found[0], number, 0, offset)
                except (Corrupt, OSError):
                    pass
        return self._tables[key]

    def confirm(self) -> None:
        """Put the groups that were looked at on the medium, and forget what was read of them. Raises ``OSError``."""
        directories = set()
        for found in self._files_of.values():
            if found is not None:
                file, device = found
                file.fdatasync()
                file.drop_cache()
                directories.add(self._devices.all[device].groups)
        for directory in directories:
            self._files.sync_dir(directory)
        self._tables.clear()
        self._verified.clear()

    def adopted(self, records: Iterable[Record]) -> dict[int, GroupRow]:
        """The rows of the groups that these records name as far as meta does not know them. Raises ``Corrupt``,
        ``OSError``."""
        last: dict[int, int] = {}
        for record in records:
            for number, offset in record.frames:
                if not self._meta_knows(number, offset) and self._table(number, offset) is not None:
                    last[number] = max(offset, last.get(number, 0))
        rows = {}
        for number, offset in last.items():
            found = self._file(number)
            assert found is not None
            frame = read_frame(found[0], offset, number, 0)
            assert frame is not None
            known = self._rows.get(number)
            tier, coding = (known.tier, known.coding) if known else ("", "")
            rows[number] = GroupRow(number, 0, LIVE, frame.end, offset, found[1], tier, coding)
        return rows
