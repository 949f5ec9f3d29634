"""The index: which pack holds which name. Immutable segments, each the sorted entries of some packs.

    header   128 bytes  magic, version, cipher suite, key id, segment id, writer's lease, entries, packs packs     24
    bytes each: pack id, size in bytes prefixes   8 bytes each: the first 8 bytes of each name as a number, sorted
    records   64 bytes each, in the same order: name, pack's row, offset, stored length, raw length, CRC-32C, codec,
    kind seal      32 bytes over all before it

Segments of a directory are mapped, not read into memory, and can be made again from the packs' own tables. Where they
are not mapped, an entry costs 72 bytes.
"""

from __future__ import annotations

import mmap
import secrets
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from innkeeper.model.problems import NotFound
from innkeeper.protect.blobs import Blobs
from innkeeper.protect.pack import PACK_ID_BYTES, Table, newer, pack_name
from innkeeper.protect.sealing import CIPHER_SUITE, FORMAT_VERSION, NAME_BYTES, SEAL_BYTES, Key, damaged

SEGMENT_ID_BYTES = 16
_MAGIC = b"INNINDEX"
_HEADER = struct.Struct("<8sHH4x16s16s16sQI52x")
_PACK_DTYPE = np.dtype([("id", "V16"), ("size", "<u8")])
RECORD_DTYPE = np.dtype(
    {
        "names": ["name", "pack", "offset", "stored", "raw", "crc", "codec", "kind"],
        "formats": ["V32", "<u4", "<u8", "<u4", "<u4", "<u4", "u1", "u1"],
        "offsets": [0, 32, 40, 48, 52, 56, 60, 61],
        "itemsize": 64,
    }
)
Names = NDArray[np.uint8]
"""Names as an array of shape (n, 32)."""
Records = NDArray[np.void]


def names_array(names: Sequence[bytes]) -> Names:
    """Names as an array of shape (n, 32)."""
    return np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, NAME_BYTES)


def _prefixes(names: Names) -> NDArray[np.uint64]:
    return np.ascontiguousarray(names[:, :8]).view(">u8").reshape(-1).astype(np.uint64)


def record_names(records: Records) -> Names:
    """The names of records or of table rows, shape (n, 32)."""
    return np.ascontiguousarray(records["name"]).view(np.uint8).reshape(-1, NAME_BYTES)


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment in memory or mapped."""

    id: bytes
    writer: bytes
    pack_ids: list[bytes]
    pack_sizes: list[int]
    prefixes: NDArray[np.uint64]
    records: Records

    def find(self, names: Names) -> NDArray[np.int64]:
        """For each name its row, or -1."""
        rows = np.full(len(names), -1, dtype=np.int64)
        if not len(self.records) or not len(names):
            return rows
        wanted = _prefixes(names)
        at = np.searchsorted(self.prefixes, wanted).astype(np.int64)
        open_ = np.arange(len(names))
        while True:
            inside = at[open_] < len(self.prefixes)
            open_ = open_[inside]
            open_ = open_[self.prefixes[at[open_]] == wanted[open_]]
            if not len(open_):
                return rows
            same = (record_names(self.records[at[open_]]) == names[open_]).all(axis=1)
            rows[open_[same]] = at[open_[same]]
            # Two names with the same first 8 bytes: the one meant is the next.
            open_ = open_[~same]
            at[open_] += 1


class Found(NamedTuple):
    """Where names are: ``pack[i]`` is the pack's row in ``Index.packs`` or -1, ``records[i]`` its record."""

    pack: NDArray[np.int64]
    records: Records


def segment_name(segment_id: bytes) -> str:
    """The blob that holds a segment."""
    return f"index/{segment_id.hex()}"


def build_segment(
    key: Key, packs: Sequence[tuple[bytes, int]], records: Records, writer: bytes
) -> tuple[str, list[bytes]]:
    """Blob name and parts of a new segment; ``records["pack"]`` are rows of ``packs`` (id, size in bytes)."""
    segment_id = secrets.token_bytes(SEGMENT_ID_BYTES)
    prefixes = _prefixes(record_names(records))
    order = np.argsort(prefixes, kind="stable")
    table = np.zeros(len(packs), dtype=_PACK_DTYPE)
    for row, (pack_id, size_bytes) in enumerate(packs):
        table[row] = (np.void(pack_id), size_bytes)
    header = _HEADER.pack(_MAGIC, FORMAT_VERSION, CIPHER_SUITE, key.id, segment_id, writer, len(records), len(packs))
    parts = [header, table.tobytes(), prefixes[order].astype("<u8").tobytes(), records[order].tobytes()]
    name = segment_name(segment_id)
    return name, [*parts, key.seal(name, *parts)]


def records_of(table: Table, pack_row: int) -> Records:
    """Records for the rows of a pack's table."""
    records = np.zeros(len(table), dtype=RECORD_DTYPE)
    for column in ("name", "offset", "stored", "raw", "crc", "codec", "kind"):
        records[column] = table[column]
    records["pack"] = pack_row
    return records


def join_records(parts: Sequence[Records]) -> Records:
    """All records one behind the other (``np.concatenate`` would drop the padding of their layout)."""
    joined = np.zeros(sum(map(len, parts)), dtype=RECORD_DTYPE)
    at = 0
    for part in parts:
        joined[at : at + len(part)] = part
        at += len(part)
    return joined


