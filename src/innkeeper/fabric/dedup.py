"""Deduplication: which stored extent has a hash, by the fingerprints' hint and the slot table that proves it."""

from __future__ import annotations

from collections.abc import Sequence

from innkeeper.fabric.fingerprints import Fingerprints
from innkeeper.fabric.layout import KIND_EXTENT, entry_place, pack_entry
from innkeeper.fabric.store import LIVE, OPEN, GroupStore


class Dedup:
    """Finds stored extents by their hashes. Safe for threads."""

    def __init__(self, store: GroupStore, fingerprints: Fingerprints) -> None:
        self._store = store
        self.fingerprints = fingerprints

    def places(self, digests: Sequence[bytes]) -> dict[bytes, int]:
        """``group << 18 | slot`` of extents that may have the hashes, by their first 16 bytes; ``entry`` proves it."""
        return self.fingerprints.find_many(digests)

    def entry(self, place: int, digest: bytes) -> int | None:
        """The map entry of the extent at ``place`` if it has that hash and its group is not being reclaimed."""
        group, slot = entry_place(place)
        row = self._store.rows.get(group)
        if row is None or row.state not in (LIVE, OPEN):
            return None
        if self._store.table(group).extent_hash(slot) != digest:
            return None
        return pack_entry(KIND_EXTENT, group, slot)

    def find(self, digest: bytes) -> int | None:
        """The map entry of a stored extent with that hash."""
        place = self.fingerprints.find(digest)
        return None if place is None else self.entry(place, digest)
