"""A file is put in another's place whole, or the other one stays."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest

from innkeeper.system.files import Buffer, RealFile, RealFiles, put_file


def test_the_new_one_takes_the_place(tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    for data in (b"first, and longer", b"second"):
        put_file(RealFiles(), str(path), data)
        assert path.read_bytes() == data
    assert [each.name for each in tmp_path.iterdir()] == ["facts.json"]


def test_what_is_there_stays_though_it_has_the_new_ones_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a power cut in a rename, when the write that follows fails."""

    def pwritev(self: RealFile, buffers: Sequence[Buffer], offset: int) -> int:
        raise OSError(errno.ENOSPC, "no space")

    path = tmp_path / "facts.json"
    path.write_bytes(b"first")
    (tmp_path / "facts.json.new").hardlink_to(path)
    monkeypatch.setattr(RealFile, "pwritev", pwritev)
    with pytest.raises(OSError, match="no space"):
        put_file(RealFiles(), str(path), b"second")
    assert path.read_bytes() == b"first"
