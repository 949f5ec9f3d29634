"""Layers: the undrained writes of a disk, from one snapshot to the next.

The open layer of a disk takes its writes; a snapshot seals it. A layer stands on another (``base``) or on a root, and a
view is the chain from a layer down to the root. ``pages`` maps a page number to ``log position << 32 | CRC-32C``, 0 for
a zeroed page; ``blocks`` maps a block that went past the log to the map entry of its extent; ``zeros`` holds long
zeroed ranges. An entry of ``pages`` is younger than one of ``blocks`` for the same place, and that than a zeroed range.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from innkeeper.fabric.layout import BLOCK, EMPTY_ROOT, PAGE, PAGES_PER_BLOCK, Root
from innkeeper.fabric.ranges import RangeSet

ZEROED = 0
SHORT_ZERO_PAGES = 32
POSITION_SHIFT = 32
CRC_MASK = (1 << POSITION_SHIFT) - 1


class View(NamedTuple):
    """What a reader looks through: layers, the youngest first, then the root."""

    layers: tuple[Layer, ...]
    root: Root


class Layer:
    """Undrained writes of disk ``number`` with sequences in ``(from_seq, seal_seq]``."""

    __slots__ = (
        "base",
        "blocks",
        "damaged",
        "first_seq",
        "from_seq",
        "gone",
        "groups",
        "id",
        "number",
        "pages",
        "root",
        "seal_seq",
        "view",
        "zeros",
    )

    def __init__(self, number: int, from_seq: int, base: Layer | None, root: Root = EMPTY_ROOT) -> None:
        self.id = 0
        """Number in meta; 0 while nothing durable stands on it."""
        self.number = number
        self.from_seq = from_seq
        self.seal_seq: int | None = None
        self.base = base
        self.root = root
        """The root it stands on; meaningful when ``base`` is none."""
        self.pages: dict[int, int] = {}
        self.blocks: dict[int, int] = {}
        self.groups: set[int] = set()
        """Groups that its records in the log name: they are not removed before it is drained, or a recovery would take
        them for lost."""
        self.zeros = RangeSet()
        self.first_seq: int | None = None
        """Sequence of its oldest record in the log."""
        self.gone = False
        """Drained or dropped: log positions taken from it may be stale."""
        self.damaged: str | None = None
        """Why its content cannot be given out, when recovery found a part of it damaged."""
        self.view = View((self,), root)
        self.relink()

    def relink(self) -> None:
        """Compute ``view`` anew after something below has changed."""
        chain: list[Layer] = [self]
        layer = self
        while layer.base is not None:
            layer = layer.base
            if not layer.empty:
                chain.append(layer)
        self.view = View(tuple(chain), layer.root)

    @property
    def empty(self) -> bool:
        return not self.pages and not self.blocks and not self.zeros

    @property
    def data_bytes(self) -> int:
        """What it holds, a block that some pages were written over counted with both."""
        return PAGE * len(self.pages) + BLOCK * len(self.blocks)

    def put(self, page: int, position: int, crcs: Sequence[int]) -> None:
        """Pages from ``page`` on are in the log from ``position`` on."""
        pages = self.pages
        if len(crcs) == 1:
            pages[page] = position << 32 | crcs[0]
            return
        for crc in crcs:
            pages[page] = position << 32 | crc
            page += 1
            position += 1

    def put_blocks(self, block: int, entries: Sequence[int], groups: Iterable[int]) -> None:
        """Blocks from ``block`` on are the extents with those map entries; the record tells where ``groups`` are."""
        self.groups.update(groups)
        if self.pages:
            for page in range(block * PAGES_PER_BLOCK, (block + len(entries)) * PAGES_PER_BLOCK):
                self.pages.pop(page, None)
        self.blocks.update(zip(range(block, block + len(entries)), entries, strict=True))

    def zero(self, page: int, count: int) -> None:
        """``count`` pages from ``page`` on read as zeros."""
        pages = self.pages
        if count <= SHORT_ZERO_PAGES:
            for each in range(page, page + count):
                pages[each] = ZEROED
            return
        if count < len(pages):
            for each in range(page, page + count):
                pages.pop(each, None)
        else:
            for each in [known for known in pages if page <= known < page + count]:
                del pages[each]
        if self.blocks:
            self._zero_blocks(page, page + count)
        self.zeros.add(page, page + count)

    def _zero_blocks(self, page: int, end: int) -> None:
        """Forget the blocks within the range; of those at its edges only the pages within it are zeroed."""
        first, last = page // PAGES_PER_BLOCK, (end - 1) // PAGES_PER_BLOCK
        for edge in {first, last}:
            start, stop = max(page, edge * PAGES_PER_BLOCK), min(end, (edge + 1) * PAGES_PER_BLOCK)
            if edge in self.blocks and stop - start < PAGES_PER_BLOCK:
                self.pages.update(dict.fromkeys(range(start, stop), ZEROED))
        whole = range(-(-page // PAGES_PER_BLOCK), end // PAGES_PER_BLOCK)
        if len(whole) < len(self.blocks):
            for each in whole:
                self.blocks.pop(each, None)
        else:
            for each in [known for known in self.blocks if known in whole]:
                del self.blocks[each]

    def moved(self, places: dict[int, int]) -> None:
        """Log positions changed; see ``OpLog.on_moved``."""
        for page, value in self.pages.items():
            place = places.get(value >> POSITION_SHIFT)
            if value and place is not None:
                self.pages[page] = place << POSITION_SHIFT | value & CRC_MASK


def find(layers: tuple[Layer, ...], page: int) -> int | None:
    """The value of a page in the youngest layer that has it: ``ZEROED`` for zeros, a map entry negated for a page of a
    block that went past the log; or ``None``."""
    for layer in layers:
        value = layer.pages.get(page)
        if value is not None:
            return value
        if layer.blocks:
            entry = layer.blocks.get(page // PAGES_PER_BLOCK)
            if entry is not None:
                return -entry
        if layer.zeros and page in layer.zeros:
            return ZEROED
    return None
