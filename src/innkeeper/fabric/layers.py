"""Layers: the undrained writes of a disk, from one snapshot to the next.

The open layer of a disk takes its writes; a snapshot seals it. A layer stands on another (``base``) or on a root, and a
view is the chain from a layer down to the root. ``pages`` maps a page number to ``log position << 32 | CRC-32C``, 0 for
a zeroed page; ``zeros`` holds long zeroed ranges, over which an entry of ``pages`` wins, being younger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from innkeeper.fabric.layout import EMPTY_ROOT, Root
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
        "damaged",
        "first_seq",
        "from_seq",
        "gone",
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
        return not self.pages and not self.zeros

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
        self.zeros.add(page, page + count)

    def moved(self, places: dict[int, int]) -> None:
        """Log positions changed; see ``OpLog.on_moved``."""
        for page, value in self.pages.items():
            place = places.get(value >> POSITION_SHIFT)
            if value and place is not None:
                self.pages[page] = place << POSITION_SHIFT | value & CRC_MASK


def find(layers: tuple[Layer, ...], page: int) -> int | None:
    """The value of a page in the youngest layer that has it (``ZEROED`` for zeros), or ``None``."""
    for layer in layers:
        value = layer.pages.get(page)
        if value is not None:
            return value
        if layer.zeros and page in layer.zeros:
            return ZEROED
    return None
