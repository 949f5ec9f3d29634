"""What goes past the page cache arrives as it is, on any file system."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, strategies as st

from innkeeper.system import bulk
from innkeeper.system.files import Buffer

MIB = 1 << 20


def written(path: Path, parts: Sequence[Buffer]) -> bytes:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        bulk.write_bulk(fd, parts)
    finally:
        os.close(fd)
    return path.read_bytes()


@given(st.lists(st.integers(0, 3 * MIB), max_size=5), st.integers(0, 2**32))
def test_all_parts_arrive_in_order(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], seed: int) -> None:
    random = Random(seed)
    parts = [random.randbytes(size) for size in sizes]
    assert written(tmp_path_factory.getbasetemp() / "bulk", parts) == b"".join(parts)


@pytest.mark.parametrize("size", [MIB, 4 * MIB, 4 * MIB + 1, 8 * MIB - 1, 8 * MIB, 9 * MIB + 4096])
def test_sizes_around_the_buffer_on_two_file_systems(tmp_path: Path, size: int) -> None:
    data = Random(size).randbytes(size)
    view = memoryview(data)
    parts = [view[: size // 3], bytearray(view[size // 3 :])]
    for place in (tmp_path / "bulk", Path("/dev/shm") / f"bulk-{os.getpid()}"):  # the second has no medium
        try:
            assert written(place, parts) == data
        finally:
            place.unlink(missing_ok=True)


@pytest.mark.parametrize("taken", [None, 512, 4096 * 3])
def test_what_is_not_taken_directly_goes_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int | None
) -> None:
    """A file system that refuses the direct write after all, or takes a part of it."""
    real = os.write

    def write(fd: int, data: Buffer) -> int:
        if taken is None:
            raise OSError(errno.EINVAL, "unaligned for this device")
        return real(fd, memoryview(data)[:taken])

    monkeypatch.setattr(bulk.os, "write", write)
    data = Random(1).randbytes(6 * MIB + 77)
    assert written(tmp_path / "bulk", [data]) == data


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(fd: int, data: Buffer) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(bulk.os, "write", write)
    with pytest.raises(OSError, match="no space"):
        written(tmp_path / "bulk", [bytes(2 * MIB)])
