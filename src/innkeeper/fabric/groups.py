"""Groups: files of about 64 MiB that hold extents, pieces and map pages, each under a slot number.

A group is a header page, items, and index frames: a commit appends one frame with the slots that came since the last
one. Frames name their predecessor, so that the last one (meta knows where it is) leads to all. A slot's row says where
its bytes are, how they are coded and what their CRC-32C is. Format: docs/fabric-format.md, "Groups".
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple
from uuid import UUID

from innkeeper.fabric.layout import PAGE, PAGES_PER_BLOCK, Root, corrupt, crc32c
from innkeeper.model.problems import Corrupt
from innkeeper.system.files import File, FileSystem

VERSION = 1
GROUP_MAGIC = b"INNGROUP"
FRAME_MAGIC = b"INNFRAME"
GROUP_BYTES = 64 << 20
UNFINISHED = ".new"
"""Behind the name of a group that is being written and has no place yet; a crash's remains go at the next opening."""

ITEM_DEAD = 0
ITEM_EXTENT = 1
ITEM_PIECE = 2
ITEM_MAP = 4

_HEADER = struct.Struct("<8sHHI16sQQ")
_FRAME = struct.Struct("<8sHHIQQIIQIIII")
_NOTE = struct.Struct("<16s16sIIQQQ")
_CRC = struct.Struct("<I")
_ROW = struct.Struct("<IIII")
ROW_BYTES = _ROW.size
HASH_BYTES = 32
EXTENT_AUX = struct.Struct("<32s")
RAW_EXTENT_AUX = struct.Struct(f"<32s{PAGES_PER_BLOCK}I")
MAP_AUX = struct.Struct("<II")
_STORED_MASK = (1 << 24) - 1
NO_FRAME = 0
LACKS_ORIGIN = 1 << 8


class Row(NamedTuple):
    """A slot: byte offset in the file, stored bytes, item kind, codec, CRC-32C of the stored bytes, place in aux."""

    offset: int
    stored: int
    item: int
    codec: int
    crc: int
    aux: int


class Note(NamedTuple):
    """A root as it was at a commit, so that heads can be found without meta.

    ``subject`` is the disk or snapshot; ``disk_id`` is the disk it belongs to. ``sequence``: what the log has of the
    disk up to it is in the root. ``levels`` with ``LACKS_ORIGIN``: a clone that stands on undrained writes of the
    snapshot ``disk_id`` besides.
    """

    subject: UUID
    disk_id: UUID
    number: int
    levels: int
    size_bytes: int
    root: int
    sequence: int

    @classmethod
    def of(cls, subject: str, disk_id: str, number: int, size_bytes: int, root: Root, sequence: int) -> Note:
        """The note of a root."""
        return cls(UUID(subject), UUID(disk_id), number, root.levels, size_bytes, root.entry, sequence)


@dataclass(slots=True)
class Frame:
    """An index frame taken apart."""

    previous: int
    first_slot: int
    aux_base: int
    rows: bytes
    aux: bytes
    notes: tuple[Note, ...]
    end: int


def group_path(directory: str, number: int, generation: int) -> str:
    """``GROUPS/<number>.<generation>.grp`` in lower-case hex."""
    return f"{directory}/{number:08x}.{generation:04x}.grp"


def parse_group_name(name: str) -> tuple[int, int] | None:
    """(number, generation) of a group's file name, or ``None``."""
    parts = name.split(".")
    if len(parts) != 3 or parts[2] != "grp":
        return None
    try:
        return int(parts[0], 16), int(parts[1], 16)
    except ValueError:
        return None


def encode_header(pool_id: UUID, number: int, generation: int) -> bytes:
    """The first page of a group; the u16 and u32 after the version are cipher suite and key id, 0 today."""
    body = _HEADER.pack(GROUP_MAGIC, VERSION, 0, 0, pool_id.bytes, number, generation)
    return (body + _CRC.pack(crc32c(body))).ljust(PAGE, b"\0")


