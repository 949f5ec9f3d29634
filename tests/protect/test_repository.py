"""The repository's format and identity: opening, bad input, packs, index and maps for any content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from memory_blobs import MemoryBlobs

from innkeeper.model.problems import Conflict, Corrupt, Invalid, NotFound, Problem, Refused
from innkeeper.protect.index import Index, Segment, build_segment, names_array, parse_segment, records_of
from innkeeper.protect.maps import NO_NAME, MapBuilder, MapReader, MapRoot, decode_node, encode_node, taken_places
from innkeeper.protect.pack import Encoded, PackBuilder, check_entry, encode, entries_of, pack_name, read_table
from innkeeper.protect.repository import CONFIG, Repository
from innkeeper.protect.sealing import Key, Kind, fabric_hash, open_document, seal_document

KEY = Key(bytes(range(32)))
BLOCK = 65536


def test_the_name_of_an_extent_is_a_keyed_hash_of_its_fabric_hash() -> None:
    """A wall: encryption later needs no rehashing. The literal value freezes it."""
    digest = fabric_hash(b"x" * BLOCK)
    assert KEY.name(Kind.EXTENT, digest).hex() == "df02ebf3068feb4d05fede8e05ee0e278a4e8d43ebc152681904739887010922"
    assert KEY.name(Kind.EXTENT, digest) != KEY.name(Kind.NODE, digest)
    assert Key(bytes(32)).name(Kind.EXTENT, digest) != KEY.name(Kind.EXTENT, digest)


# --- opening and bad input -------------------------------------------------------------------------------------------


def test_create_open_and_create_again(tmp_path: Path) -> None:
    made = Repository.create(tmp_path / "r")
    assert Repository.open(tmp_path / "r", uuid=made.uuid).key.secret == made.key.secret
    assert Repository.create(tmp_path / "r").uuid == made.uuid


def test_paths_that_cannot_be_a_repository(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"repository\.absent"):
        Repository.open(tmp_path / "absent")
    with pytest.raises(NotFound, match=r"repository\.absent"):
        Repository.open(tmp_path)
    with pytest.raises(Invalid, match=r"repository\.path"):
        Repository.create(tmp_path / "absent" / "deep")
    (tmp_path / "file").write_text("x")
    with pytest.raises(Invalid, match=r"repository\.path"):
        Repository.create(tmp_path / "file")
    with pytest.raises(Conflict, match=r"repository\.foreign"):
        Repository.create(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_another_repository_at_the_same_place(tmp_path: Path) -> None:
    Repository.create(tmp_path / "r")
    with pytest.raises(Conflict, match=r"repository\.changed"):
        Repository.open(tmp_path / "r", uuid="00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize(
    ("change", "problem", "code"),
    [
        ({"version": 2}, Refused, "repository.newer"),
        ({"cipher_suite": 1}, Refused, "repository.newer"),
        ({"key": "00" * 32}, Corrupt, "repository.config"),
        ({"key": "zz"}, Corrupt, "repository.config"),
        ({"uuid": "another"}, Corrupt, "repository.config"),
        ({"seal": "00"}, Corrupt, "repository.config"),
        ({"format": "borg"}, Corrupt, "repository.config"),
        ({"key_id": None}, Corrupt, "repository.config"),
    ],
)
def test_a_config_that_was_changed(
    tmp_path: Path, change: dict[str, object], problem: type[Problem], code: str
) -> None:
    Repository.create(tmp_path / "r")
    config = tmp_path / "r" / CONFIG
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    with pytest.raises(problem) as caught:
        Repository.open(tmp_path / "r")
    assert caught.value.code == code
    assert caught.value.remedy


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_config_that_is_none(tmp_path: Path, data: bytes) -> None:
    Repository.create(tmp_path / "r")
    (tmp_path / "r" / CONFIG).write_bytes(data)
    with pytest.raises(Corrupt, match=r"repository\.config"):
        Repository.open(tmp_path / "r")


def test_a_pack_of_another_key_is_refused() -> None:
    builder = PackBuilder(KEY)
    builder.add(KEY.name(Kind.EXTENT, fabric_hash(b"a")), encode(b"a"), Kind.EXTENT)
    data = b"".join(builder.finish())
    with pytest.raises(Refused, match=r"repository\.key"):
        read_table(Key(bytes(32)), pack_name(builder.id), len(data), data[:64], data)


def test_two_founders_at_once_agree() -> None:
    blobs = MemoryBlobs()
    assert Repository.create_on(blobs).uuid == Repository.create_on(blobs).uuid


# --- documents, packs, index -----------------------------------------------------------------------------------------


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9)), st.data())
def test_documents(document: dict[str, object], data: st.DataObject) -> None:
    stored = seal_document(KEY, "points/a", document)
    assert open_document(KEY, "points/a", stored) == document
    with pytest.raises(Corrupt):
        open_document(KEY, "points/b", stored)
    at = data.draw(st.integers(0, len(stored) - 1))
    bit = data.draw(st.integers(0, 7))
    flipped = stored[:at] + bytes((stored[at] ^ 1 << bit,)) + stored[at + 1 :]
    with pytest.raises(Corrupt):
        open_document(KEY, "points/a", flipped)


CONTENT = st.binary(min_size=1, max_size=300) | st.integers(1, 5000).map(lambda size: b"ab" * size)


@given(st.lists(CONTENT, min_size=1, max_size=20), st.data())
@settings(max_examples=60)
def test_packs(contents: list[bytes], data: st.DataObject) -> None:
    builder = PackBuilder(KEY)
    for content in contents:
        encoded = encode(content)
        builder.add(KEY.name(Kind.EXTENT, encoded.hash), encoded, Kind.EXTENT)
    pack = b"".join(builder.finish())
    name = pack_name(builder.id)
    table = read_table(KEY, name, len(pack), pack[:64], pack)
    assert table is not None
    for content, entry in zip(contents, entries_of(table), strict=True):
        stored = pack[entry.offset : entry.offset + entry.stored]
        assert check_entry(KEY, entry.name, entry.kind, stored, entry.crc, entry.codec, entry.raw) == content
        assert entry.hash == fabric_hash(content)
    at = data.draw(st.integers(0, len(pack) - 1))
    flipped = pack[:at] + bytes((pack[at] ^ 1 << data.draw(st.integers(0, 7)),)) + pack[at + 1 :]
    try:
        table = read_table(KEY, name, len(flipped), flipped[:64], flipped)
    except (Corrupt, Refused):
        return
    assert table is not None
    wrong = [
        entry
        for entry in entries_of(table)
        if isinstance(
            check_entry(
                KEY,
                entry.name,
                entry.kind,
                flipped[entry.offset : entry.offset + entry.stored],
                entry.crc,
                entry.codec,
                entry.raw,
            ),
            str,
        )
    ]
    assert len(wrong) == 1


@given(st.lists(st.lists(st.binary(min_size=1, max_size=4), max_size=30), max_size=5), st.booleans())
@settings(max_examples=60)
def test_index(packs: list[list[bytes]], same_prefix: bool) -> None:
    def name(content: bytes) -> bytes:
        digest = fabric_hash(content)
        return bytes(8) + digest[8:] if same_prefix else digest

    segments: list[Segment] = []
    where: dict[bytes, set[bytes]] = {}
    for contents in packs:
        builder = PackBuilder(KEY)
        for content in dict.fromkeys(contents):
            builder.add(name(content), Encoded(fabric_hash(content), content, len(content), 0), Kind.EXTENT)
            where.setdefault(name(content), set()).add(builder.id)
        blob, parts = build_segment(KEY, [(builder.id, 1)], records_of(builder.table(), 0), bytes(16))
        segments.append(parse_segment(KEY, blob, b"".join(parts)))
    index = Index(segments)
    asked = [name(content) for contents in packs for content in contents] + [name(b"never stored")]
    found = index.find(names_array(asked))
    for place, wanted in enumerate(asked):
        if wanted in where:
            row = found.records[place]
            assert row["name"].tobytes() == wanted
            assert index.packs[int(found.pack[place])] in where[wanted]
        else:
            assert found.pack[place] == -1
    unusable = Index(segments, [segment.pack_ids[0] for segment in segments])
    assert (unusable.find(names_array(asked), usable_only=True).pack == -1).all()
    assert ((unusable.find(names_array(asked)).pack >= 0) == (found.pack >= 0)).all()


def test_old_fixture_of_a_segment_is_refused_when_newer() -> None:
    builder = PackBuilder(KEY)
    blob, parts = build_segment(KEY, [(builder.id, 1)], records_of(builder.table(), 0), bytes(16))
    body = bytearray(b"".join(parts[:-1]))
    body[8] = 9
    with pytest.raises(Refused, match=r"repository\.newer"):
        parse_segment(KEY, blob, bytes(body) + KEY.seal(blob, bytes(body)))


# --- maps ------------------------------------------------------------------------------------------------------------

NAMES = st.binary(min_size=32, max_size=32)


@given(st.dictionaries(st.integers(0, 1023), NAMES.filter(any), max_size=40), st.integers(0, 2))
def test_nodes(places: dict[int, bytes], level: int) -> None:
    names = np.zeros((1024, 32), dtype=np.uint8)
    for place, name in places.items():
        names[place] = np.frombuffer(name, dtype=np.uint8)
    encoded = encode_node(names, level)
    assert (decode_node(encoded.data, level) == names).all()
    assert taken_places(names).sum() == len(places)
    for bad in (encoded.data[:-1], encoded.data + b"x", encoded.data[:100]):
        with pytest.raises(ValueError):
            decode_node(bad, level)
    with pytest.raises(ValueError):
        decode_node(encoded.data, level + 1)


STEP = st.dictionaries(
    st.one_of(st.integers(0, 3000), st.integers(1_048_000, 1_050_000), st.integers(0, 2_000_000)),
    st.one_of(st.just(NO_NAME), st.integers(1, 50).map(lambda n: fabric_hash(b"%d" % n))),
    max_size=30,
)


@given(st.lists(st.tuples(STEP, st.booleans()), max_size=5))
@settings(max_examples=60, deadline=None)
def test_maps_beside_a_dictionary(steps: list[tuple[dict[int, bytes], bool]]) -> None:
    """Each step changes blocks of a disk that may grow, on top of the step before."""
    store: dict[bytes, bytes] = {}

    def keep(encoded: Encoded) -> bytes:
        store[encoded.hash] = encoded.data
        return encoded.hash

    size_blocks = 1000
    base: MapRoot | None = None
    model: dict[int, bytes] = {}
    for changes, grow in steps:
        if grow:
            size_blocks = min(size_blocks * 2000, 4_000_000)
        inside = {block: name for block, name in changes.items() if block < size_blocks}
        builder = MapBuilder(size_blocks * BLOCK, keep, MapReader(store.__getitem__), base)
        for block in sorted(inside):
            builder.set(block, inside[block])
        base = builder.finish()
        before = len(model)
        model.update(inside)
        model = {block: name for block, name in model.items() if name != NO_NAME}
        assert builder.added_blocks == len(model) - before
        seen = {
            leaf.first_block + int(place): leaf.names[place].tobytes()
            for leaf in MapReader(store.__getitem__).walk(base)
            for place in np.flatnonzero(taken_places(leaf.names))
        }
        assert seen == model
        assert (base.name is None) == (not model)
