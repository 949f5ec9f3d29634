"""What is done to blocks on a bench: pages are read and checked, blocks hashed and packed; and a helper's main loop.

    python -m innkeeper.fabric.packing SOCKET MEMORY      started by ``system.helpers``

A message is an operation's number and rows of one format; an answer has what the function of that name returns. All
numbers are little-endian. Both sides are of one version, since the helper ends with the process that started it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from blake3 import blake3

from innkeeper.fabric.codecs import WORTH_COMPRESSING, encode
from innkeeper.fabric.groups import EXTENT_AUX, RAW_EXTENT_AUX
from innkeeper.fabric.layout import BLOCK, CODEC_RAW, PAGE, ZERO_BLOCK, ZERO_PAGE, crc32c
from innkeeper.fabric.policy import COMPRESSIONS, Policy
from innkeeper.system.files import Buffer
from innkeeper.system.helpers import Read, serve

BLOCKS = 32
AREA_BYTES = BLOCKS * BLOCK
SHARED_BYTES = 2 * AREA_BYTES
"""Behind the blocks is room for what they are packed into, which is no longer."""

GOOD, ZERO, BAD = 0, 1, 2
"""What became of a page: it is on the bench; so, and all zeros; it could not be read, or fails its checksum."""

LOAD, HASH, PACK = 1, 2, 3
WANT = struct.Struct("<HHII")
"""A page: where on the bench, the number of its file, its page in that file, its CRC-32C."""
HASH_COUNT = struct.Struct("<BB")
PACK_HEAD = struct.Struct("<BBBB")
"""Operation, index of the compression, level, whether hurried; then come rows of ``TO_PACK``."""
TO_PACK = struct.Struct("<B32s")
PACKED = struct.Struct("<BBIII")
"""Bytes of aux that follow, codec, CRC-32C, where in the shared area, length."""
_NO_DIGEST = bytes(32)


class Packed(NamedTuple):
    """An extent as it is stored: bytes, codec, CRC-32C, aux."""

    stored: Buffer
    codec: int
    crc: int
    aux: bytes


def pack_extent(block: Buffer, digest: bytes, policy: Policy, *, hurried: bool = False) -> Packed:
    """A block of 64 KiB as a policy has it stored; ``hurried``: in less time, though in more bytes."""
    stored, codec = encode(block, policy.compression, policy.level, WORTH_COMPRESSING, hurried=hurried)
    if codec != CODEC_RAW:
        return Packed(stored, codec, crc32c(stored), EXTENT_AUX.pack(digest))
    page_crcs = [crc32c(stored[at : at + PAGE]) for at in range(0, BLOCK, PAGE)]
    return Packed(stored, CODEC_RAW, crc32c(stored), RAW_EXTENT_AUX.pack(digest, *page_crcs))


def block_of(area: memoryview, block: int) -> memoryview:
    return area[block * BLOCK : (block + 1) * BLOCK]


def load(area: memoryview, rows: Sequence[tuple[int, int, int, int]], reads: Sequence[Read]) -> bytes:
    """Put pages on the bench, rows as in ``WANT``; ``GOOD``, ``ZERO`` or ``BAD`` for each."""
    verdicts = bytearray(len(rows))
    index = 0
    while index < len(rows):
        at, file, page, _ = rows[index]
        end = index + 1
        while end < len(rows) and rows[end][:3] == (at + end - index, file, page + end - index):
            end += 1
        try:
            data = reads[file]((end - index) * PAGE, page * PAGE)
        except OSError:
            data = b""
        for within in range(end - index):
            part = data if end == index + 1 else data[within * PAGE : (within + 1) * PAGE]
            if len(part) != PAGE or crc32c(part) != rows[index + within][3]:
                verdicts[index + within] = BAD
                continue
            verdicts[index + within] = ZERO if part == ZERO_PAGE else GOOD
            area[(at + within) * PAGE : (at + within + 1) * PAGE] = part
        index = end
    return bytes(verdicts)


def digests(area: memoryview, count: int) -> list[bytes]:
    """The BLAKE3 hashes of the first blocks; empty for one of zeros."""
    blocks = (block_of(area, block) for block in range(count))
    return [b"" if not block[0] and bytes(block) == ZERO_BLOCK else blake3(block).digest() for block in blocks]


def pack(area: memoryview, wanted: Sequence[tuple[int, bytes]], policy: Policy, hurried: bool) -> list[Packed]:
    """Blocks, each given with its hash, as they are to be stored."""
    return [pack_extent(block_of(area, block), digest, policy, hurried=hurried) for block, digest in wanted]


def _work(area: memoryview, message: bytes, reads: Sequence[Read]) -> bytes:
    operation = message[0]
    if operation == LOAD:
        return load(area, list(WANT.iter_unpack(message[1:])), reads)
    if operation == HASH:
        return b"".join([digest or _NO_DIGEST for digest in digests(area, message[1])])
    _, compression, level, hurried = PACK_HEAD.unpack_from(message)
    policy = Policy(compression=COMPRESSIONS[compression], level=level)
    answer = []
    room = AREA_BYTES
    for block, digest in TO_PACK.iter_unpack(message[PACK_HEAD.size :]):
        (packed,) = pack(area, [(block, digest)], policy, bool(hurried))
        at = room
        if len(packed.stored) == BLOCK:
            at = block * BLOCK
        else:
            room += len(packed.stored)
            area[at:room] = packed.stored
        answer.append(PACKED.pack(len(packed.aux), packed.codec, packed.crc, at, len(packed.stored)) + packed.aux)
    return b"".join(answer)


def digests_of(answer: bytes) -> list[bytes]:
    """What ``digests`` returned, out of an answer."""
    found = [answer[at : at + len(_NO_DIGEST)] for at in range(0, len(answer), len(_NO_DIGEST))]
    return [b"" if each == _NO_DIGEST else each for each in found]


def packed_of(area: memoryview, answer: bytes) -> list[Packed]:
    """What ``pack`` returned, out of an answer; the bytes are views of the shared area."""
    found = []
    offset = 0
    while offset < len(answer):
        aux_bytes, codec, crc, at, length = PACKED.unpack_from(answer, offset)
        offset += PACKED.size
        found.append(Packed(area[at : at + length], codec, crc, answer[offset : offset + aux_bytes]))
        offset += aux_bytes
    return found


if __name__ == "__main__":
    serve(_work)
