"""Replies as bytes. Cookies are the eight bytes of the request, never a number."""

from __future__ import annotations

from struct import Struct, pack

from innkeeper.fabric.nbd.protocol import (
    BASE_ALLOCATION_ID,
    CHUNK_DONE,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
)

_SIMPLE = Struct(">II8s")
_CHUNK = Struct(">IHH8sI")
_DATA_CHUNK = Struct(">IHH8sIQ")
_ERROR_CHUNK = Struct(">IHH8sIIH")
_DONE = pack(">II", SIMPLE_REPLY_MAGIC, 0)
"""A simple reply without error, up to its cookie."""
_OFFSET_DATA = int(ChunkType.OFFSET_DATA)


def plain(cookies: list[bytes], error: int) -> bytes:
    """Simple replies to requests that carry nothing back."""
    start = pack(">II", SIMPLE_REPLY_MAGIC, error) if error else _DONE
    return start + start.join(cookies)


def before_data(cookie: bytes, offset: int, size: int, structured: bool) -> bytes:
    """What goes before the data of a read."""
    if structured:
        return _DATA_CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, _OFFSET_DATA, cookie, size + 8, offset)
    return _DONE + cookie


def status(cookie: bytes, runs: list[tuple[int, int]]) -> bytes:
    """The answer to BLOCK_STATUS: (length, flags) of base:allocation."""
    body = pack(">I", BASE_ALLOCATION_ID) + b"".join(pack(">II", *run) for run in runs)
    return _CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, ChunkType.BLOCK_STATUS, cookie, len(body)) + body


def failure(cookie: bytes, error: int, chunked: bool) -> bytes:
    """An error; ``chunked``: of a request that is answered in chunks."""
    if chunked:
        return _ERROR_CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, ChunkType.ERROR, cookie, 6, error, 0)
    return _SIMPLE.pack(SIMPLE_REPLY_MAGIC, error, cookie)
