"""Drivers of repositories pass the suite of all drivers of blobs; what is particular to directories."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from blobs_conformance import BlobsConformance
from memory_blobs import MemoryBlobs

from innkeeper.model.problems import Failed, Invalid, NoSpace, Unavailable
from innkeeper.protect import blobs as blobs_module
from innkeeper.protect.blobs import DRIVERS, Blobs, DirectoryBlobs

MAKERS: dict[str, Callable[[Path], Blobs]] = {"memory": lambda path: MemoryBlobs(), **DRIVERS}


@pytest.fixture(params=sorted(MAKERS))
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return MAKERS[request.param](tmp_path)


class TestEveryDriver(BlobsConformance):
    """The shared suite."""


def test_local_path_holds_the_bytes(blobs: Blobs) -> None:
    blobs.put("a/b", [b"x"])
    path = blobs.local_path("a/b")
    assert path is None or path.read_bytes() == b"x"


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a//b", "tmp/x", "a/./b"])
def test_directory_refuses_names_that_lead_astray(tmp_path: Path, name: str) -> None:
    blobs = DirectoryBlobs(tmp_path)
    for ask in (lambda: blobs.put(name, [b""]), lambda: blobs.get(name), lambda: blobs.delete(name)):
        with pytest.raises(Invalid, match="blob.name"):
            ask()


@pytest.mark.parametrize(
    ("number", "problem"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.EIO, Failed),
        (errno.EACCES, Failed),
        (errno.ESTALE, Unavailable),
    ],
)
@pytest.mark.parametrize("call", ["writev", "fsync", "link"])
def test_directory_a_failed_put_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, problem: type[Exception], call: str
) -> None:
    blobs = DirectoryBlobs(tmp_path)
    blobs.put("a/before", [b"x"])

    def fail(*_arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(blobs_module.os, call, fail)
        with pytest.raises(problem):
            blobs.put("a/new", [b"data"])
    assert [blob.name for blob in blobs.ls("a/")] == ["a/before"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_directory_writes_what_the_kernel_takes_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.writev
    monkeypatch.setattr(blobs_module.os, "writev", lambda fd, parts: real(fd, [parts[0][:3]]))
    blobs = DirectoryBlobs(tmp_path)
    blobs.put("a/b", [b"hello ", b"", b"there"])
    assert blobs.get("a/b") == b"hello there"


def test_directory_cleans_what_a_crash_left(tmp_path: Path) -> None:
    blobs = DirectoryBlobs(tmp_path)
    blobs.put("a/b", [b"x"])
    leftover = tmp_path / "tmp" / "0123"
    leftover.write_bytes(b"half")
    os.utime(leftover, (1, 1))
    (tmp_path / "tmp" / "young").write_bytes(b"in progress")
    assert blobs.clean(3600) == 1
    assert [path.name for path in (tmp_path / "tmp").iterdir()] == ["young"]
