"""Whole pages written past the page cache arrive as they are, on any file system and any medium."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from random import Random

import pytest

from innkeeper.system import direct
from innkeeper.system.direct import aligned_buffer
from innkeeper.system.files import RealFiles, write_all_pages

MIB = 1 << 20


def written(path: Path, pieces: int) -> tuple[bytes, bytes]:
    """(what was written, in pieces of 1 MiB, and what the file has)."""
    files = RealFiles()
    file = files.open(str(path), create=True)
    buffer = aligned_buffer(MIB)
    wanted = b""
    try:
        for piece in range(pieces):
            data = Random(piece).randbytes(MIB)
            buffer[:] = data
            write_all_pages(file, buffer, piece * MIB)
            wanted += data
            assert file.pread(MIB, piece * MIB) == data, "a reader finds it at once"
        return wanted, path.read_bytes()
    finally:
        file.close()
        path.unlink()


def test_pages_arrive_on_two_file_systems(tmp_path: Path) -> None:
    for place in (tmp_path / "direct", Path("/dev/shm") / f"direct-{os.getpid()}"):  # the second has no medium
        wanted, found = written(place, 3)
        assert found == wanted


@pytest.mark.parametrize("taken", [None, 512, 4096 * 3])
def test_what_is_not_taken_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int | None
) -> None:
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        if taken is None or offset % 4096:
            raise OSError(errno.EINVAL, "unaligned for this device")
        return real(fd, data[:taken], offset)

    monkeypatch.setattr(direct.os, "pwrite", pwrite)
    wanted, found = written(tmp_path / "direct", 2)
    assert found == wanted


def test_a_slow_medium_gets_its_writes_through_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    past: list[int] = []
    real = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        past.append(offset)
        return real(fd, data, offset)

    monkeypatch.setattr(direct.os, "pwrite", pwrite)
    monkeypatch.setattr(direct, "QUICK_BYTES_S", 1 << 60)
    wanted, found = written(tmp_path / "direct", 6)
    assert found == wanted
    assert len(past) == direct.MOST_SLOW


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(direct.os, "pwrite", pwrite)
    with pytest.raises(OSError, match="no space"):
        written(tmp_path / "direct", 1)


def test_a_closed_file_has_no_second_descriptor_left(tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    written(tmp_path / "direct", 1)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