def parse_segment(key: Key, blob_name: str, data: bytes | memoryview) -> Segment:
    """The segment stored under that name.

    Raises ``Corrupt`` (``repository.corrupt``), ``Refused`` (``repository.newer``).
    """
    view = memoryview(data)
    if len(view) < _HEADER.size + SEAL_BYTES:
        raise damaged(blob_name, 0, "it is cut short")
    if not key.matches(blob_name, bytes(view[-SEAL_BYTES:]), view[:-SEAL_BYTES]):
        raise damaged(blob_name, 0, "its seal does not match")
    magic, version, suite, _, segment_id, writer, count, pack_count = _HEADER.unpack(view[: _HEADER.size])
    if magic != _MAGIC:
        raise damaged(blob_name, 0, "it does not begin as an index segment")
    if version != FORMAT_VERSION or suite != CIPHER_SUITE:
        raise newer(blob_name, version, suite)
    at = _HEADER.size
    packs = np.frombuffer(view, dtype=_PACK_DTYPE, count=pack_count, offset=at)
    at += packs.nbytes
    prefixes = np.frombuffer(view, dtype="<u8", count=count, offset=at).view(np.uint64)
    at += prefixes.nbytes
    records = np.frombuffer(view, dtype=RECORD_DTYPE, count=count, offset=at)
    ids = packs["id"].tobytes()
    pack_ids = [ids[row * PACK_ID_BYTES : (row + 1) * PACK_ID_BYTES] for row in range(pack_count)]
    return Segment(segment_id, writer, pack_ids, [int(size) for size in packs["size"]], prefixes, records)


def load_segment(key: Key, blobs: Blobs, blob_name: str) -> Segment:
    """The segment, mapped where the driver can.

    Raises as ``parse_segment``; ``NotFound`` (``blob.absent``) when a prune has replaced it meanwhile.
    """
    path = blobs.local_path(blob_name)
    if path is None:
        return parse_segment(key, blob_name, blobs.get(blob_name))
    try:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise NotFound("blob.absent", f"the repository has no {blob_name}") from None
    except ValueError:
        raise damaged(blob_name, 0, "it is empty") from None
    return parse_segment(key, blob_name, memoryview(mapped))


class Index:
    """All segments together. On ``unusable`` packs, doomed or suspect ones, nothing new may stand."""

    def __init__(self, segments: Iterable[Segment], unusable: Iterable[bytes] = ()) -> None:
        self.segments = list(segments)
        self.packs: list[bytes] = []
        self.sizes: list[int] = []
        self._row: dict[bytes, int] = {}
        self._rows: list[NDArray[np.int64]] = []
        for segment in self.segments:
            pairs = zip(segment.pack_ids, segment.pack_sizes, strict=True)
            self._rows.append(np.array([self._pack(*pair) for pair in pairs], dtype=np.int64))
        marked = set(unusable)
        self.usable: NDArray[np.bool_] = np.array([pack not in marked for pack in self.packs], dtype=np.bool_)

    def _pack(self, pack_id: bytes, size_bytes: int) -> int:
        row = self._row.get(pack_id)
        if row is None:
            row = self._row[pack_id] = len(self.packs)
            self.packs.append(pack_id)
            self.sizes.append(size_bytes)
        return row

    def __len__(self) -> int:
        return sum(len(segment.records) for segment in self.segments)

    def row(self, pack_id: bytes) -> int | None:
        """The pack's row in ``packs``; ``None`` when no segment names it."""
        return self._row.get(pack_id)

    def find(self, names: Names, *, usable_only: bool = False) -> Found:
        """Where each of ``names`` (shape (n, 32)) is; usable packs first."""
        pack = np.full(len(names), -1, dtype=np.int64)
        records = np.zeros(len(names), dtype=RECORD_DTYPE)
        passes: list[Callable[[NDArray[np.int64]], NDArray[np.bool_]]] = [lambda packs: self.usable[packs]]
        if not usable_only:
            passes.append(lambda packs: ~self.usable[packs])
        for accepts in passes:
            for segment, to_global in zip(self.segments, self._rows, strict=True):
                missing = np.flatnonzero(pack < 0)
                if not len(missing):
                    return Found(pack, records)
                rows = segment.find(names[missing])
                hit = np.flatnonzero(rows >= 0)
                hit_records = segment.records[rows[hit]]
                hit_packs = to_global[hit_records["pack"]]
                good = accepts(hit_packs)
                pack[missing[hit[good]]] = hit_packs[good]
                records[missing[hit[good]]] = hit_records[good]
        return Found(pack, records)

    def where(self, names: Names) -> list[NDArray[np.int64]]:
        """For each segment the rows of ``names`` in it, -1 where absent."""
        return [segment.find(names) for segment in self.segments]

    def pack_rows(self, number: int) -> NDArray[np.int64]:
        """For segment ``number``: its packs' rows in ``packs``."""
        return self._rows[number]

    def name_of(self, pack_row: int) -> str:
        """The blob of a pack by its row."""
        return pack_name(self.packs[pack_row])
