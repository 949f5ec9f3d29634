"""Pools that earlier versions wrote are opened, read the same, and go on; the newest format has its frozen pool too."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from frozen_pool import DISK, FROZEN, LIMITS, STORAGE, digests, thaw, write

from innkeeper.fabric.meta import VERSION
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Corrupt
from innkeeper.system.files import Io

VERSIONS = range(1, VERSION + 1)


def opened(directory: Path) -> Pool:
    return Pool.open(Io(), str(directory), limits=LIMITS, background=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pool_of_every_version_reads_as_it_was_written(version: int, tmp_path: Path) -> None:
    frozen = json.loads((FROZEN / f"pool-v{version}.json").read_text())
    thaw(frozen, tmp_path)
    for _ in range(2):
        pool = opened(tmp_path)
        assert digests(pool) == frozen["digests"]
        pool.drain()
        assert digests(pool) == frozen["digests"]
        assert pool.check()["problems"] == []
        pool.close()
    with sqlite3.connect(tmp_path / "meta.db") as meta:
        assert meta.execute("PRAGMA user_version").fetchone() == (VERSION,)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pool_of_every_version_is_written_on(version: int, tmp_path: Path) -> None:
    thaw(json.loads((FROZEN / f"pool-v{version}.json").read_text()), tmp_path)
    pool = opened(tmp_path)
    (storage,) = pool.storage_ls()
    assert (storage["compression"], storage["level"], storage["dedup"]) == ("lz4", 0, True)
    pool.storage_set(STORAGE, compression="zstd", level=9)
    write(pool, DISK, {0: b"of a later version " * 10_000})
    found = digests(pool)
    pool.drain()
    pool.close()
    pool = opened(tmp_path)
    assert digests(pool) == found
    assert pool.storage_ls()[0]["compression"] == "zstd"
    pool.close()


def test_a_pool_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    thaw(json.loads((FROZEN / "pool-v1.json").read_text()), tmp_path)
    with sqlite3.connect(tmp_path / "meta.db") as meta:
        meta.execute(f"PRAGMA user_version={VERSION + 1}")
    meta.close()
    before = (tmp_path / "meta.db").read_bytes()
    with pytest.raises(Corrupt, match=f"has format {VERSION + 1}") as refused:
        opened(tmp_path)
    assert refused.value.code == "meta.format"
    assert "newer" in str(refused.value.remedy)
    assert (tmp_path / "meta.db").read_bytes() == before
