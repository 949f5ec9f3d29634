"""Blobs in memory, and a driver that fails, dies or stops at a chosen call: what the protect tests stand on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from innkeeper.protect.blobs import Blobs, Buffer, absent, taken
from innkeeper.system.blobs import BlobFacts, check_name


class MemoryBlobs:
    """The in-memory driver: passes the same conformance suite as the others."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        data = b"".join(parts)
        check_name(name)
        with self._lock:
            if name in self.content:
                raise taken(name)
            self.content[name] = data

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        check_name(name)
        try:
            data = self.content[name]
        except KeyError:
            raise absent(name) from None
        return data[offset:] if length is None else data[offset : offset + length]

    def size(self, name: str) -> int:
        return len(self.get(name))

    def ls(self, prefix: str) -> Iterator[BlobFacts]:
        folder = prefix.rstrip("/") + "/"
        return iter(
            [BlobFacts(name, len(data)) for name, data in list(self.content.items()) if name.startswith(folder)]
        )

    def delete(self, name: str) -> None:
        self.content.pop(check_name(name), None)

    def local_path(self, name: str) -> Path | None:
        return None

    def clean(self, older_than_s: float) -> int:
        return 0


class Killed(BaseException):
    """Stands for the end of the process: no ``except Problem`` or ``except Exception`` may catch it."""


class ScriptedBlobs:
    """Calls through to ``inner``; ``before(call, name, count)`` runs before each put and delete and may raise.

    ``dead`` is set once it raised ``Killed``: from then on every call raises it, as a dead process calls no more.
    """

    def __init__(self, inner: Blobs, before: Callable[[str, str, int], None]) -> None:
        self.inner = inner
        self.before = before
        self.count = 0
        self.dead = False
        self._lock = threading.Lock()

    def _change(self, call: str, name: str) -> None:
        with self._lock:
            if self.dead:
                raise Killed
            self.count += 1
            try:
                self.before(call, name, self.count)
            except Killed:
                self.dead = True
                raise

    def put(self, name: str, parts: Sequence[Buffer]) -> None:
        self._change("put", name)
        self.inner.put(name, parts)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        return self.inner.get(name, offset, length)

    def size(self, name: str) -> int:
        return self.inner.size(name)

    def ls(self, prefix: str) -> Iterator[BlobFacts]:
        return self.inner.ls(prefix)

    def delete(self, name: str) -> None:
        self._change("delete", name)
        self.inner.delete(name)

    def local_path(self, name: str) -> Path | None:
        return self.inner.local_path(name)

    def clean(self, older_than_s: float) -> int:
        return self.inner.clean(older_than_s)
