"""Pools that earlier versions wrote are opened, read the same, and go on; the newest format has its frozen pool too."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest
from frozen_pool import DISK, FROZEN, LIMITS, STORAGE, digests, thaw, write

from innkeeper.fabric import logformat
from innkeeper.fabric.meta import VERSION
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Corrupt
from innkeeper.system.files import Io

FROZEN_POOLS = sorted(FROZEN.glob("pool-v*.json"))


def opened(directory: Path) -> Pool:
    return Pool.open(Io(), str(directory), limits=LIMITS, background=False)


def test_there_is_a_frozen_pool_of_every_format() -> None:
    names = {path.stem for path in FROZEN_POOLS}
    assert {name.split("-")[1] for name in names} == {f"v{version}" for version in range(1, VERSION + 1)}
    assert f"pool-v{VERSION}-log-v{logformat.VERSION}" in names


@pytest.mark.parametrize("path", FROZEN_POOLS, ids=lambda path: path.stem)
def test_a_pool_of_every_version_reads_as_it_was_written(path: Path, tmp_path: Path) -> None:
    frozen = json.loads(path.read_text())
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


@pytest.mark.parametrize("path", FROZEN_POOLS, ids=lambda path: path.stem)
def test_a_pool_of_every_version_is_written_on(path: Path, tmp_path: Path) -> None:
    thaw(json.loads(path.read_text()), tmp_path)
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
