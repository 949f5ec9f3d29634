"""Disk maps of a repository: a radix of nodes that name blocks, shared between restore points where equal.

A node has 1,024 places of 32-byte names; a leaf's places are 64 KiB blocks, an inner node's are nodes. An empty place
is a hole. Stored form: version, level, count, a bitmap of the places taken (128 bytes), their names in order.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from innkeeper.fabric.layout import CODEC_RAW, FANOUT, levels_for
from innkeeper.protect.index import Names
from innkeeper.protect.pack import Encoded
from innkeeper.protect.sealing import NAME_BYTES

_HEADER = struct.Struct("<BBH4x")
_VERSION = 1
_BITMAP_BYTES = FANOUT // 8
NO_NAME = bytes(NAME_BYTES)
_CACHED_NODES = 64


class MapRoot(NamedTuple):
    """The top of a disk's map: its node's name (``None``: all holes) and how many levels there are."""

    name: bytes | None
    levels: int


class Leaf(NamedTuple):
    """A leaf of a map: its first block, and the names of its blocks, shape (1024, 32), zeros where holes are."""

    first_block: int
    names: Names


def empty_node() -> Names:
    """The places of a node without names."""
    return np.zeros((FANOUT, NAME_BYTES), dtype=np.uint8)


def taken_places(names: Names) -> NDArray[np.bool_]:
    """Which places of a node are not holes."""
    return np.asarray(names.any(axis=1), dtype=np.bool_)


def encode_node(names: Names, level: int) -> Encoded:
    """The stored form of a node."""
    present = taken_places(names)
    plaintext = (
        _HEADER.pack(_VERSION, level, int(present.sum()))
        + np.packbits(present, bitorder="little").tobytes()
        + names[present].tobytes()
    )
    return Encoded(blake3(plaintext).digest(), plaintext, len(plaintext), CODEC_RAW)


def decode_node(plaintext: bytes, level: int) -> Names:
    """The places of a node of that level. Raises ``ValueError`` when it is none."""
    if len(plaintext) < _HEADER.size + _BITMAP_BYTES:
        raise ValueError("a map node is too short")
    version, stored_level, count = _HEADER.unpack_from(plaintext)
    bitmap = np.frombuffer(plaintext, dtype=np.uint8, count=_BITMAP_BYTES, offset=_HEADER.size)
    present = np.unpackbits(bitmap, bitorder="little").astype(np.bool_)
    expected = _HEADER.size + _BITMAP_BYTES + count * NAME_BYTES
    if version != _VERSION or stored_level != level or present.sum() != count or len(plaintext) != expected:
        raise ValueError(f"a map node of level {level} was expected")
    names = empty_node()
    listed = np.frombuffer(plaintext, dtype=np.uint8, offset=_HEADER.size + _BITMAP_BYTES)
    names[present] = listed.reshape(-1, NAME_BYTES)
    return names


class MapReader:
    """Reads nodes through ``load`` (name -> plaintext, verified), keeping the last used ones."""

    def __init__(self, load: Callable[[bytes], bytes]) -> None:
        self._load = load
        self._cache: OrderedDict[tuple[bytes, int], Names] = OrderedDict()
        self._fresh: dict[tuple[bytes, int], Names] = {}

    def node(self, name: bytes, level: int) -> Names:
        """The places of that node; not to be changed."""
        held = self._cache.get((name, level), self._fresh.get((name, level)))
        if held is None:
            held = decode_node(self._load(name), level)
            self._cache[(name, level)] = held
            if len(self._cache) > _CACHED_NODES:
                self._cache.popitem(last=False)
        else:
            self._cache[(name, level)] = held
            self._cache.move_to_end((name, level))
        return held

    def add(self, name: bytes, level: int, places: Names) -> None:
        """Know a node that was just made and cannot be loaded yet."""
        self._fresh[(name, level)] = places

    def leaf(self, root: MapRoot, number: int) -> Names:
        """The places of leaf ``number`` (of 1,024 blocks each), in a copy."""
        name, level = root.name or NO_NAME, root.levels - 1
        while True:
            if name == NO_NAME:
                return empty_node()
            places = self.node(name, level)
            if level == 0:
                return places.copy()
            level -= 1
            name = places[number // FANOUT**level % FANOUT].tobytes()

    def walk(self, root: MapRoot, visit: Callable[[bytes, int], bool] | None = None) -> Iterator[Leaf]:
        """The leaves that hold anything, in order. ``visit(name, level)`` before a node is read: false skips it."""
        if root.name is not None:
            yield from self._walk(root.name, root.levels - 1, 0, visit)

    def _walk(self, name: bytes, level: int, number: int, visit: Callable[[bytes, int], bool] | None) -> Iterator[Leaf]:
        if visit is not None and not visit(name, level):
            return
        places = self.node(name, level)
        if level == 0:
            yield Leaf(number * FANOUT, places)
            return
        for place in np.flatnonzero(taken_places(places)):
            yield from self._walk(places[place].tobytes(), level - 1, number * FANOUT + int(place), visit)


class MapBuilder:
    """Makes a disk's map, on top of ``base`` or from nothing; ``store(encoded) -> name`` keeps a node."""

    def __init__(
        self, size_bytes: int, store: Callable[[Encoded], bytes], reader: MapReader, base: MapRoot | None = None
    ) -> None:
        self.levels = levels_for(size_bytes)
        self._store = store
        self._reader = reader
        self._base = self._raised(base) if base is not None else MapRoot(None, self.levels)
        self._changed: dict[int, bytes] = {}
        self._leaf_number = -1
        self._leaf = empty_node()
        self._dirty = False
        self.added_blocks = 0
        """Blocks that hold something now and were holes in the base, less those that became holes."""

    def _raised(self, base: MapRoot) -> MapRoot:
        """The base's map under as many levels as this disk has, after it grew."""
        if base.levels > self.levels:
            raise ValueError("a map cannot stand on one of a larger disk")
        name, levels = base
        while levels < self.levels:
            if name is not None:
                places = empty_node()
                places[0] = np.frombuffer(name, dtype=np.uint8)
                name = self._store(encode_node(places, levels))
                self._reader.add(name, levels, places)
            levels += 1
        return MapRoot(name, levels)

    def set(self, block: int, name: bytes) -> None:
        """Let ``block`` be ``name`` (``NO_NAME``: a hole). Blocks come in ascending order."""
        number, place = divmod(block, FANOUT)
        if number != self._leaf_number:
            self._end_leaf()
            self._leaf_number = number
            self._leaf = self._reader.leaf(self._base, number)
        self.added_blocks += (name != NO_NAME) - bool(self._leaf[place].any())
        self._leaf[place] = np.frombuffer(name, dtype=np.uint8)
        self._dirty = True

    def _end_leaf(self) -> None:
        if self._dirty:
            self._changed[self._leaf_number] = self._stored(self._leaf, 0)
        self._dirty = False

    def _stored(self, places: Names, level: int) -> bytes:
        return self._store(encode_node(places, level)) if places.any() else NO_NAME

    def finish(self) -> MapRoot:
        """Store what changed up to the root."""
        self._end_leaf()
        changed = self._changed
        for level in range(1, self.levels):
            parents: dict[int, dict[int, bytes]] = {}
            for number, name in changed.items():
                parents.setdefault(number // FANOUT, {})[number % FANOUT] = name
            changed = {}
            for number, children in sorted(parents.items()):
                places = self._base_node(level, number)
                for place, name in children.items():
                    places[place] = np.frombuffer(name, dtype=np.uint8)
                changed[number] = self._stored(places, level)
        if not changed:
            return self._base
        name = changed[0]
        return MapRoot(None if name == NO_NAME else name, self.levels)

    def _base_node(self, level: int, number: int) -> Names:
        """The base's node ``number`` of that level, in a copy."""
        name, at = self._base.name or NO_NAME, self.levels - 1
        while name != NO_NAME and at > level:
            at -= 1
            name = self._reader.node(name, at + 1)[number // FANOUT ** (at - level) % FANOUT].tobytes()
        return empty_node() if name == NO_NAME else self._reader.node(name, level).copy()
