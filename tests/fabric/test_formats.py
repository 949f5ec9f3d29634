"""Formats of the fabric: frozen bytes, and that what is written is read back."""

from __future__ import annotations

from array import array
from itertools import pairwise
from uuid import UUID

import pytest
from hypothesis import given, settings, strategies as st

from innkeeper.fabric import groups, logformat
from innkeeper.fabric.layout import (
    FANOUT,
    KIND_EXTENT,
    KIND_PIECE,
    MAX_GROUP,
    PAGE,
    crc32c,
    levels_for,
    pack_entry,
    unpack_entry,
)
from innkeeper.fabric.logformat import DATA, EPOCH, MAP, RESIZE, SNAP, ZERO, Record, SegmentHeader
from innkeeper.fabric.maps import LeafEdit
from innkeeper.fabric.ranges import RangeSet
from innkeeper.model.problems import Corrupt

POOL = UUID("00112233-4455-6677-8899-aabbccddeeff")
SNAPSHOT = UUID("0f0e0d0c-0b0a-0908-0706-050403020100")


def used(page: bytes) -> str:
    return page.rstrip(b"\0").hex()


def test_crc_is_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_kinds_never_change() -> None:
    assert (DATA, ZERO, MAP, SNAP, RESIZE, EPOCH) == (1, 2, 3, 4, 5, 6)
    assert (groups.ITEM_EXTENT, groups.ITEM_PIECE, groups.ITEM_MAP) == (1, 2, 4)


def test_map_entry_bytes() -> None:
    assert pack_entry(KIND_EXTENT, 0x2000001, 0x3FFFF, 5) == 0x1005_0800_0007_FFFF
    assert pack_entry(4, 1, 2) == 0x4000_0000_0004_0002


@given(st.integers(0, 15), st.integers(0, 4095), st.integers(0, MAX_GROUP), st.integers(0, (1 << 18) - 1))
def test_map_entry_round_trip(kind: int, allocator: int, group: int, slot: int) -> None:
    entry = pack_entry(kind, group, slot, allocator)
    assert 0 <= entry < 1 << 64
    assert unpack_entry(entry) == (kind, allocator, group, slot)


@pytest.mark.parametrize("parts", [(16, 0, 0, 0), (0, MAX_GROUP + 1, 0, 0), (0, 0, 1 << 18, 0), (0, 0, 0, 4096)])
def test_map_entry_refuses_what_does_not_fit(parts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no map entry"):
        pack_entry(*parts)


@pytest.mark.parametrize(
    ("size", "levels"),
    [(512, 1), (64 << 20, 1), ((64 << 20) + 512, 2), (64 << 30, 2), ((64 << 30) + 1, 3), (64 << 40, 3)],
)
def test_levels(size: int, levels: int) -> None:
    assert levels_for(size) == levels


def test_segment_header_bytes() -> None:
    page = logformat.encode_segment_header(POOL, SegmentHeader(0x1_0000_0002, 7, 6))
    assert len(page) == PAGE
    assert (
        used(page)
        == (
            "494e4e4c4f4753470200000000000000"  # INNLOGSG, version 2, suite 0, key 0
            "00112233445566778899aabbccddeeff"
            "020000000100000007000000000000000600000000000000" + used(page)[-8:]
        )
    )
    assert logformat.decode_segment_header(page, POOL, "x") == SegmentHeader(0x1_0000_0002, 7, 6)
    assert logformat.decode_segment_header(bytes(PAGE), POOL, "x") is None
    with pytest.raises(Corrupt) as foreign:
        logformat.decode_segment_header(page, SNAPSHOT, "x")
    assert foreign.value.code == "log.foreign"


def test_batch_bytes() -> None:
    records = [
        Record(3, 1, DATA, 5, 2, (0x11111111, 0x22222222)),
        Record(3, 1, ZERO, 16, 1 << 30),
        Record(4, 2, SNAP, 0, 1, snapshot=SNAPSHOT),
        Record(4, 2, RESIZE, 0, 1024),
    ]
    page = logformat.encode_batch(POOL, 9, logformat.seed_for(POOL, 9), 77, 70, records)
    assert len(page) == PAGE
    assert page[:60].hex() == (
        "494e4e4c4f47424101000400" "02000000" "b8000000"  # INNLOGBA, version 1, 4 records, 2 pages, 184 bytes used
        "00112233445566778899aabbccddeeff" "0900000000000000" "4d00000000000000" "4600000000000000"
    )  # fmt: skip
    assert page[64:88].hex() == "030000000100000005000000000000010200000000000000"
    assert page[160:168].hex() == "1111111122222222"
    assert page[168:184] == SNAPSHOT.bytes
    assert not any(page[184:])
    assert int.from_bytes(page[60:64], "little") == FROZEN_BATCH_CRC


FROZEN_BATCH_CRC = 0x5FD668D5


records_strategy = st.lists(
    st.one_of(
        st.builds(
            lambda disk, epoch, page, crcs: Record(disk, epoch, DATA, page, len(crcs), tuple(crcs)),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**32 - 1),
            st.integers(0, 2**56 - 1),
            st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20),
        ),
        st.builds(
            lambda disk, kind, page, amount: Record(disk, 1, kind, page, amount),
            st.integers(0, 2**32 - 1),
            st.sampled_from([ZERO, RESIZE]),
            st.integers(0, 2**56 - 1),
            st.integers(0, 2**64 - 1),
        ),
        st.builds(lambda snapshot: Record(1, 1, SNAP, 0, 1, snapshot=snapshot), st.uuids()),
        st.builds(
            lambda page, entries, frames: Record(
                2, 1, MAP, page, len(entries), entries=tuple(entries), frames=tuple(frames)
            ),
            st.integers(0, 2**40),
            st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=8),
            st.lists(st.tuples(st.integers(0, MAX_GROUP), st.integers(0, 2**32)), max_size=2),
        ),
    ),
    min_size=1,
    max_size=25,
)


