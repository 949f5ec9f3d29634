"""Storages' policies: what they allow, and that what is drained follows them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from frozen_pool import DISK, STORAGE, WRITER, digests, write
from hypothesis import given, strategies as st

from innkeeper.fabric.codecs import Undecodable, decode, encode
from innkeeper.fabric.groups import SlotTable
from innkeeper.fabric.layout import BLOCK, CODEC_LZ4, CODEC_RAW, CODEC_ZSTD
from innkeeper.fabric.policy import Policy
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Conflict, Invalid
from innkeeper.system.files import Io

TEXT = b"".join(b"%d green bottles hanging on the wall\n" % number for number in range(20_000))


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    opened = Pool.open(Io(), str(tmp_path), background=False)
    yield opened
    opened.close()


def codecs(pool: Pool) -> list[int]:
    """The codecs of all extents, group by group."""
    found = []
    for number in sorted(pool.store.rows):
        table: SlotTable = pool.store.table(number)
        found += [table.row(slot).codec for slot in range(table.slots) if table.extent_hash(slot) is not None]
    return found


def test_levels_belong_to_zstd() -> None:
    assert Policy().changed(compression="zstd") == Policy("zstd", 3, True)
    assert Policy("zstd", 9).changed(level=12) == Policy("zstd", 12)
    assert Policy("zstd", 9).changed(compression="lz4") == Policy("lz4", 0)
    assert Policy("zstd", 9).changed(dedup=False) == Policy("zstd", 9, False)
    for code, wanted in (
        ("storage.level", {"compression": "lz4", "level": 3}),
        ("storage.level", {"level": 3}),
        ("storage.level", {"compression": "zstd", "level": 20}),
        ("storage.compression", {"compression": "brotli"}),
        ("storage.policy", {"colour": "red"}),
    ):
        with pytest.raises(Invalid) as refused:
            Policy().changed(**wanted)
        assert refused.value.code == code
        assert refused.value.remedy


def test_a_changed_policy_counts_for_what_is_drained_from_then_on(pool: Pool) -> None:
    pool.storage_create(STORAGE, compression="off")
    pool.disk_create(DISK, 16 * BLOCK, STORAGE)
    content = b""
    for step, policy in enumerate(({}, {"compression": "zstd", "level": 12}, {"compression": "lz4"})):
        pool.storage_set(STORAGE, **policy)
        block = TEXT[step * BLOCK : (step + 1) * BLOCK]
        write(pool, DISK, {step * BLOCK: block})
        pool.drain()
        content += block
    assert codecs(pool) == [CODEC_RAW, CODEC_ZSTD, CODEC_LZ4]
    before = digests(pool)
    assert pool.check()["problems"] == []
    write(pool, DISK, {15 * BLOCK: os.urandom(BLOCK)})
    pool.drain()
    assert codecs(pool)[-1] == CODEC_RAW, "what does not get smaller stays as it is"
    assert digests(pool) != before


def test_policies_outlive_a_restart(tmp_path: Path) -> None:
    pool = Pool.open(Io(), str(tmp_path), background=False)
    pool.storage_create(STORAGE, compression="zstd", dedup=False)
    with pytest.raises(Conflict, match="another policy"):
        pool.storage_create(STORAGE)
    pool.storage_set(STORAGE, level=19)
    with pytest.raises(Invalid):
        pool.storage_set(STORAGE, level=99)
    pool.close()
    pool = Pool.open(Io(), str(tmp_path), background=False)
    facts = pool.storage_create(STORAGE, compression="zstd", level=19, dedup=False)
    assert (facts["compression"], facts["level"], facts["dedup"]) == ("zstd", 19, False)
    pool.close()


def test_the_cache_is_bounded_for_good(tmp_path: Path) -> None:
    pool = Pool.open(Io(), str(tmp_path), background=False)
    chosen = pool.pool_show()["cache"]["limit_bytes"]
    assert pool.cache_resize(64 << 20)["limit_bytes"] == 64 << 20
    for wrong in (0, 1 << 20, 1 << 60):
        with pytest.raises(Invalid) as refused:
            pool.cache_resize(wrong)
        assert refused.value.code == "pool.cache"
    pool.close()
    pool = Pool.open(Io(), str(tmp_path), background=False)
    assert pool.pool_show()["cache"]["limit_bytes"] == 64 << 20
    assert pool.cache_resize(None)["limit_bytes"] == chosen
    pool.close()


def test_clones_share_what_is_cached(pool: Pool) -> None:
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, 16 * BLOCK, STORAGE)
    write(pool, DISK, {0: TEXT[: 10 * BLOCK]})
    pool.drain()
    snapshot = "00000000-0000-0000-0000-0000000000aa"
    pool.snapshot_create({snapshot: DISK})
    for number in range(20):
        pool.disk_clone(f"00000000-0000-0000-0000-0000000001{number:02}", snapshot)
    assert len(set(digests(pool).values())) == 1
    assert pool.store.content.facts().used_bytes == 0, "what is read in long pieces is not kept"
    for disk in pool.disk_ls():
        pool.attach(WRITER, disk_id=disk["id"], role="reader")
        volume = pool.volume(WRITER)
        for block in range(10):
            assert volume.read_blocking(block * BLOCK, BLOCK) == TEXT[block * BLOCK : (block + 1) * BLOCK]
        volume.close()
        pool.detach(WRITER)
    facts = pool.store.content.facts()
    assert (facts.misses, facts.hits) == (10, 20 * 10), "each extent was read once for 21 readers"


@given(st.binary(min_size=1, max_size=3000), st.sampled_from(["off", "lz4", "zstd"]), st.integers(1, 19))
def test_what_is_encoded_decodes(seed: bytes, compression: str, level: int) -> None:
    data = (seed * (BLOCK // len(seed) + 1))[:BLOCK]
    stored, codec = encode(data, compression, level, BLOCK * 7 // 8)
    assert decode(stored, codec, BLOCK) == data
    assert len(stored) <= BLOCK


@given(st.binary(max_size=300), st.sampled_from([CODEC_RAW, CODEC_LZ4, CODEC_ZSTD, 3, 15]))
def test_what_is_no_code_is_refused(stored: bytes, codec: int) -> None:
    try:
        assert len(decode(stored, codec, BLOCK)) == BLOCK
    except Undecodable:
        return
    assert codec == CODEC_LZ4


def test_a_frame_that_unpacks_to_more_is_refused_before_it_does() -> None:
    bomb, _ = encode(bytes(1 << 24), "zstd", 1, 1 << 24)
    assert len(bomb) < 4096
    with pytest.raises(Undecodable, match="a frame of 16777216 bytes"):
        decode(bomb, CODEC_ZSTD, BLOCK)
