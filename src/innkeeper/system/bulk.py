"""Writing bulk data that nobody will read soon, past the page cache where the file system can.

A backup that goes through the page cache pushes the guests' data out of it and costs the kernel more time than the
rest of the backup (docs/performance.md).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from collections.abc import Sequence

from innkeeper.system.files import Buffer

ALIGNMENT = 4096
DIRECT_FROM_BYTES = 1 << 20
_BUFFER_BYTES = 4 << 20
_IOV_MAX = 1024
_own = threading.local()


def write_bulk(fd: int, parts: Sequence[Buffer]) -> None:
    """Write all parts from the file's position 0 on; the file is new. Not synced. Raises ``OSError``."""
    if sum(map(len, parts)) < DIRECT_FROM_BYTES or not _set_direct(fd, True):
        write_parts(fd, parts)
        return
    buffer = _aligned_buffer()
    filled = 0
    for part in parts:
        view = memoryview(part).cast("B")
        at = 0
        while at < len(view):
            count = min(_BUFFER_BYTES - filled, len(view) - at)
            buffer[filled : filled + count] = view[at : at + count]
            filled += count
            at += count
            if filled == _BUFFER_BYTES:
                _write_aligned(fd, buffer)
                filled = 0
    whole = filled // ALIGNMENT * ALIGNMENT
    _write_aligned(fd, buffer[:whole])
    _set_direct(fd, False)
    write_parts(fd, [buffer[whole:filled]])


def write_parts(fd: int, parts: Sequence[Buffer]) -> None:
    """Write all parts at the file's position, with as few calls as possible. Raises ``OSError``."""
    for first in range(0, len(parts), _IOV_MAX):
        batch = [memoryview(part) for part in parts[first : first + _IOV_MAX] if len(part)]
        while batch:
            written = os.writev(fd, batch)
            while batch and written >= len(batch[0]):
                written -= len(batch.pop(0))
            if written:
                batch[0] = batch[0][written:]


def _aligned_buffer() -> memoryview:
    """This thread's buffer: fresh memory for each file costs more than the copy."""
    if not hasattr(_own, "buffer"):
        _own.buffer = memoryview(mmap.mmap(-1, _BUFFER_BYTES))
    buffer: memoryview = _own.buffer
    return buffer


def _write_aligned(fd: int, view: memoryview) -> None:
    """Write whole pages from an aligned buffer; what the file system does not take directly goes through the cache."""
    try:
        written = os.write(fd, view) if view else 0
    except OSError as refused:
        if refused.errno != errno.EINVAL:
            raise
        written = 0
    if written < len(view):
        _set_direct(fd, False)
        write_parts(fd, [view[written:]])


def _set_direct(fd: int, direct: bool) -> bool:
    """Whether the file system allows it."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
    except OSError as refused:
        if direct and refused.errno == errno.EINVAL:
            return False
        raise
    return True
