"""The header of a qcow2 file, checked before any other program may open the file.

Format: QEMU's docs/interop/qcow2.txt, versions 2 and 3. Only what decides whether the file is self-contained and sane
is read here; its tables are QEMU's business, in a jail. A file that names another file (backing file, external data
file) is hostile: converted blindly it would copy a file of the host into a guest (CVE-2024-32498 and its elders).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace

from innkeeper.model.problems import Corrupt, Invalid, Refused
from innkeeper.model.sizes import MIB, TIB

MAGIC = b"QFI\xfb"
HEAD_BYTES = 4 * MIB
"""How much of the file ``check_header`` wants to see: two clusters of the largest size."""
MAX_VIRTUAL_BYTES = 64 * TIB

_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3_REST = struct.Struct(">QQQII")
_V2_BYTES = 72
_V3_BYTES = 104
_MAX_L1_BYTES = 32 * MIB
_MAX_REFCOUNT_TABLE_BYTES = 8 * MIB
_MAX_SNAPSHOTS = 65536

_DIRTY, _CORRUPT, _EXTERNAL_DATA, _COMPRESSION_TYPE, _EXTENDED_L2 = (1 << bit for bit in range(5))
_KNOWN_INCOMPATIBLE = _DIRTY | _CORRUPT | _EXTERNAL_DATA | _COMPRESSION_TYPE | _EXTENDED_L2

_EXTENSION_END = 0x00000000
_EXTENSION_BACKING_FORMAT = 0xE2792ACA
_EXTENSION_DATA_FILE = 0x44415441
_EXTENSION_CRYPTO = 0x0537BE77


@dataclass(frozen=True, slots=True)
class Qcow2Header:
    """The facts of a header that passed every check."""

    version: int
    virtual_size_bytes: int
    cluster_bits: int


@dataclass(frozen=True, slots=True)
class _Fields:
    """The header's fields in the order of the file; those that version 2 lacks have its defaults."""

    version: int
    backing_offset: int
    backing_length: int
    cluster_bits: int
    size_bytes: int
    crypt_method: int
    l1_entries: int
    l1_offset: int
    refcount_offset: int
    refcount_clusters: int
    snapshots: int
    snapshots_offset: int
    incompatible: int = 0
    refcount_order: int = 4
    header_bytes: int = _V2_BYTES


def check_header(head: bytes, file_bytes: int) -> Qcow2Header:
    """Check ``head``, the first ``HEAD_BYTES`` (or all) of a file of ``file_bytes``.

    Raises ``Refused`` (``image.hostile``) for a file that names another, ``Invalid`` (``image.unsupported``) for what
    is not taken (encryption, unknown features, absurd sizes), ``Corrupt`` (``image.corrupt``) for what no honest
    writer makes.
    """
    fields = _parse(head)
    _refuse_other_files(fields)
    _check_features(fields)
    _check_geometry(fields, file_bytes)
    _walk_extensions(head, fields)
    return Qcow2Header(fields.version, fields.size_bytes, fields.cluster_bits)


def _corrupt(cause: str) -> Corrupt:
    return Corrupt(
        "image.corrupt",
        "the file is not a sound qcow2 image",
        cause=cause,
        remedy="fetch the file again and compare its checksum; qemu-img check tells more",
    )


def _hostile(cause: str) -> Refused:
    return Refused(
        "image.hostile",
        "the qcow2 image refers to another file of this host",
        cause=cause,
        remedy="have its maker flatten it: qemu-img convert -O qcow2 OLD NEW",
    )


def _unsupported(cause: str, remedy: str) -> Invalid:
    return Invalid("image.unsupported", "this kind of qcow2 image cannot be imported", cause=cause, remedy=remedy)


