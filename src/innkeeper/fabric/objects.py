"""Groups as objects of an object store: sealed ones only, written whole, read in parts.

An object is ``<pool uuid>/<group>.<generation>.<nonce>``. The nonce is in its row: two that write one generation
at once, after a meta that was rolled back, say, never touch each other's. What no row names goes when it is a day old.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from uuid import UUID

from innkeeper.fabric.lru import Lru
from innkeeper.fabric.meta import GroupRow
from innkeeper.fabric.shelves import Draft, Found, Shelf
from innkeeper.model.problems import Conflict, NoSpace, NotFound, Problem
from innkeeper.system.blobs import Blobs
from innkeeper.system.clock import Clock, Randomness
from innkeeper.system.files import Buffer, File

CHUNK_BYTES = 256 << 10
"""What is read of an object at least, at multiples of this."""
MOST_CHUNKS = 16
"""What is read at once at most, by a reader that goes on where it was."""
VERIFY_BYTES = 8 << 20
ORPHAN_S = 24 * 3600.0
NONCE_BYTES = 6


class StoreError(OSError):
    """What an object store says; the problem is its ``__cause__``."""


def as_os_error(problem: Problem, path: str) -> OSError:
    """What a file would raise in the place of a store's problem."""
    if isinstance(problem, NotFound) and problem.code == "blob.absent":
        return FileNotFoundError(errno.ENOENT, str(problem), path)
    if isinstance(problem, NoSpace):
        return OSError(errno.ENOSPC, str(problem), path)
    return StoreError(errno.EIO, str(problem), path)