def has_header(page: bytes) -> bool:
    """Whether the page is some group's header, whole."""
    return len(page) == PAGE and _CRC.unpack_from(page, _HEADER.size)[0] == crc32c(page[: _HEADER.size])


def check_header(page: bytes, pool_id: UUID, number: int, generation: int, path: str) -> None:
    """Raises ``Corrupt`` unless ``page`` is the header of that group."""
    body = page[: _HEADER.size]
    if len(page) < PAGE or _CRC.unpack_from(page, _HEADER.size)[0] != crc32c(body):
        raise corrupt(path, 0, "the group's header fails its checksum")
    magic, version, suite, _, pool, found, found_generation = _HEADER.unpack(body)
    if magic != GROUP_MAGIC or version != VERSION or suite != 0:
        raise Corrupt(
            "group.format",
            f"{path} has group format {version} (cipher suite {suite}), this program knows {VERSION} (0)",
            remedy="open the pool with the version of Innkeeper that wrote it, or a newer one",
        )
    if (pool, found, found_generation) != (pool_id.bytes, number, generation):
        raise corrupt(path, 0, f"this is group {found} generation {found_generation} of pool {UUID(bytes=pool)}")


def may_be_group(files: FileSystem, path: str, pool_id: UUID, number: int, generation: int) -> bool:
    """Whether the file is what its name says, as far as its header tells; one without a header was never done."""
    file = files.open(path)
    try:
        page = file.pread(PAGE, 0)
        if page.strip(b"\0"):
            check_header(page, pool_id, number, generation, path)
    except Corrupt:
        return False
    finally:
        file.close()
    return True


def pack_row(offset: int, stored: int, item: int, codec: int, crc: int, aux: int) -> bytes:
    """16 bytes: offset u32; stored 24 bits, item 4, codec 4; crc u32; aux u32 (byte offset in the group's aux)."""
    return _ROW.pack(offset, stored | item << 24 | codec << 28, crc, aux)


