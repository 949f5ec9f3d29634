"""Reads a fabric snapshot for a backup: stored extents straight from the group files, everything else through NBD."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from blake3 import blake3

from innkeeper.fabric.layout import BLOCK, CODEC_NAMES, ZERO_BLOCK
from innkeeper.fabric.nbd.client import NbdClient
from innkeeper.model.problems import Corrupt, Failed
from innkeeper.protect.pack import Encoded, decode, encode

SPAN_BYTES = 4 * 1024 * 1024
_GAP_BYTES = 128 * 1024
_OPEN_FILES = 64
_LOOK_AHEAD = 4
_THREADS = 2
_buffers = threading.local()
_CODECS = {name: number for number, name in CODEC_NAMES.items()}


class Extent(NamedTuple):
    """A block that the fabric holds as an extent, and where its stored bytes lie."""

    path: str
    offset: int
    stored: int
    codec: int
    hash: bytes
    name: bytes


class Span(NamedTuple):
    """Neighbouring extents of one group file that are read at once."""

    path: str
    start: int
    length: int
    extents: list[Extent]


def extent_of(hash_hex: str, location: Sequence[Any], name: bytes) -> Extent:
    """The extent that ``changed_blocks`` describes by hash and location.

    Raises ``Failed`` (``backup.fabric``) for a codec that this program does not know.
    """
    path, offset, stored, codec = location
    if codec not in _CODECS:
        raise Failed("backup.fabric", f"the fabric holds an extent with codec {codec!r}, which is unknown here")
    return Extent(str(path), int(offset), int(stored), _CODECS[codec], bytes.fromhex(hash_hex), name)


def spans(extents: Iterable[Extent]) -> list[Span]:
    """Reads in the order of the files, each of at most about 4 MiB."""
    result: list[Span] = []
    for extent in sorted(extents, key=lambda extent: (extent.path, extent.offset)):
        last = result[-1] if result else None
        end = extent.offset + extent.stored
        if (
            last is not None
            and last.path == extent.path
            and extent.offset - (last.start + last.length) <= _GAP_BYTES
            and end - last.start <= SPAN_BYTES
        ):
            last.extents.append(extent)
            result[-1] = last._replace(length=max(last.length, end - last.start))
        else:
            result.append(Span(extent.path, extent.offset, extent.stored, [extent]))
    return result


class GroupFiles:
    """Open group files, the last used ones. Any thread may read."""

    def __init__(self) -> None:
        self._open: OrderedDict[str, int] = OrderedDict()

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def descriptor(self, path: str) -> int:
        """The open file; from the main thread, which alone opens and closes between reads."""
        fd = self._open.get(path)
        if fd is None:
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as refused:
                raise Failed(
                    "backup.fabric",
                    f"the fabric's {path} cannot be read",
                    cause=os.strerror(refused.errno or 0),
                    remedy="run as the user that the fabric runs as, and check the pool with 'inn fabric check'",
                ) from refused
            self._open[path] = fd
        self._open.move_to_end(path)
        return fd

    def shrink(self) -> None:
        """Close what was not used lately; only while no read is in flight."""
        while len(self._open) > _OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])


class Source:
    """Parallel reading. One thread uses it."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="backup-read")
        self._files = GroupFiles()
        self.read_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._files.close()

    def read_extents(self, extents: Iterable[Extent]) -> Iterator[tuple[Extent, Encoded]]:
        """The stored bytes of each extent, as they are, after their decoded content was seen to have the extent's hash.

        Raises ``Corrupt`` (``fabric.corrupt``) naming file and offset.
        """
        waiting: deque[Future[list[tuple[Extent, Encoded]]]] = deque()
        for span in spans(extents):
            waiting.append(self._executor.submit(_read_span, self._files.descriptor(span.path), span))
            self.read_bytes += span.length
            if len(waiting) > _LOOK_AHEAD:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
        self._files.shrink()

    def read_blocks(
        self, connect: Callable[[], NbdClient], blocks: Sequence[int], size_bytes: int
    ) -> Iterator[tuple[int, Encoded | None]]:
        """The content of blocks, hashed and compressed; ``None`` for one that is all zeros. In order."""
        if not blocks:
            return
        with connect() as nbd:
            for first in range(0, len(blocks), 64):
                batch = blocks[first : first + 64]
                content = _read_batch(nbd, batch, size_bytes)
                self.read_bytes += sum(map(len, content.values()))
                encoded = self._executor.map(_encode_block, (content[block] for block in batch))
                yield from zip(batch, encoded, strict=True)


def _read_batch(nbd: NbdClient, blocks: Sequence[int], size_bytes: int) -> dict[int, bytes]:
    content: dict[int, bytes] = {}
    for block in blocks:
        nbd.submit_read(block * BLOCK, min(BLOCK, size_bytes - block * BLOCK), partial(content.__setitem__, block))
    nbd.settle()
    return content


def _encode_block(data: bytes) -> Encoded | None:
    """As the fabric would: the last block of a disk is hashed with zeros behind it."""
    block = data.ljust(BLOCK, b"\0")
    return None if block == ZERO_BLOCK else encode(block)


def _pread(fd: int, span: Span) -> memoryview:
    """The span's bytes, in a buffer that this thread uses again: fresh memory for each read costs more than the
    read."""
    if len(getattr(_buffers, "span", b"")) < span.length:
        _buffers.span = memoryview(bytearray(max(SPAN_BYTES, span.length)))
    view: memoryview = _buffers.span[: span.length]
    got = os.preadv(fd, [view], span.start)
    return view[:got]


def _read_span(fd: int, span: Span) -> list[tuple[Extent, Encoded]]:
    data = _pread(fd, span)
    result = []
    for extent in span.extents:
        at = extent.offset - span.start
        stored = bytes(data[at : at + extent.stored])
        plaintext = decode(stored, extent.codec, BLOCK)
        if plaintext is None or blake3(plaintext).digest() != extent.hash:
            raise Corrupt(
                "fabric.corrupt",
                f"{Path(extent.path)} at byte {extent.offset}: an extent does not have its hash",
                cause="the medium or something that writes to it has changed stored bytes",
                remedy="run 'inn fabric check'; restore the disks it names from an older restore point",
            )
        result.append((extent, Encoded(extent.hash, stored, BLOCK, extent.codec)))
    return result
