"""What was used of late, within a bound of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """Least recently used values within a bound of bytes. Safe for threads."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._items: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = self._misses = 0

    def get(self, key: K) -> V | None:
        with self._lock:
            item = self._items.get(key)
            if item is None:
                self._misses += 1
                return None
            self._hits += 1
            self._items.move_to_end(key)
            return item[0]

    def put(self, key: K, value: V, size_bytes: int) -> None:
        with self._lock:
            old = self._items.pop(key, None)
            if old is not None:
                self._used -= old[1]
            self._items[key] = (value, size_bytes)
            self._used += size_bytes
            while self._used > self._limit and len(self._items) > 1:
                _, (_, gone) = self._items.popitem(last=False)
                self._used -= gone

    def drop(self, key: K) -> None:
        with self._lock:
            old = self._items.pop(key, None)
            if old is not None:
                self._used -= old[1]

    def facts(self) -> dict[str, int]:
        """Its bound, what it holds, and how often something was found in it since it was made, or not."""
        with self._lock:
            return {
                "limit_bytes": self._limit,
                "used_bytes": self._used,
                "hits": self._hits,
                "misses": self._misses,
            }