def encode_frame(
    number: int,
    generation: int,
    *,
    previous: int,
    first_slot: int,
    aux_base: int,
    rows: bytes,
    aux: bytes,
    notes: list[Note],
) -> bytes:
    """An index frame, padded to whole pages."""
    note_bytes = b"".join(
        _NOTE.pack(
            note.subject.bytes, note.disk_id.bytes, note.number, note.levels, note.size_bytes, note.root, note.sequence
        )
        for note in notes
    )
    head = _FRAME.pack(
        FRAME_MAGIC,
        VERSION,
        0,
        len(notes),
        number,
        generation,
        first_slot,
        len(rows) // ROW_BYTES,
        previous,
        aux_base,
        len(aux),
        len(note_bytes),
        0,
    )
    body = rows + aux + note_bytes
    data = head + _CRC.pack(crc32c(head + body)) + body
    return data.ljust(-(-len(data) // PAGE) * PAGE, b"\0")


def read_frame(file: File, offset: int, number: int, generation: int, *, nowait: bool = False) -> Frame | None:
    """The frame at ``offset``. ``None`` only with ``nowait`` where it is not in memory. Raises ``Corrupt``."""
    read = file.pread_nowait if nowait else file.pread
    page = read(PAGE, offset)
    if page is None:
        return None
    if len(page) < PAGE or not page.startswith(FRAME_MAGIC):
        raise corrupt(file.path, offset, "there is no index frame where one must be")
    facts = _FRAME.unpack_from(page)
    _, version, _, notes, found, found_generation, first_slot, count, previous, aux_base, aux_len, note_len, _ = facts
    if version != VERSION:
        raise Corrupt("group.format", f"{file.path} has index format {version}, this program knows {VERSION}")
    start = _FRAME.size + _CRC.size
    length = start + count * ROW_BYTES + aux_len + note_len
    whole: bytes | None = page
    if length > PAGE:
        whole = read(length, offset)
        if whole is None:
            return None
    assert whole is not None
    if len(whole) < length or _CRC.unpack_from(whole, _FRAME.size)[0] != crc32c(
        whole[: _FRAME.size] + whole[start:length]
    ):
        raise corrupt(file.path, offset, "an index frame fails its checksum")
    if (found, found_generation) != (number, generation):
        raise corrupt(file.path, offset, f"this index belongs to group {found} generation {found_generation}")
    aux_at = start + count * ROW_BYTES
    notes_at = aux_at + aux_len
    read_notes = tuple(
        Note(UUID(bytes=subject), UUID(bytes=disk), disk_number, levels, size_bytes, root, sequence)
        for subject, disk, disk_number, levels, size_bytes, root, sequence in _NOTE.iter_unpack(
            whole[notes_at : notes_at + notes * _NOTE.size]
        )
    )
    end = offset + -(-length // PAGE) * PAGE
    return Frame(previous, first_slot, aux_base, whole[start:aux_at], whole[aux_at:notes_at], read_notes, end)


class SlotTable:
    """Rows and aux of a group in memory. The writer appends to it, readers look slots up; rows never change."""

    __slots__ = ("aux", "copied", "file", "generation", "number", "rows")

    def __init__(self, number: int, generation: int, file: File) -> None:
        self.number = number
        self.generation = generation
        self.file = file
        self.copied = False
        """Whether the file is a fast copy, not the group's own."""
        self.rows = bytearray()
        self.aux = bytearray()

    @classmethod
    def load(
        cls, file: File, number: int, generation: int, last_frame: int, *, nowait: bool = False
    ) -> SlotTable | None:
        """Read all frames, the last one first. ``None`` only with ``nowait``. Raises ``Corrupt``."""
        table = cls(number, generation, file)
        frames: list[Frame] = []
        while last_frame != NO_FRAME:
            frame = read_frame(file, last_frame, number, generation, nowait=nowait)
            if frame is None:
                return None
            if frame.previous >= last_frame:
                raise corrupt(file.path, last_frame, "an index frame names a predecessor behind itself")
            frames.append(frame)
            last_frame = frame.previous
        for frame in reversed(frames):
            if frame.first_slot * ROW_BYTES != len(table.rows) or frame.aux_base != len(table.aux):
                raise corrupt(file.path, frame.end, "index frames do not follow each other")
            table.rows += frame.rows
            table.aux += frame.aux
        return table

    @property
    def slots(self) -> int:
        return len(self.rows) // ROW_BYTES

    @property
    def size_bytes(self) -> int:
        """Memory it takes."""
        return len(self.rows) + len(self.aux) + 256

    def row(self, slot: int) -> Row:
        """The row of a slot; raises ``Corrupt`` when the group has no such slot or its item is gone."""
        at = slot * ROW_BYTES
        if at + ROW_BYTES > len(self.rows):
            raise corrupt(self.file.path, 0, f"the group has no slot {slot}")
        offset, packed, crc, aux = _ROW.unpack_from(self.rows, at)
        item = packed >> 24 & 15
        if item == ITEM_DEAD:
            raise corrupt(self.file.path, 0, f"the item of slot {slot} was reclaimed")
        return Row(offset, packed & _STORED_MASK, item, packed >> 28, crc, aux)

    def extent_hash(self, slot: int) -> bytes | None:
        """The full BLAKE3 hash of the extent in a slot, or ``None`` when it holds none (any more)."""
        at = slot * ROW_BYTES
        if at + ROW_BYTES > len(self.rows):
            return None
        _, packed, _, aux = _ROW.unpack_from(self.rows, at)
        if packed >> 24 & 15 != ITEM_EXTENT:
            return None
        return bytes(self.aux[aux : aux + HASH_BYTES])

    def page_crc(self, row: Row, page: int) -> int:
        """CRC-32C of page 0..15 of an uncompressed extent."""
        crc: int = _CRC.unpack_from(self.aux, row.aux + HASH_BYTES + 4 * page)[0]
        return crc

    def map_facts(self, row: Row) -> tuple[int, int]:
        """(bytes when decoded, level) of a map page."""
        raw_bytes, level = MAP_AUX.unpack_from(self.aux, row.aux)
        return raw_bytes, level
