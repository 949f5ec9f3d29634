"""What an image build returns, and how a built file is put in its place."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from innkeeper.model.problems import NoSpace
from innkeeper.system import process


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """A raw disk image that was built."""

    path: Path
    size_bytes: int


def narrow(progress: Callable[[float, str], None], start: float, end: float) -> Callable[[float, str], None]:
    """A progress callback for a part of the work: 0..1 of the part is ``start``..``end`` of the whole."""

    def inner(fraction: float, text: str) -> None:
        progress(start + (end - start) * fraction, text)

    return inner


def publish(image: Path, destination: Path) -> None:
    """Move the finished ``image`` to ``destination`` atomically, keeping it sparse, also across file systems.

    Raises ``NoSpace`` (``image.no_space``).
    """
    apart = destination.with_name(destination.name + ".part")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        if image.stat().st_dev == destination.parent.stat().st_dev:
            image.rename(apart)
        else:
            process.run(["cp", "--sparse=always", str(image), str(apart)], timeout_s=600)
        with apart.open("rb") as file:
            os.fsync(file.fileno())
        apart.rename(destination)
    except OSError as full:
        with contextlib.suppress(OSError):
            apart.unlink()
        raise NoSpace(
            "image.no_space",
            f"{destination} could not be written",
            cause=str(full),
            remedy="free disk space there, or choose another place",
        ) from full
