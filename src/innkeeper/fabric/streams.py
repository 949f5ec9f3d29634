"""Which writes are part of a sequential stream: a pure decision from where and how long a disk's writes are.

A stream is a run of writes of 64 KiB and more that go on about where the one before ended, with more than 1.5 MiB
written since the last flush: nobody has asked for the safety of that much yet, and having it twice on the medium gains
nothing. One large write alone is none, nor is a journal that is flushed all the time. (Nutanix's rule, as published:
more than 1.5 MB outstanding to a disk bypass the log.)
"""

from __future__ import annotations

from innkeeper.fabric.layout import BLOCK

STREAM_BYTES = 3 << 19
NEAR_BYTES = 2 << 20
"""Writes of several queues may come somewhat out of order."""


class Stream:
    """The run that a disk's writes are in."""

    __slots__ = ("_end", "_run_bytes")

    def __init__(self) -> None:
        self._end = 0
        self._run_bytes = 0

    def takes(self, offset: int, length: int) -> bool:
        """Note a write of ``length`` bytes; whether it is part of a stream."""
        before = self._run_bytes
        end = offset + length
        if abs(offset - self._end) > NEAR_BYTES:
            self._end, self._run_bytes = end, length
            return False
        if end > self._end:
            self._run_bytes += min(length, end - self._end)
            self._end = end
        return before > STREAM_BYTES and length >= BLOCK

    def goes_on(self, offset: int) -> bool:
        """Whether a long write there would be part of a stream."""
        return self._run_bytes > STREAM_BYTES and abs(offset - self._end) <= NEAR_BYTES

    def flushed(self) -> None:
        """All that was written is asked to be safe."""
        self._run_bytes = 0
