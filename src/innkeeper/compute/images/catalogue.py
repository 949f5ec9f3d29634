"""The images that ``inn image build`` knows: one row each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

from innkeeper.compute.images.built import BuiltImage
from innkeeper.compute.images.debian import build_debian
from innkeeper.compute.images.probe import build_probe
from innkeeper.model.problems import NotFound


class Builder(Protocol):
    """Builds one image as a raw disk at ``destination``, whole or not at all; blocks, raises ``Problem``."""

    def __call__(self, destination: Path, *, cache_dir: Path, progress: Callable[[float, str], None]) -> BuiltImage: ...


CATALOGUE: Mapping[str, Builder] = {
    "probe": build_probe,
    "debian/12": partial(build_debian, "12"),
    "debian/13": partial(build_debian, "13"),
}


def find(name: str) -> Builder:
    """The builder of image ``name``.

    Raises ``NotFound`` (``image.unknown``) naming what can be built.
    """
    builder = CATALOGUE.get(name)
    if builder is None:
        raise NotFound(
            "image.unknown",
            f"there is no recipe for an image {name!r}",
            remedy=f"build one of {', '.join(CATALOGUE)}; or import a file: inn image import NAME FILE",
        )
    return builder
