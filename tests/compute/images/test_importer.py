"""Files of strangers: what they are found to be. What becomes of them is in ``test_conversion``."""

from __future__ import annotations

import hashlib
import lzma
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from image_files import MIB, compressed, qcow2_file, raw_file, sparse_content

from innkeeper.compute.images import importer
from innkeeper.compute.images.importer import ImageFacts
from innkeeper.model.problems import Corrupt, Invalid, NotFound, Problem, Refused


def test_raw_is_what_has_no_known_magic_and_is_whole_sectors(tmp_path: Path) -> None:
    assert importer.inspect(raw_file(tmp_path / "a.img", b"\1" * 1000)) == ImageFacts("raw", 1024)


@pytest.mark.parametrize("suffix", ["", ".xz", ".zst"])
def test_formats_are_found_compressed_or_not(tmp_path: Path, suffix: str) -> None:
    content = sparse_content(6 * MIB)
    raw, qcow2 = raw_file(tmp_path / "a.raw", content), qcow2_file(tmp_path / "a.qcow2", content)
    if suffix:
        raw, qcow2 = compressed(raw, suffix), compressed(qcow2, suffix)
    assert importer.inspect(raw) == ImageFacts("raw", 6 * MIB)
    assert importer.inspect(qcow2) == ImageFacts("qcow2", 6 * MIB)


def test_a_raw_disk_that_looks_like_qcow2_stays_raw_when_said_so(tmp_path: Path) -> None:
    image = raw_file(tmp_path / "a.raw", b"QFI\xfb\0\0\0\3" + bytes(MIB - 8))
    assert importer.inspect(image, "raw") == ImageFacts("raw", MIB)
    with pytest.raises(Corrupt):
        importer.inspect(image)


def test_qcow2_must_be_qcow2_when_said_so(tmp_path: Path) -> None:
    with pytest.raises(Corrupt, match="not a sound qcow2"):
        importer.inspect(raw_file(tmp_path / "a", bytes(MIB)), "qcow2")


def test_a_qcow2_that_names_a_file_of_the_host_is_refused(tmp_path: Path) -> None:
    canary = raw_file(tmp_path / "canary", b"secret" * 1000)
    image = qcow2_file(tmp_path / "a.qcow2", bytes(MIB))
    data = bytearray(image.read_bytes())
    name = str(canary).encode()
    data[8:20] = (0x200).to_bytes(8, "big") + len(name).to_bytes(4, "big")
    data[0x200 : 0x200 + len(name)] = name
    image.write_bytes(data)
    for path in (image, compressed(image, ".xz")):
        with pytest.raises(Refused) as refused:
            importer.inspect(path)
        assert refused.value.code == "image.hostile"


@pytest.mark.parametrize("magic", importer._FOREIGN_MAGICS, ids=lambda magic: magic[:8].hex())
def test_other_formats_are_named_and_not_taken_for_raw(tmp_path: Path, magic: bytes) -> None:
    image = raw_file(tmp_path / "a", magic + bytes(MIB))
    with pytest.raises(Invalid) as refused:
        importer.inspect(image)
    assert refused.value.code == "image.unsupported" and "raw" in str(refused.value.remedy)
    assert importer.inspect(image, "raw").format == "raw"


def test_what_is_no_file_or_empty_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(NotFound) as absent:
            importer.inspect(path)
        assert absent.value.code == "image.no_file"
    with pytest.raises(Corrupt, match="empty"):
        importer.inspect(raw_file(tmp_path / "a", b""))
    with pytest.raises(Invalid, match="vmdk"):
        importer.inspect(raw_file(tmp_path / "b", b"x"), "vmdk")


@pytest.mark.parametrize("suffix", [".xz", ".zst"])
def test_damaged_compression_is_corrupt(tmp_path: Path, suffix: str) -> None:
    whole = compressed(raw_file(tmp_path / "a", sparse_content()), suffix)
    data = whole.read_bytes()
    for damaged in (b"", data[: len(data) // 2], data[:-4], b"no such stream" * 100):
        whole.write_bytes(damaged)
        with pytest.raises(Corrupt) as refused:
            importer.inspect(whole)
        assert refused.value.code == "image.corrupt"


def test_several_streams_in_one_file_are_one_image(tmp_path: Path) -> None:
    path = tmp_path / "a.xz"
    path.write_bytes(lzma.compress(bytes(MIB)) + bytes(8) + lzma.compress(b"\1" * MIB))
    assert importer.inspect(path) == ImageFacts("raw", 2 * MIB)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=300), st.sampled_from(["a", "a.qcow2", "a.xz", "a.zst"]), st.booleans())
def test_no_content_crashes_the_inspection(noise: bytes, name: str, behind_magic: bool) -> None:
    magics = {"a": b"", "a.qcow2": b"QFI\xfb\0\0\0\3", "a.xz": b"\xfd7zXZ\0\0\4", "a.zst": b"\x28\xb5\x2f\xfd"}
    with tempfile.TemporaryDirectory() as folder:
        path = raw_file(Path(folder) / name, (magics[name] if behind_magic else b"") + noise)
        outcome = _outcome(path)
    assert outcome in {"sound", "image.corrupt", "image.unsupported", "image.hostile"}


def _outcome(path: Path) -> str:
    try:
        facts = importer.inspect(path)
    except Problem as problem:
        return problem.code
    return "sound" if facts.virtual_size_bytes % 512 == 0 else "not whole sectors"


def test_checksums(tmp_path: Path) -> None:
    image = raw_file(tmp_path / "a", b"content")
    for algorithm in ("sha256", "sha512"):
        digest = hashlib.new(algorithm, b"content").hexdigest()
        importer.verify_checksum(image, digest)
        importer.verify_checksum(image, digest.upper())
        with pytest.raises(Corrupt) as wrong:
            importer.verify_checksum(image, digest[:-1] + ("0" if digest[-1] != "0" else "1"))
        assert wrong.value.code == "image.checksum" and digest in str(wrong.value.cause)
    for text in ("", "abc", "g" * 64):
        with pytest.raises(Invalid, match="hexadecimal"):
            importer.verify_checksum(image, text)
