"""A pack: an immutable blob of up to about 32 MiB that holds entries one behind the other, then a table of them.

    header   64 bytes   magic, version, cipher suite, key id, pack id, CRC-32C entries             stored bytes, not
    padded table    96 bytes each: name, fabric hash, offset, stored length, raw length, CRC-32C of the stored bytes,
    codec, kind trailer  64 bytes   magic, number of entries, offset of the table, seal of header and table

The table's numbers are little-endian. Entries are self-verifying: decoded bytes must have the hash that the name
derives from.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Iterable
from typing import NamedTuple

import google_crc32c
import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from innkeeper.fabric import codecs
from innkeeper.model.problems import Refused
from innkeeper.protect.sealing import CIPHER_SUITE, FORMAT_VERSION, Key, Kind, damaged
from innkeeper.system.blobs import Buffer

crc32c = google_crc32c.value

PACK_BYTES = 32 * 1024 * 1024
MAX_RAW_BYTES = 16 * 1024 * 1024
PACK_ID_BYTES = 16
_HEADER = struct.Struct("<8sHH4x16s16s12xI")
_MAGIC = b"INNPACK\0"
_TRAILER = struct.Struct("<8sIIQ32s8x")
_TRAILER_MAGIC = b"INNTABLE"
_ENTRY = struct.Struct("<32s32sQIIIBB10x")
ENTRY_DTYPE = np.dtype(
    {
        "names": ["name", "hash", "offset", "stored", "raw", "crc", "codec", "kind"],
        "formats": ["V32", "V32", "<u8", "<u4", "<u4", "<u4", "u1", "u1"],
        "offsets": [0, 32, 64, 72, 76, 80, 84, 85],
        "itemsize": _ENTRY.size,
    }
)
HEADER_BYTES = _HEADER.size
TRAILER_BYTES = _TRAILER.size
Table = NDArray[np.void]


class Entry(NamedTuple):
    """Where and how an entry is stored."""

    name: bytes
    hash: bytes
    offset: int
    stored: int
    raw: int
    crc: int
    codec: int
    kind: int


class Encoded(NamedTuple):
    """Bytes ready to be stored, and what they are."""

    hash: bytes
    data: bytes
    raw: int
    codec: int


def pack_name(pack_id: bytes) -> str:
    """The blob that holds a pack."""
    text = pack_id.hex()
    return f"packs/{text[:2]}/{text}"


def pack_id_of(blob_name: str) -> bytes | None:
    """The pack whose blob it is; ``None`` when the name is no pack's."""
    last = blob_name.rsplit("/", 1)[-1]
    try:
        pack_id = bytes.fromhex(last)
    except ValueError:
        return None
    return pack_id if len(pack_id) == PACK_ID_BYTES and pack_name(pack_id) == blob_name else None


