"""Working directories of builds and imports, which also vanish when their process was killed.

Whoever works in one holds a lock (flock) on it; a directory of that kind without a holder was left by a killed process
and is removed by the next one that makes its own.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from innkeeper.model.problems import NoSpace


@contextmanager
def working_directory(parent: Path, kind: str) -> Iterator[Path]:
    """A new directory ``KIND-…`` under ``parent``, removed at the end.

    Raises ``NoSpace`` (``image.no_space``) when it cannot be made.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with _alone(parent):
            _remove_abandoned(parent, kind)
            folder = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=parent))
            lock = _locked(folder)
    except OSError as refused:
        raise NoSpace(
            "image.no_space", f"{parent} cannot be worked in", cause=str(refused), remedy="free disk space there"
        ) from refused
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def _alone(parent: Path) -> Iterator[None]:
    """Nobody else makes or removes working directories meanwhile: a new one is not yet locked for an instant."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_abandoned(parent: Path, kind: str) -> None:
    for folder in parent.glob(f"{kind}-*"):
        if folder.is_dir() and (lock := _locked(folder)) is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the directory's lock; None when somebody else does."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
