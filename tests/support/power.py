"""A file system whose power can be cut: what was not synced is gone.

It is ext4 in a file. ``cut`` has the kernel shut it down without writing its journal or anything else (ext4's own way
to test this), so that mounting it again recovers exactly what had been on the medium.
"""

from __future__ import annotations

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSH = 2


class Mains:
    """The file system at ``path``."""

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self._image = directory / "medium.img"
        self.path = directory / "mains"
        self.path.mkdir()
        self._image.touch()
        os.truncate(self._image, size_bytes)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", self._image], check=True)
        self._mount()

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", self._image, self.path], check=True)
        self.path.chmod(0o755)

    def cut(self) -> None:
        """From now on nothing reaches the medium, and what has not reached it never will."""
        directory = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(directory, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(directory)

    def restore(self) -> None:
        """Mount it again after a cut; nobody may have a file of it open."""
        subprocess.run(["umount", self.path], check=True)
        self._mount()

    def close(self) -> None:
        subprocess.run(["umount", self.path], check=True)
        self._image.unlink()


@contextmanager
def mains(directory: Path, size_bytes: int) -> Iterator[Mains]:
    made = Mains(directory, size_bytes)
    try:
        yield made
    finally:
        made.close()