class ObjectFile(File):
    """An object that is read like a file; what was read lately stays in ``chunks``. Nothing is ever in no need to wait
    but what is there."""

    far = True

    def __init__(self, blobs: Blobs, name: str, path: str, size: int, chunks: Lru[tuple[str, int], bytes]) -> None:
        self.path = path
        self._blobs = blobs
        self._name = name
        self._size = size
        self._chunks = chunks
        self._following = -1
        self._ahead = 1

    def pread(self, length: int, offset: int) -> bytes:
        end = min(offset + length, self._size)
        if end <= offset:
            return b""
        first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
        have = self._kept(first, last)
        missing = [index for index in range(first, last + 1) if index not in have]
        if missing:
            have |= self._fetch(missing[0], missing[-1] + 1)
        data = b"".join(have[index] for index in range(first, last + 1) if index in have)
        return data[offset - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def _kept(self, first: int, last: int) -> dict[int, bytes]:
        found = ((index, self._chunks.get((self._name, index))) for index in range(first, last + 1))
        return {index: chunk for index, chunk in found if chunk is not None}

    def _fetch(self, first: int, end: int) -> dict[int, bytes]:
        """Chunks from the store, more of them the longer one goes on reading in order."""
        self._ahead = min(2 * self._ahead, MOST_CHUNKS) if first == self._following else 1
        end = max(end, first + self._ahead)
        self._following = end
        start = first * CHUNK_BYTES
        wanted = min(end * CHUNK_BYTES, self._size) - start
        try:
            data = self._blobs.get(self._name, start, wanted)
        except Problem as problem:
            raise as_os_error(problem, self.path) from problem
        fetched = {}
        for at in range(0, len(data), CHUNK_BYTES):
            index, chunk = first + at // CHUNK_BYTES, data[at : at + CHUNK_BYTES]
            fetched[index] = chunk
            if len(data) == wanted:
                self._chunks.put((self._name, index), chunk, len(chunk))
        return fetched

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        end = min(offset + length, self._size)
        if end <= offset:
            return b""
        first, last = offset // CHUNK_BYTES, (end - 1) // CHUNK_BYTES
        have = self._kept(first, last)
        if len(have) <= last - first:
            return None
        data = b"".join(have[index] for index in range(first, last + 1))
        return data[offset - first * CHUNK_BYTES : end - first * CHUNK_BYTES]

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        raise OSError(errno.EROFS, "an object is never changed", self.path)

    def fdatasync(self) -> None:
        """An object is on its medium from the first."""

    def write_out(self, offset: int, length: int) -> None:
        """As above."""

    def drop_cache(self) -> None:
        for index in range(-(-self._size // CHUNK_BYTES)):
            self._chunks.drop((self._name, index))

    def allocate(self, size: int) -> None:
        raise OSError(errno.EROFS, "an object is never changed", self.path)

    def truncate(self, size: int) -> None:
        raise OSError(errno.EROFS, "an object is never changed", self.path)

    def size(self) -> int:
        return self._size

    def close(self) -> None:
        """Nothing is held."""


class DraftFile(File):
    """A group in memory until it is put."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.content = bytearray()

    def pread(self, length: int, offset: int) -> bytes:
        return bytes(self.content[offset : offset + length])

    def pread_nowait(self, length: int, offset: int) -> bytes | None:
        return self.pread(length, offset)

    def pwritev(self, buffers: Sequence[Buffer], offset: int) -> int:
        total = sum(map(len, buffers))
        if offset > len(self.content):
            self.content.extend(bytes(offset - len(self.content)))
        self.content[offset : offset + total] = b"".join(buffers)
        return total

    def fdatasync(self) -> None:
        """It is put when it is finished."""

    def write_out(self, offset: int, length: int) -> None:
        """As above."""

    def drop_cache(self) -> None:
        """There is nothing behind it."""

    def allocate(self, size: int) -> None:
        self.content.extend(bytes(max(0, size - len(self.content))))

    def truncate(self, size: int) -> None:
        self.allocate(size)
        del self.content[size:]

    def size(self) -> int:
        return len(self.content)

    def close(self) -> None:
        """It goes with the last reference to it."""


class _ObjectDraft(Draft):
    def __init__(self, shelf: ObjectShelf, row: GroupRow) -> None:
        self._shelf = shelf
        self._row = row
        self._put = False
        self._memory = DraftFile(shelf.name(row))
        self.file = self._memory

    def finish(self, row: GroupRow) -> GroupRow:
        """Put it, and read all of it back: only what was seen to be there may be relied on."""
        self._put = True
        row.nonce = self._row.nonce
        self._shelf.put(self._row, self._memory.content)
        return row

    def publish(self) -> None:
        """It has its name from the first."""

    def abandon(self) -> None:
        if self._put:
            self._shelf.remove(self._row)


class ObjectShelf(Shelf):
    """Groups below ``<pool uuid>/`` in a store of blobs."""

    def __init__(
        self, blobs: Blobs, pool_id: UUID, url: str, clock: Clock, random: Randomness, kept_bytes: int
    ) -> None:
        self._blobs = blobs
        self._pool_id = pool_id
        self._url = url.rstrip("/")
        self._clock = clock
        self._random = random
        self._chunks: Lru[tuple[str, int], bytes] = Lru(kept_bytes)
        self._in_the_making: set[str] = set()

    def _key(self, row: GroupRow) -> str:
        return f"{self._pool_id}/{row.number:08x}.{row.generation:04x}.{row.nonce}"

    def name(self, row: GroupRow) -> str:
        return f"{self._url}/{self._key(row)}"

    def open(self, row: GroupRow, *, fresh: bool = False) -> File:
        chunks = Lru[tuple[str, int], bytes](2 * MOST_CHUNKS * CHUNK_BYTES) if fresh else self._chunks
        return ObjectFile(self._blobs, self._key(row), self.name(row), row.size_bytes, chunks)

    def draft(self, number: int, generation: int) -> Draft:
        nonce = self._random.token(NONCE_BYTES).hex()
        return _ObjectDraft(self, GroupRow(number, generation, "", 0, 0, nonce=nonce))

    def put(self, row: GroupRow, content: bytearray) -> None:
        """Store an object and see that it is there. Raises ``OSError``."""
        key = self._key(row)
        self._in_the_making.add(key)
        try:
            self._blobs.put(key, [content])
            if self._blobs.size(key) != len(content) or not self._is_there(key, content):
                raise StoreError(errno.EIO, "what was stored is not what is read back", self.name(row))
        except Conflict as taken:
            raise StoreError(errno.EEXIST, str(taken), self.name(row)) from taken
        except Problem as problem:
            raise as_os_error(problem, self.name(row)) from problem
        finally:
            self._in_the_making.discard(key)

    def _is_there(self, key: str, content: bytearray) -> bool:
        return all(
            self._blobs.get(key, at, VERIFY_BYTES) == content[at : at + VERIFY_BYTES]
            for at in range(0, len(content), VERIFY_BYTES)
        )

    def remove(self, row: GroupRow) -> None:
        """What cannot be removed now is an orphan, and goes with those."""
        try:
            self._blobs.delete(self._key(row))
        except Problem:
            return

    def found(self) -> Iterator[Found]:
        try:
            for facts in self._blobs.ls(f"{self._pool_id}/"):
                place = parse_object_name(facts.name.rpartition("/")[2])
                if place is not None and facts.name not in self._in_the_making:
                    yield Found(*place, facts.modified_at, facts.size_bytes)
        except Problem as problem:
            raise as_os_error(problem, self._url) from problem

    def remove_orphans(self, rows: dict[int, GroupRow], next_number: int) -> int:
        """Remove objects of this pool that no row has named for a day; the highest number seen. Raises ``OSError``."""
        youngest = 0
        for each in list(self.found()):
            youngest = max(youngest, each.number)
            row = rows.get(each.number)
            if each.number >= next_number or self._clock.now() - each.modified_at < ORPHAN_S:
                continue
            if row is None or (row.generation, row.nonce) != (each.generation, each.nonce):
                self.remove(GroupRow(each.number, each.generation, "", 0, 0, nonce=each.nonce))
        return youngest


def parse_object_name(name: str) -> tuple[int, int, str] | None:
    """(number, generation, nonce) of an object's name."""
    parts = name.split(".")
    if len(parts) != 3 or len(parts[2]) != 2 * NONCE_BYTES:
        return None
    try:
        return int(parts[0], 16), int(parts[1], 16), parts[2]
    except ValueError:
        return None
