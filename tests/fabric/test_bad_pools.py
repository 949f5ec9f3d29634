"""What a pool cannot be is said through the command: no pool, another's, a later version's, read-only, full, in use."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from innkeeper.fabric.pool import Pool
from innkeeper.fabric.vfs import summed
from innkeeper.model.problems import Invalid, NotFound
from innkeeper.system.files import Io


def said(code: str, *words: str) -> str:
    """``inn fabric words...`` is refused with that code, a cause or detail that names the place, and a remedy."""
    ended = subprocess.run(
        [sys.executable, "-m", "innkeeper", "fabric", *words], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert f"[{code}]" in ended.stderr, ended.stderr
    assert "remedy:" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    place = tmp_path / "pool"
    opened = Pool.open(Io(), str(place), background=False)
    opened.storage_create(str(uuid4()))
    opened.close()
    return place


def test_a_directory_that_is_no_pool(tmp_path: Path) -> None:
    assert str(tmp_path / "nowhere") in said("pool.absent", "show", str(tmp_path / "nowhere"))
    said("pool.absent", "check", str(tmp_path / "nowhere"))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "letter").write_text("dear guest")
    said("pool.absent", "show", str(tmp_path / "letters"))
    said("pool.absent", "check", str(tmp_path / "letters"), "--repair")
    assert {each.name for each in (tmp_path / "letters").iterdir()} == {"letter"}


def test_a_pool_whose_files_are_of_another(pool: Path, tmp_path: Path) -> None:
    other = Pool.open(Io(), str(tmp_path / "other"), background=False)
    other.close()
    (pool / "meta.db").write_bytes((tmp_path / "other" / "meta.db").read_bytes())
    assert "meta.db belongs to pool" in said("meta.foreign", "show", str(pool))


def test_a_pool_of_a_later_version_stays_as_it_is(pool: Path) -> None:
    identity = pool / "pool.json"
    whole = identity.read_text()
    identity.write_text(json.dumps({**json.loads(whole), "format": 99}))
    assert "has format 99" in said("pool.format", "show", str(pool))
    said("pool.format", "check", str(pool), "--repair")
    identity.write_text(whole)
    meta = (pool / "meta.db").read_bytes()
    later = meta[:60] + (99).to_bytes(4, "big") + meta[64:4096]  # where SQLite keeps user_version
    (pool / "meta.db").write_bytes(summed(later, 0) + meta[4096:])
    before = {path.name: path.read_bytes() for path in pool.iterdir() if path.is_file()}
    assert "has format 99" in said("meta.format", "show", str(pool))
    said("meta.format", "check", str(pool), "--repair")
    assert {path.name: path.read_bytes() for path in pool.iterdir() if path.is_file()} == before


def test_a_pool_that_is_in_use(pool: Path) -> None:
    opened = Pool.open(Io(), str(pool), background=False)
    try:
        for words in (("show", str(pool)), ("check", str(pool)), ("check", str(pool), "--repair"), ("init", str(pool))):
            assert "locked by another process" in said("pool.locked", *words)
    finally:
        opened.close()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40M", "small", place], check=True)
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.root
def test_a_pool_on_a_full_or_a_read_only_file_system(small: Path) -> None:
    (small / "ballast").write_bytes(bytes(39 << 20))
    ended = subprocess.run(
        [sys.executable, "-m", "innkeeper", "fabric", "init", str(small / "pool")], capture_output=True, text=True
    )
    assert ended.returncode == 1
    assert "[pool.full]" in ended.stderr or "[pool.unusable]" in ended.stderr, ended.stderr
    assert "No space left" in ended.stderr and "remedy:" in ended.stderr
    (small / "ballast").unlink()
    init = [sys.executable, "-m", "innkeeper", "fabric", "init", str(small / "pool")]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    told = said("pool.read_only_files", "show", str(small / "pool"))
    assert "mounted read-only" in told
    said("pool.read_only_files", "check", str(small / "pool"))
    subprocess.run(["mount", "-o", "remount,rw", small], check=True)
    shown = subprocess.run([*init[:4], "show", init[-1]], check=True, capture_output=True, text=True)
    assert json.loads(shown.stdout)["read_only"] is None


def test_policies_that_cannot_be(pool: Path) -> None:
    opened = Pool.open(Io(), str(pool), background=False)
    (storage,) = [each["id"] for each in opened.storage_ls()]
    for code, wanted in (
        ("storage.compression", {"compression": "gzip"}),
        ("storage.level", {"compression": "zstd", "level": 23}),
        ("disk.tier", {"tier": "medium"}),
        ("storage.policy", {"replicas": 3}),
        ("storage.quota", {"quota_bytes": -1}),
    ):
        with pytest.raises(Invalid) as refused:
            opened.storage_set(storage, **wanted)
        assert refused.value.code == code
        assert refused.value.remedy
    with pytest.raises(Invalid, match="a policy has no"):
        opened.qos_set(str(uuid4()), most_iops=5)
    with pytest.raises(NotFound):
        opened.storage_set(storage, qos_id=str(uuid4()))
    opened.close()
