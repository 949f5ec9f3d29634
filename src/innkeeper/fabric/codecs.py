"""How stored items are coded: as they are, as an LZ4 block, or as one Zstandard frame."""

from __future__ import annotations

import lz4.block

from innkeeper.fabric.layout import BLOCK, CODEC_LZ4, CODEC_RAW, CODEC_ZSTD
from innkeeper.system.zstd import zstd

MAX_LEVEL = 19
"""Zstandard's strongest level that needs no more memory than the block itself; 64 KiB take it some 14 ms."""
DEFAULT_LEVEL = 3
HURRY = 8
"""LZ4's acceleration for streams: of this machine's files 64 KiB take 61 µs instead of 85, and 0.72 of their bytes
instead of 0.65."""
WORTH_COMPRESSING = BLOCK * 7 // 8
"""Blocks that get no smaller than this are kept as they are."""


class Undecodable(Exception):
    """Stored bytes that do not yield what they stand for."""


def encode(data: bytes, compression: str, level: int, worth_bytes: int, *, hurried: bool = False) -> tuple[bytes, int]:
    """(stored bytes, codec) under a storage's compression; raw where that would not be below ``worth_bytes``.

    ``hurried``: in less time, though in more bytes, where somebody waits for it.
    """
    if compression == "lz4":
        acceleration = HURRY if hurried else 1
        stored: bytes = lz4.block.compress(data, mode="fast", acceleration=acceleration, store_size=False)
        codec = CODEC_LZ4
    elif compression == "zstd":
        stored = zstd.compress(data, level)
        codec = CODEC_ZSTD
    else:
        return data, CODEC_RAW
    return (stored, codec) if len(stored) <= worth_bytes else (data, CODEC_RAW)


def decode(stored: bytes, codec: int, raw_bytes: int) -> bytes:
    """The ``raw_bytes`` that were stored; memory stays within that bound whatever the bytes are.

    Raises ``Undecodable``.
    """
    try:
        if codec == CODEC_RAW:
            data = stored
        elif codec == CODEC_LZ4:
            data = lz4.block.decompress(stored, uncompressed_size=raw_bytes)
        elif codec == CODEC_ZSTD:
            said = zstd.get_frame_info(stored).decompressed_size
            if said != raw_bytes:
                raise Undecodable(f"zstd: a frame of {said} bytes, not {raw_bytes}")
            data = zstd.decompress(stored)
        else:
            raise Undecodable(f"unknown codec {codec}")
    except lz4.block.LZ4BlockError as broken:
        raise Undecodable(f"lz4: {broken}") from broken
    except zstd.ZstdError as broken:
        raise Undecodable(f"zstd: {broken}") from broken
    if len(data) != raw_bytes:
        raise Undecodable(f"{len(data)} bytes, not {raw_bytes}")
    return data
