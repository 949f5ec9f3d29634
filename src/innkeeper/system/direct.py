"""Writing whole pages of an open file past the page cache (O_DIRECT, open(2)).

What goes through the cache costs the kernel a search for a page each 4 KiB, and pushes out what guests read. It takes
up what a slow medium cannot take at once, though: where that is slower than streams are, the cache has them.
"""

from __future__ import annotations

import errno
import mmap
import os
import time

ALIGNMENT = 4096
QUICK_BYTES_S = 300 << 20
TIMED_FROM_BYTES = 256 << 10
MOST_SLOW = 3
"""Writes below the rate that a file may have before it goes through the cache."""


def aligned_buffer(size_bytes: int) -> memoryview:
    """Memory that direct writes take, of at least that size."""
    return memoryview(mmap.mmap(-1, size_bytes))


class DirectWriter:
    """The way past the cache of one file; ``open`` tells whether it still is one."""

    def __init__(self, fd: int) -> None:
        self._slow = 0
        try:
            self._fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
        except OSError:  # the file system has no such way
            self._fd = -1

    @property
    def open(self) -> bool:
        return self._fd >= 0

    def write(self, pages: memoryview, offset: int) -> int:
        """Write aligned memory at an aligned offset; returns how much was taken, 0 where it is to go through the cache.

        Raises ``OSError``.
        """
        began = time.perf_counter()
        try:
            written = os.pwrite(self._fd, pages, offset)
        except OSError as refused:
            if refused.errno != errno.EINVAL:
                raise
            self.close()
            return 0
        took_s = time.perf_counter() - began
        if written >= TIMED_FROM_BYTES and written < QUICK_BYTES_S * took_s:
            self._slow += 1
            if self._slow >= MOST_SLOW:
                self.close()
        return written

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)
