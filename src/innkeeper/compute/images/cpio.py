"""Writer of the cpio "newc" format that Linux unpacks as an initramfs.

Format: kernel documentation, driver-api/early-userspace/buffer-format. Header: magic "070701" and 13 fields of eight
hexadecimal digits; name and content are each padded to four bytes.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory, symlink (``data`` is its target) or device of an initramfs; owned by root."""

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)

    @classmethod
    def directory(cls, path: str) -> Entry:
        return cls(path, stat.S_IFDIR | 0o755)

    @classmethod
    def file(cls, path: str, data: bytes, *, executable: bool = False) -> Entry:
        return cls(path, stat.S_IFREG | (0o755 if executable else 0o644), data)

    @classmethod
    def character_device(cls, path: str, major: int, minor: int) -> Entry:
        return cls(path, stat.S_IFCHR | 0o600, device=(major, minor))


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _record(number: int, entry: Entry) -> bytes:
    name = entry.path.encode() + b"\0"
    fields = (number, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def archive(entries: Iterable[Entry]) -> bytes:
    """The uncompressed archive of ``entries``; directories must precede what they hold."""
    records = [_record(number, entry) for number, entry in enumerate(entries, start=1)]
    return b"".join(records) + _record(0, Entry(_TRAILER, 0))