def _parse(head: bytes) -> _Fields:
    if len(head) < _V2_BYTES:
        raise _corrupt(f"the header is cut off after {len(head)} bytes")
    magic, version, *rest = _V2.unpack_from(head)
    if magic != MAGIC:
        raise _corrupt("it does not begin with the qcow2 magic")
    if version == 2:
        return _Fields(version, *rest)
    if version != 3:
        raise _unsupported(f"qcow2 version {version}", "convert it to version 3: qemu-img convert -O qcow2 OLD NEW")
    if len(head) < _V3_BYTES:
        raise _corrupt(f"the header is cut off after {len(head)} bytes")
    incompatible, _compatible, _autoclear, refcount_order, header_bytes = _V3_REST.unpack_from(head, _V2_BYTES)
    return replace(
        _Fields(version, *rest), incompatible=incompatible, refcount_order=refcount_order, header_bytes=header_bytes
    )


def _refuse_other_files(fields: _Fields) -> None:
    if fields.backing_offset or fields.backing_length:
        raise _hostile("it has a backing file")
    if fields.incompatible & _EXTERNAL_DATA:
        raise _hostile("its data are in an external file")


def _check_features(fields: _Fields) -> None:
    if fields.crypt_method:
        raise _unsupported("it is encrypted", "decrypt it first with qemu-img convert")
    if fields.incompatible & _CORRUPT:
        raise _corrupt("it is marked corrupt")
    unknown = fields.incompatible & ~_KNOWN_INCOMPATIBLE
    if unknown:
        raise _unsupported(f"incompatible features {unknown:#x}", "convert it with the program that made it")


def _check_geometry(fields: _Fields, file_bytes: int) -> None:
    if not 9 <= fields.cluster_bits <= 21:
        raise _corrupt(f"clusters of 2^{fields.cluster_bits} bytes")
    if fields.refcount_order > 6:
        raise _corrupt(f"reference counts of 2^{fields.refcount_order} bits")
    cluster = 1 << fields.cluster_bits
    smallest = _V3_BYTES if fields.version == 3 else _V2_BYTES
    if not smallest <= fields.header_bytes <= cluster or fields.header_bytes % 8:
        raise _corrupt(f"a header of {fields.header_bytes} bytes")
    if fields.size_bytes == 0:
        raise _corrupt("its virtual size is zero")
    if fields.size_bytes > MAX_VIRTUAL_BYTES:
        raise _unsupported(f"a virtual size of {fields.size_bytes} bytes", "images of up to 64 TiB are taken")
    entry_bytes = 16 if fields.incompatible & _EXTENDED_L2 else 8
    needed = -(-fields.size_bytes // (cluster * (cluster // entry_bytes)))
    if fields.l1_entries < needed or fields.l1_entries * 8 > _MAX_L1_BYTES:
        raise _corrupt(f"a first-level table of {fields.l1_entries} entries where {needed} are needed")
    if fields.refcount_clusters == 0 or fields.refcount_clusters * cluster > _MAX_REFCOUNT_TABLE_BYTES:
        raise _corrupt(f"a reference count table of {fields.refcount_clusters} clusters")
    if fields.snapshots > _MAX_SNAPSHOTS:
        raise _corrupt(f"{fields.snapshots} snapshots")
    _check_place("first-level table", fields.l1_offset, fields.l1_entries * 8, cluster, file_bytes)
    _check_place("reference count table", fields.refcount_offset, 8, cluster, file_bytes)
    if fields.snapshots:
        _check_place("snapshot table", fields.snapshots_offset, fields.snapshots * 40, cluster, file_bytes)


def _check_place(what: str, offset: int, length: int, cluster: int, file_bytes: int) -> None:
    if offset < cluster or offset % cluster or offset + length > file_bytes:
        raise _corrupt(f"the {what} is said to lie at {offset} in a file of {file_bytes} bytes")


def _walk_extensions(head: bytes, fields: _Fields) -> None:
    position, end = fields.header_bytes, min(1 << fields.cluster_bits, len(head))
    while position + 8 <= end:
        kind, length = struct.unpack_from(">II", head, position)
        if kind == _EXTENSION_END:
            return
        if kind in (_EXTENSION_BACKING_FORMAT, _EXTENSION_DATA_FILE):
            raise _hostile("a header extension names a backing or data file")
        if kind == _EXTENSION_CRYPTO:
            raise _unsupported("it is encrypted", "decrypt it first with qemu-img convert")
        position += 8 + length + (-length % 8)
        if position > end:
            raise _corrupt(f"a header extension {kind:#x} of {length} bytes does not fit in the header")