def plain(record: Record) -> Record:
    """A record with its sequences as tuples."""
    return record._replace(crcs=tuple(record.crcs), entries=tuple(record.entries), frames=tuple(record.frames))


@given(records_strategy, st.integers(1, 2**63), st.integers(0, 2**63), st.integers(0, 2**40))
@settings(max_examples=60)
def test_batch_round_trip(records: list[Record], generation: int, sequence: int, synced: int) -> None:
    seed = logformat.seed_for(POOL, generation)
    page = logformat.encode_batch(POOL, generation, seed, sequence, synced, records)
    batch = logformat.decode_batch(page, seed, generation)
    assert batch is not None
    assert (batch.sequence, batch.synced_upto) == (sequence, synced)
    assert [plain(record) for record in batch.records] == records
    assert logformat.decode_batch(page, logformat.seed_for(POOL, generation + 1), generation) is None
    assert logformat.decode_batch(page, seed, generation + 1) is None


@given(records_strategy, st.data())
@settings(max_examples=60)
def test_a_flipped_bit_of_a_batch_is_noticed(records: list[Record], data: st.DataObject) -> None:
    seed = logformat.seed_for(POOL, 1)
    page = bytearray(logformat.encode_batch(POOL, 1, seed, 1, 0, records))
    end = int.from_bytes(page[16:20], "little")
    bit = data.draw(st.integers(0, end * 8 - 1))
    page[bit // 8] ^= 1 << bit % 8
    assert logformat.decode_batch(bytes(page), seed, 1) is None


def test_map_record_bytes() -> None:
    record = Record(3, 1, MAP, 0x20, 2, entries=(0x1000_0000_0004_0001, 0), frames=((5, 0x2000),))
    page = logformat.encode_batch(POOL, 9, logformat.seed_for(POOL, 9), 78, 70, [record])
    assert page[64:88].hex() == "030000000100000020000000000000030200000001000000"
    assert page[88:120].hex() == "05000000000000000020000000000000" "0100040000000010" "0000000000000000"  # fmt: skip
    assert not any(page[120:])


def test_group_header_and_row_bytes() -> None:
    page = groups.encode_header(POOL, 0x81, 2)
    assert page[:48].hex() == (
        "494e4e47524f5550" "0100" "0000" "00000000" "00112233445566778899aabbccddeeff" "8100000000000000"
        "0200000000000000"
    )  # fmt: skip
    groups.check_header(page, POOL, 0x81, 2, "x")
    with pytest.raises(Corrupt):
        groups.check_header(page, POOL, 0x81, 3, "x")
    assert groups.pack_row(4096, 0x1234, 1, 1, 0xAABBCCDD, 32).hex() == "0010000034120011ddccbbaa20000000"


@given(
    st.dictionaries(st.integers(0, FANOUT - 1), st.lists(st.integers(0, 2**59), min_size=16, max_size=16), max_size=20),
    st.dictionaries(st.integers(0, FANOUT - 1), st.integers(0, 2**60), max_size=20),
)
@settings(max_examples=40)
def test_leaf_round_trip(split: dict[int, list[int]], whole: dict[int, int]) -> None:
    leaf = LeafEdit(None)
    for block, group in whole.items():
        leaf.set_block(block, pack_entry(KIND_EXTENT, group % MAX_GROUP, 1))
    for block, places in split.items():
        leaf.pieces(block)[:] = [place and pack_entry(KIND_PIECE, place % MAX_GROUP, 2) for place in places]
    data = leaf.pack()
    expected = {block: [pack_entry(KIND_EXTENT, group % MAX_GROUP, 1)] * 16 for block, group in whole.items()}
    expected |= {
        block: [place and pack_entry(KIND_PIECE, place % MAX_GROUP, 2) for place in places]
        for block, places in split.items()
    }
    expected = {block: entries for block, entries in expected.items() if any(entries)}
    if data is None:
        assert not expected
        return
    again = LeafEdit(memoryview(data).cast("Q"))
    for block in range(FANOUT):
        if block in expected or again.entries[block]:
            assert again.pieces(block) == expected[block]
    assert array("Q", data)[:FANOUT] == LeafEdit(memoryview(data).cast("Q")).entries


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), max_size=20), st.integers(0, 70), st.integers(0, 20))
def test_range_set(ranges: list[tuple[int, int]], start: int, length: int) -> None:
    known: set[int] = set()
    ours = RangeSet()
    for first, count in ranges:
        ours.add(first, first + count)
        known.update(range(first, first + count))
    assert {n for n in range(80) if n in ours} == known
    flat = [(low, high) for low, high in ours]
    assert all(low < high for low, high in flat)
    assert all(a[1] < b[0] for a, b in pairwise(flat))
    inside = {n for low, high in ours.within(start, start + length) for n in range(low, high)}
    assert inside == {n for n in known if start <= n < start + length}
