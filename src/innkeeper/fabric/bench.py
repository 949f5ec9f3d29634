"""The bench: where up to 32 blocks are filled, hashed and packed, by a helper process where there is one.

Hashing, packing and reading run outside the interpreter's lock, but each call gives it up and waits for it again:
beside a busy event loop that took longer than the work itself (docs/performance.md). A helper does what a round of
2 MiB needs for a message or two. Without one the same functions run here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from innkeeper.fabric import packing
from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.packing import AREA_BYTES, Packed
from innkeeper.fabric.policy import COMPRESSIONS, Policy
from innkeeper.system.files import Buffer, File
from innkeeper.system.helpers import MOST_FILES, Helper, HelperLost, Helpers

FEW_PAGES = 12
"""Fewer than this are read here: asking takes longer."""
NO_DESCRIPTOR = -1


Want = tuple[int, File, int, int]
"""A page for the bench: at which page there, from which file and page of it, and its CRC-32C."""


class Bench:
    """Room for 32 blocks in ``area``; for one thread."""

    def __init__(self, helper: Helper | None) -> None:
        self._helper = helper
        self._shared = helper.area if helper is not None else memoryview(bytearray(AREA_BYTES))
        self.area = self._shared[:AREA_BYTES]
        self.lost = False
        """The helper has gone. What was its area too stays."""

    def fill(self, data: Buffer) -> int:
        """Put whole blocks on the bench; returns how many."""
        if self._helper is None:
            self.area = memoryview(data)
        else:
            self.area[: len(data)] = data
        return len(data) // BLOCK

    def load(self, wants: Sequence[Want]) -> bytes:
        """Read pages of files; ``GOOD``, ``ZERO`` or ``BAD`` (of ``packing``) for each."""
        files: dict[File, int] = {}
        rows = [(at, files.setdefault(file, len(files)), page, crc) for at, file, page, crc in wants]
        descriptors = [file.descriptor for file in files]
        if len(rows) >= FEW_PAGES and len(files) <= MOST_FILES and NO_DESCRIPTOR not in descriptors:
            message = bytes([packing.LOAD]) + b"".join([packing.WANT.pack(*row) for row in rows])
            if (answer := self._ask(message, descriptors)) is not None:
                return answer
        return packing.load(self.area, rows, [file.pread for file in files])

    def digests(self, count: int) -> list[bytes]:
        """The BLAKE3 hashes of the first ``count`` blocks; empty for one of zeros."""
        if count > 1 and (answer := self._ask(packing.HASH_COUNT.pack(packing.HASH, count))) is not None:
            return packing.digests_of(answer)
        return packing.digests(self.area, count)

    def pack(self, wanted: Sequence[tuple[int, bytes]], policy: Policy, *, hurried: bool = False) -> list[Packed]:
        """Blocks, each given by its number and hash, as they are to be stored; the bytes may be views of the bench."""
        if len(wanted) > 1:
            head = packing.PACK_HEAD.pack(packing.PACK, COMPRESSIONS.index(policy.compression), policy.level, hurried)
            answer = self._ask(head + b"".join([packing.TO_PACK.pack(*each) for each in wanted]))
            if answer is not None:
                return packing.packed_of(self._shared, answer)
        return packing.pack(self.area, wanted, policy, hurried)

    def _ask(self, message: bytes, files: Sequence[int] = ()) -> bytes | None:
        """The helper's answer; None where there is none, or none any more."""
        if self._helper is None or self.lost:
            return None
        try:
            return self._helper.ask(message, files)
        except HelperLost:
            self.lost = True
            return None


class Benches:
    """Gives out benches. Safe for threads."""

    def __init__(self, helpers: Helpers | None) -> None:
        self._helpers = helpers

    @contextmanager
    def bench(self) -> Iterator[Bench]:
        """A bench for a while; nobody may look at what is on it afterwards."""
        helper = self._helpers.take() if self._helpers is not None else None
        bench = Bench(helper)
        try:
            yield bench
        finally:
            if helper is not None and self._helpers is not None:
                self._helpers.give_back(helper, lost=bench.lost)
