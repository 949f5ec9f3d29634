"""Compressed image files as streams: ``.xz`` and ``.zst``, chosen by the file's name and never by looking inside.

Decompression is bounded in memory; what a bomb unpacks to is bounded by the caller counting bytes.
"""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from innkeeper.model.problems import Corrupt
from innkeeper.model.sizes import MIB
from innkeeper.system.zstd import zstd

CHUNK_BYTES = 1 * MIB
_XZ_MEMORY_BYTES = 256 * MIB
_ZSTD_WINDOW_LOG = 27
_SUFFIXES = frozenset({".xz", ".zst"})


class _Decompressor(Protocol):
    """What lzma's and zstd's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def is_compressed(path: Path) -> bool:
    """Whether the name says that the file is compressed."""
    return path.suffix.lower() in _SUFFIXES


def chunks(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The content of ``file``, decompressed as the suffix of ``path`` says, in pieces of at most ``CHUNK_BYTES``.

    Raises ``Corrupt`` (``image.corrupt``) when the compressed stream is damaged or ends early.
    """
    if not is_compressed(path):
        yield from iter(lambda: file.read(CHUNK_BYTES), b"")
        return
    try:
        yield from _decompressed(path.suffix.lower(), file)
    except (lzma.LZMAError, zstd.ZstdError, EOFError) as damaged:
        raise Corrupt(
            "image.corrupt",
            f"{path.name} cannot be decompressed",
            cause=str(damaged),
            remedy="fetch the file again and compare its checksum",
        ) from damaged


def _new(suffix: str) -> _Decompressor:
    if suffix == ".xz":
        return lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})


def _decompressed(suffix: str, file: BinaryIO) -> Iterator[bytes]:
    """Both formats allow several streams one after the other; xz also zero padding between them."""
    pending = file.read(CHUNK_BYTES)
    if not pending:
        raise EOFError("the file is empty")
    while pending:
        stream = _new(suffix)
        while not stream.eof:
            if stream.needs_input and not pending:
                pending = file.read(CHUNK_BYTES)
                if not pending:
                    raise EOFError("the compressed stream ends early")
            data = stream.decompress(pending if stream.needs_input else b"", CHUNK_BYTES)
            pending = b""
            if data:
                yield data
        pending = stream.unused_data or file.read(CHUNK_BYTES)
        if suffix == ".xz":
            while pending and not (pending := pending.lstrip(b"\0")):
                pending = file.read(CHUNK_BYTES)
