"""The content cache: decoded extents in memory, under their map entries, so that all clones of a disk share them.

Two lists, as Nutanix's cache has them: an extent read for the first time is *single-touch*, one read again is
*multi-touch*. What is read once, such as a backup's scan, pushes out single-touch extents only: the multi-touch list
gives up an extent when it has outgrown its share, and then to the single-touch list. The keys of extents that left the
single-touch list are remembered for a while; one that comes back within that time is multi-touch at once, so that a set
somewhat larger than the single-touch list still becomes known. (The lists of "2Q", Johnson and Shasha, VLDB 1994, with
promotion on a hit in the first list.)
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass

from innkeeper.model.problems import Invalid

ITEM_OVERHEAD_BYTES = 200
"""What the lists themselves take for an extent."""
MULTI_SHARE = 0.8
"""The most that multi-touch extents may take of the whole."""
MINIMUM_BYTES = 8 << 20


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def default_bytes() -> int:
    """A thirty-second of the machine's memory, from 24 MiB to 1 GiB."""
    return min(1 << 30, max(24 << 20, _memory_bytes() // 32))


def check_limit(limit_bytes: int | None) -> None:
    """Raises ``Invalid`` (``pool.cache``) for a bound below 8 MiB or above the machine's memory."""
    if limit_bytes is not None and not MINIMUM_BYTES <= limit_bytes <= _memory_bytes():
        raise Invalid(
            "pool.cache",
            f"a content cache cannot have {limit_bytes} bytes",
            cause=f"this machine has {_memory_bytes()} bytes of memory; less than {MINIMUM_BYTES} are of no use",
            remedy="choose a size in between",
        )


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What the cache holds, in bytes, and what it has done since it was made: a miss is an extent that was read."""

    limit_bytes: int
    used_bytes: int
    single_touch_bytes: int
    multi_touch_bytes: int
    hits: int
    misses: int
    evictions: int


class ContentCache:
    """Extents within a bound of bytes. Safe for threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._lock = threading.Lock()
        self._single: OrderedDict[int, bytes] = OrderedDict()
        self._multi: OrderedDict[int, bytes] = OrderedDict()
        self._left: OrderedDict[int, None] = OrderedDict()
        self._single_bytes = self._multi_bytes = 0
        self._hits = self._misses = self._evictions = 0
        self._limit = limit_bytes

    @property
    def limit_bytes(self) -> int:
        return self._limit

    def get(self, entry: int) -> bytes | None:
        """The extent, which is multi-touch from now on; None when it is not here."""
        with self._lock:
            data = self._multi.get(entry)
            if data is not None:
                self._multi.move_to_end(entry)
                self._hits += 1
                return data
            data = self._single.pop(entry, None)
            if data is None:
                return None
            self._hits += 1
            self._single_bytes -= len(data) + ITEM_OVERHEAD_BYTES
            self._keep(entry, data)
            return data

    def put(self, entry: int, data: bytes) -> None:
        """Remember what was just read from its group."""
        with self._lock:
            self._misses += 1
            if entry in self._multi or entry in self._single:
                return  # two threads read it at once
            if entry in self._left:
                del self._left[entry]
                self._keep(entry, data)
            else:
                self._single[entry] = data
                self._single_bytes += len(data) + ITEM_OVERHEAD_BYTES
            self._shrink()

    def succeed(self, old: int, new: int, data: bytes) -> None:
        """Readers of the extent ``old`` will ask for ``new`` from now on: the old one, if here, hands over its place.

        What still names the old one, such as a snapshot, may ask for it until its room is needed.
        """
        with self._lock:
            if new in self._multi or new in self._single:
                return
            if (gone := self._multi.pop(old, None)) is not None:
                self._multi_bytes -= len(gone) + ITEM_OVERHEAD_BYTES
                self._keep(new, data)
            elif (gone := self._single.pop(old, None)) is not None:
                self._single_bytes -= len(gone) + ITEM_OVERHEAD_BYTES
                self._single[new] = data
                self._single_bytes += len(data) + ITEM_OVERHEAD_BYTES
            else:
                return
            self._single[old] = gone
            self._single.move_to_end(old, last=False)
            self._single_bytes += len(gone) + ITEM_OVERHEAD_BYTES
            self._shrink()

    def resize(self, limit_bytes: int) -> None:
        """Change the bound; what is too much goes at once."""
        with self._lock:
            self._limit = limit_bytes
            self._outgrown()
            self._shrink()

    def facts(self) -> CacheFacts:
        with self._lock:
            return CacheFacts(
                limit_bytes=self._limit,
                used_bytes=self._single_bytes + self._multi_bytes,
                single_touch_bytes=self._single_bytes,
                multi_touch_bytes=self._multi_bytes,
                hits=self._hits,
                misses=self._misses,
                evictions=self._evictions,
            )

    def _keep(self, entry: int, data: bytes) -> None:
        self._multi[entry] = data
        self._multi_bytes += len(data) + ITEM_OVERHEAD_BYTES
        self._outgrown()

    def _outgrown(self) -> None:
        """What the multi-touch list has too much goes to the young end of the other."""
        while self._multi_bytes > self._limit * MULTI_SHARE and len(self._multi) > 1:
            entry, data = self._multi.popitem(last=False)
            size = len(data) + ITEM_OVERHEAD_BYTES
            self._multi_bytes -= size
            self._single[entry] = data
            self._single_bytes += size

    def _shrink(self) -> None:
        while self._single_bytes + self._multi_bytes > self._limit and self._single:
            entry, data = self._single.popitem(last=False)
            self._single_bytes -= len(data) + ITEM_OVERHEAD_BYTES
            self._evictions += 1
            self._left[entry] = None
        while len(self._left) > len(self._single) + len(self._multi):
            self._left.popitem(last=False)
