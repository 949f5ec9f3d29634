"""What a disk of the simulated world must hold, page by page, and what it may hold after a power cut."""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 4096
ZERO = bytes(PAGE)


@dataclass
class Content:
    """Bytes of a disk or snapshot by page."""

    size: int
    pages: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> Content:
        return Content(self.size, dict(self.pages))

    def page(self, number: int) -> bytes:
        return self.pages.get(number, ZERO)

    def write(self, offset: int, data: bytes) -> dict[int, bytes]:
        """Put ``data``; returns what the touched pages were before."""
        before: dict[int, bytes] = {}
        at = 0
        while at < len(data):
            number, within = divmod(offset + at, PAGE)
            part = data[at : at + PAGE - within]
            old = self.page(number)
            before[number] = old
            new = old[:within] + part + old[within + len(part) :]
            if new == ZERO:
                self.pages.pop(number, None)
            else:
                self.pages[number] = new
            at += len(part)
        return before

    def resize(self, size: int) -> None:
        if size < self.size:
            for number in [each for each in self.pages if each * PAGE >= size]:
                del self.pages[number]
            if size % PAGE and size // PAGE in self.pages:
                self.write(size, bytes(PAGE - size % PAGE))
        self.size = size


@dataclass
class ModelDisk:
    content: Content
    attachment: str
    origin: str | None = None
    older: dict[int, set[bytes]] = field(default_factory=dict)
    """Values of pages that a power cut may bring back."""

    def write(self, offset: int, data: bytes) -> None:
        for number, value in self.content.write(offset, data).items():
            self.older.setdefault(number, set()).add(value)
