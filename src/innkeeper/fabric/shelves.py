"""Shelves: what a device keeps its groups in. A directory of files, or (``objects``) an object store.

A group is written whole as a *draft*, which has no place yet: a crash's remains are swept up. ``finish`` does the slow
part, putting it on the medium, and returns its row; ``publish`` gives it its name; only then is the row swapped.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

from innkeeper.fabric.groups import UNFINISHED, group_path, parse_group_name
from innkeeper.fabric.meta import GroupRow
from innkeeper.system.files import File, FileSystem


class Found(NamedTuple):
    """A group that lies on a shelf, whether a row names it or not; ``modified_at`` in seconds since 1970."""

    number: int
    generation: int
    nonce: str = ""
    modified_at: float = 0.0
    size_bytes: int = 0
    """Of an object."""


class Draft(ABC):
    """A generation of a group in the making."""

    file: File

    @abstractmethod
    def finish(self, row: GroupRow) -> GroupRow:
        """Put what was written and synced on the shelf's medium; the row to record. Raises ``OSError``."""

    @abstractmethod
    def publish(self) -> None:
        """Give it its name. Quick. Raises ``OSError``."""

    @abstractmethod
    def abandon(self) -> None:
        """Leave nothing of it, as far as that can be done now."""


class Shelf(ABC):
    """Groups by their rows. Every call but ``name`` may raise ``OSError``."""

    @abstractmethod
    def name(self, row: GroupRow) -> str:
        """Where a group is, for people."""

    @abstractmethod
    def open(self, row: GroupRow, *, fresh: bool = False) -> File:
        """A group to read; ``fresh``: from its medium, not from what this process keeps of it."""

    @abstractmethod
    def draft(self, number: int, generation: int) -> Draft:
        """Begin a generation of a group."""

    @abstractmethod
    def remove(self, row: GroupRow) -> None:
        """Take a group away that no row names any more."""

    @abstractmethod
    def found(self) -> Iterator[Found]:
        """All groups that lie here."""


class _FileDraft(Draft):
    def __init__(self, files: FileSystem, directory: str, path: str) -> None:
        self._files = files
        self._directory = directory
        self._path = path
        self._named = False
        self.file = files.open(path + UNFINISHED, create=True)
        self.file.truncate(0)

    def finish(self, row: GroupRow) -> GroupRow:
        return row

    def publish(self) -> None:
        self._files.rename(self._path + UNFINISHED, self._path)
        self._named = True
        self._files.sync_dir(self._directory)

    def abandon(self) -> None:
        with suppress(OSError):  # what cannot be removed now goes when the pool is opened again
            self._files.unlink(self._path if self._named else self._path + UNFINISHED)


class DirectoryShelf(Shelf):
    """Files of a directory."""

    def __init__(self, files: FileSystem, directory: str) -> None:
        self._files = files
        self._directory = directory

    def name(self, row: GroupRow) -> str:
        return group_path(self._directory, row.number, row.generation)

    def open(self, row: GroupRow, *, fresh: bool = False) -> File:
        return self._files.open(self.name(row))

    def draft(self, number: int, generation: int) -> Draft:
        return _FileDraft(self._files, self._directory, group_path(self._directory, number, generation))

    def remove(self, row: GroupRow) -> None:
        self._files.unlink(self.name(row))

    def found(self) -> Iterator[Found]:
        for name in self._files.listdir(self._directory):
            place = parse_group_name(name)
            if place is not None:
                yield Found(*place)

    def clear_unfinished(self) -> None:
        """Remove what a crash left of drafts."""
        for name in self._files.listdir(self._directory):
            if name.endswith(UNFINISHED):
                self._files.unlink(f"{self._directory}/{name}")
