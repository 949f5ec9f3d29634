"""Writes entries into packs: gathered in memory, stored by threads, made findable by index segments.

A segment is published after every ``SEGMENT_PACKS`` packs, so that the memory for names stays bounded and a backup
that was interrupted does not store the same bytes again.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np

from innkeeper.protect.index import Index, Names, build_segment, join_records, names_array, record_names, records_of
from innkeeper.protect.pack import PACK_BYTES, Encoded, PackBuilder, Table, pack_name
from innkeeper.protect.repository import Repository
from innkeeper.protect.sealing import Kind

SEGMENT_PACKS = 64
_PUTS_IN_FLIGHT = 2


class PackWriter:
    """Stores entries that the repository lacks. One thread uses it; ``with`` waits for what is in flight."""

    def __init__(self, repository: Repository, index: Index, writer: bytes, pack_bytes: int = PACK_BYTES) -> None:
        self._repository = repository
        self._index = index
        self._writer = writer
        self._pack_bytes = pack_bytes
        self._builders: dict[bool, PackBuilder] = {}
        self._pending: set[bytes] = set()
        self._executor = ThreadPoolExecutor(_PUTS_IN_FLIGHT, thread_name_prefix="pack-put")
        self._in_flight: list[Future[None]] = []
        self._done: list[tuple[bytes, int, Table]] = []
        self.used: set[bytes] = set()
        """Packs of others that something stored here stands on."""
        self.stored_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(wait=True, cancel_futures=kind is not None)

    def lacking(self, names: Names) -> list[bool]:
        """For each name whether it is neither in the repository nor written here; notes the packs of those that are."""
        found = self._index.find(names, usable_only=True)
        for row in np.unique(found.pack[found.pack >= 0]):
            self.used.add(self._index.packs[int(row)])
        flat = names.tobytes()
        return [
            pack < 0 and flat[at * 32 : at * 32 + 32] not in self._pending
            for at, pack in enumerate(found.pack.tolist())
        ]

    def add(self, name: bytes, encoded: Encoded, kind: Kind) -> None:
        """Store an entry that ``lacking`` said is lacking; a second time is no error.

        Raises what an earlier put raised: ``NoSpace`` (``repository.full``) and others.
        """
        if name in self._pending:
            return
        apart = kind != Kind.EXTENT
        builder = self._builders.get(apart)
        if builder is None:
            builder = self._builders[apart] = PackBuilder(self._repository.key)
        builder.add(name, encoded, kind)
        self._pending.add(name)
        if builder.size_bytes >= self._pack_bytes:
            self._close(apart)

    def store(self, encoded: Encoded, kind: Kind) -> bytes:
        """Store the entry if it is lacking; returns its name."""
        name = self._repository.key.name(kind, encoded.hash)
        if self.lacking(names_array([name]))[0]:
            self.add(name, encoded, kind)
        return name

    def _close(self, apart: bool) -> None:
        builder = self._builders.pop(apart, None)
        if builder is None or not builder.count:
            return
        while len(self._in_flight) >= _PUTS_IN_FLIGHT:
            self._in_flight.pop(0).result()
        parts = builder.finish()
        size_bytes = sum(map(len, parts))
        self._in_flight.append(self._executor.submit(self._repository.blobs.put, pack_name(builder.id), parts))
        self._done.append((builder.id, size_bytes, builder.table()))
        self.stored_bytes += size_bytes
        if len(self._done) >= SEGMENT_PACKS:
            self._publish()

    def _settle(self) -> None:
        while self._in_flight:
            self._in_flight.pop(0).result()

    def _publish(self) -> None:
        """Wait for the packs, then make them findable."""
        self._settle()
        if not self._done:
            return
        packs = [(pack_id, size_bytes) for pack_id, size_bytes, _ in self._done]
        records = join_records([records_of(table, row) for row, (_, _, table) in enumerate(self._done)])
        name, parts = build_segment(self._repository.key, packs, records, self._writer)
        self._repository.blobs.put(name, parts)
        self.stored_bytes += sum(map(len, parts))
        self._done.clear()
        # What was pending is in the index now; entries of packs still being gathered stay pending.
        self._index = self._repository.load_index()
        self._pending.difference_update(row.tobytes() for row in record_names(records))

    def finish(self) -> None:
        """Store what is gathered and make all of it findable. Raises as ``add``."""
        for apart in list(self._builders):
            self._close(apart)
        self._publish()