def encode(plaintext: bytes) -> Encoded:
    """Hash and compress; kept raw when compression saves less than an eighth."""
    stored, codec = codecs.encode(plaintext, "lz4", 0, len(plaintext) - len(plaintext) // 8)
    return Encoded(blake3(plaintext).digest(), stored, len(plaintext), codec)


def decode(stored: bytes, codec: int, raw: int) -> bytes | None:
    """The plaintext of exactly ``raw`` bytes, or ``None`` when the stored bytes do not yield it."""
    if not 0 < raw <= MAX_RAW_BYTES:
        return None
    try:
        return codecs.decode(stored, codec, raw)
    except codecs.Undecodable:
        return None


class PackBuilder:
    """Gathers entries for one pack."""

    def __init__(self, key: Key) -> None:
        self.id = secrets.token_bytes(PACK_ID_BYTES)
        self._key = key
        prefix = _HEADER.pack(_MAGIC, FORMAT_VERSION, CIPHER_SUITE, key.id, self.id, 0)[:-4]
        self._parts: list[Buffer] = [prefix + crc32c(prefix).to_bytes(4, "little")]
        self._table = bytearray()
        self._offset = HEADER_BYTES

    def add(self, name: bytes, encoded: Encoded, kind: Kind) -> Entry:
        """Append the bytes; returns the entry that finds them."""
        data = encoded.data
        entry = Entry(name, encoded.hash, self._offset, len(data), encoded.raw, crc32c(data), encoded.codec, int(kind))
        self._parts.append(data)
        self._table += _ENTRY.pack(*entry)
        self._offset += len(data)
        return entry

    @property
    def size_bytes(self) -> int:
        return self._offset

    @property
    def count(self) -> int:
        return len(self._table) // _ENTRY.size

    def finish(self) -> list[Buffer]:
        """All parts of the pack's blob; nothing can be added afterwards."""
        table = bytes(self._table)
        header = bytes(self._parts[0])
        seal = self._key.seal(pack_name(self.id), header, table)
        trailer = _TRAILER.pack(_TRAILER_MAGIC, self.count, 0, self._offset, seal)
        return [*self._parts, table, trailer]

    def table(self) -> Table:
        """The table as an array of ``ENTRY_DTYPE``."""
        return np.frombuffer(bytes(self._table), dtype=ENTRY_DTYPE)


def check_header(key: Key, blob_name: str, data: bytes) -> None:
    """Raises ``Corrupt`` (``repository.corrupt``) or ``Refused`` (``repository.newer``, ``repository.key``)."""
    if len(data) < HEADER_BYTES or data[:8] != _MAGIC:
        raise damaged(blob_name, 0, "it does not begin as a pack")
    if crc32c(data[: HEADER_BYTES - 4]) != int.from_bytes(data[HEADER_BYTES - 4 : HEADER_BYTES], "little"):
        raise damaged(blob_name, 0, "the checksum of its header does not match")
    _, version, suite, key_id, pack_id, _ = _HEADER.unpack(data[:HEADER_BYTES])
    if version != FORMAT_VERSION or suite != CIPHER_SUITE:
        raise newer(blob_name, version, suite)
    if key_id != key.id:
        raise Refused(
            "repository.key",
            f"{blob_name} was written with another key",
            cause="the repository's config.json is not the one that the pack was written under",
            remedy="put back the repository's own config.json",
        )
    if pack_name(pack_id) != blob_name:
        raise damaged(blob_name, 0, f"it holds the pack {pack_id.hex()}")


def newer(blob_name: str, version: int, suite: int) -> Refused:
    """The problem of something that another version of the program wrote."""
    return Refused(
        "repository.newer",
        f"{blob_name} has format {version}, cipher suite {suite}",
        cause=f"this program knows format {FORMAT_VERSION}, cipher suite {CIPHER_SUITE}",
        remedy="install the version of Innkeeper that wrote it, or a newer one",
    )


def read_table(key: Key, blob_name: str, size_bytes: int, header: bytes, tail: bytes) -> Table | None:
    """The table of a pack of that size, from its header and its last bytes; ``None`` when ``tail`` is too short for it.

    Raises as ``check_header``; ``Corrupt`` (``repository.corrupt``) also when the table or trailer was changed.
    """
    check_header(key, blob_name, header)
    at = size_bytes - TRAILER_BYTES
    if len(tail) < TRAILER_BYTES:
        raise damaged(blob_name, 0, "it is cut short")
    magic, count, zero, offset, seal = _TRAILER.unpack(tail[-TRAILER_BYTES:])
    fits = offset >= HEADER_BYTES and offset + count * _ENTRY.size == at
    if magic != _TRAILER_MAGIC or zero or tail[-8:] != bytes(8) or not fits:
        raise damaged(blob_name, at, "it does not end as a pack; it is cut short or its trailer was changed")
    length = count * _ENTRY.size
    if len(tail) < length + TRAILER_BYTES:
        return None
    table = tail[len(tail) - TRAILER_BYTES - length : len(tail) - TRAILER_BYTES]
    if not key.matches(blob_name, seal, header[:HEADER_BYTES], table):
        raise damaged(blob_name, offset, "the seal of its table does not match")
    return np.frombuffer(table, dtype=ENTRY_DTYPE)


def tail_bytes(size_bytes: int) -> int:
    """How much of the end of a pack to read for its table in most cases."""
    return min(size_bytes, 512 * 1024)


def table_bytes(tail: bytes) -> int:
    """How much of the end the table and trailer take, by the trailer."""
    _, count, _, _, _ = _TRAILER.unpack(tail[-TRAILER_BYTES:])
    return int(count) * _ENTRY.size + TRAILER_BYTES


def check_entry(key: Key, name: bytes, kind: int, stored: bytes, crc: int, codec: int, raw: int) -> bytes | str:
    """The plaintext of an entry, or in words what is wrong with its stored bytes."""
    if crc32c(stored) != crc:
        return "the checksum of stored bytes does not match"
    plaintext = decode(stored, codec, raw)
    if plaintext is None:
        return "stored bytes cannot be decoded"
    try:
        derived = key.name(Kind(kind), blake3(plaintext).digest())
    except ValueError:
        return f"an entry of unknown kind {kind}"
    if derived != name:
        return "the hash of its content does not match its name"
    return plaintext


def entries_of(table: Table) -> Iterable[Entry]:
    """The table's rows as plain values."""
    return (Entry(*row) for row in _ENTRY.iter_unpack(table.tobytes()))
