"""What a medium may hold after a power cut at any call of a recorded run.

``RecordedFiles`` notes every change and sync. A ``Medium`` follows those events one by one, and at each makes machines
with what may be there: of every file what was synced and any part of the writes that wait, each whole or torn at
sectors; of every directory what was synced and a prefix of the changes that wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

from innkeeper.system.simulation import (
    SECTOR,
    Change,
    DirectorySync,
    Event,
    FileSync,
    Inode,
    SimulatedFiles,
    Written,
    apply,
)

Fate = Callable[[Written], Iterator[tuple[int, bytes | None]]]


class RecordedFiles(SimulatedFiles):
    """``events`` holds all that was noted since the machine was made."""

    def __init__(self, seed: int = 0, *, capacity_bytes: int = 1 << 40) -> None:
        super().__init__(seed, capacity_bytes=capacity_bytes)
        self.events: list[Event] = []

    def noted(self, event: Event) -> None:
        self.events.append(event)


def kept(write: Written) -> Iterator[tuple[int, bytes | None]]:
    """All of a write."""
    yield write.offset, write.data


def lost(write: Written) -> Iterator[tuple[int, bytes | None]]:
    """Nothing of it."""
    yield from ()


def by_chance(random: Random) -> Fate:
    """Nothing, all or some sectors of each write."""

    def fate(write: Written) -> Iterator[tuple[int, bytes | None]]:
        lot = random.random()
        if lot < 0.35:
            return
        if write.data is None or lot < 0.65:
            yield write.offset, write.data
            return
        at = 0
        while at < len(write.data):
            size = min(len(write.data) - at, SECTOR - (write.offset + at) % SECTOR)
            if random.random() < 0.5:
                yield write.offset + at, write.data[at : at + size]
            at += size

    return fate


def all_but(chosen: Written) -> Fate:
    """One write is lost, though later ones are not."""
    return lambda write: lost(write) if write is chosen else kept(write)


def only(chosen: Written) -> Fate:
    """One write is there, though earlier ones are not."""
    return lambda write: kept(write) if write is chosen else lost(write)


@dataclass
class _Track:
    durable: bytearray
    waiting: list[Written] = field(default_factory=list)


class Medium:
    """See the module's docstring. ``start`` must have nothing waiting."""

    def __init__(self, start: SimulatedFiles) -> None:
        self._directories = set(start.directories)
        self._tracks = {id(inode): _Track(bytearray(inode.durable)) for inode in start.names.values()}
        self._inodes = list(start.names.values())
        self._names = {path: id(inode) for path, inode in start.names.items()}
        self._changes: list[Change] = []

    def follow(self, event: Event) -> None:
        """The next event has happened."""
        if isinstance(event, Change):
            if event.inode is not None:
                self._track(event.inode)
            self._changes.append(event)
        elif isinstance(event, Written):
            self._track(event.inode).waiting.append(event)
        elif isinstance(event, DirectorySync):
            for change in self._changes:
                if change.directory == event.directory:
                    _settle(self._names, change)
            self._changes = [change for change in self._changes if change.directory != event.directory]
        elif isinstance(event, FileSync):
            self._sync(self._track(event.inode), event.succeeded)

    def _track(self, inode: Inode) -> _Track:
        track = self._tracks.get(id(inode))
        if track is None:
            self._inodes.append(inode)  # its id is not given to another while it is kept
            track = self._tracks[id(inode)] = _Track(bytearray())
        return track

    def _sync(self, track: _Track, succeeded: bool) -> None:
        if succeeded:
            for write in track.waiting:
                apply(track.durable, write.offset, write.data)
        track.waiting.clear()

    @property
    def waiting(self) -> list[Written]:
        """Writes that a power cut may take."""
        return [write for track in self._tracks.values() for write in track.waiting]

    @property
    def waiting_names(self) -> int:
        return len(self._changes)

    def machine(self, fate: Fate, names: Callable[[int], int], seed: int = 0) -> SimulatedFiles:
        """A machine that comes up after a power cut. ``names``: of so many changes of a directory, how many stay."""
        left = dict(self._names)
        by_directory: dict[str, list[Change]] = {}
        for change in self._changes:
            by_directory.setdefault(change.directory, []).append(change)
        for changes in by_directory.values():
            for change in changes[: names(len(changes))]:
                _settle(left, change)
        contents: dict[str, bytearray] = {}
        for path, inode in sorted(left.items()):
            track = self._tracks[inode]
            content = contents[path] = bytearray(track.durable)
            for write in track.waiting:
                for offset, data in fate(write):
                    apply(content, offset, data)
        made = SimulatedFiles(seed)
        made.put_files(contents, self._directories)
        return made

    def note_directories(self, directories: set[str]) -> None:
        """Directories that were made meanwhile; making one counts at once."""
        self._directories |= directories


def _settle(names: dict[str, int], change: Change) -> None:
    if change.inode is None:
        names.pop(change.path, None)
    else:
        names[change.path] = id(change.inode)
