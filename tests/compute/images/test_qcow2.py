"""Headers of qcow2 files: honest ones pass, those that name other files or lie are refused with the right code."""

from __future__ import annotations

import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import event, given, settings, strategies as st

from innkeeper.compute.images import qcow2
from innkeeper.model.problems import Corrupt, Invalid, Problem, Refused

CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
GIB = 1 << 30


@dataclass
class Header:
    """A sound version 3 header of a 1 GiB disk, whose fields a test bends."""

    magic: bytes = b"QFI\xfb"
    version: int = 3
    backing_offset: int = 0
    backing_length: int = 0
    cluster_bits: int = CLUSTER_BITS
    size: int = GIB
    crypt: int = 0
    l1_entries: int = 2
    l1_offset: int = 3 * CLUSTER
    refcount_offset: int = CLUSTER
    refcount_clusters: int = 1
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    refcount_order: int = 4
    header_length: int = 104
    extensions: bytes = b""

    def encode(self) -> bytes:
        fields = [self.magic, self.version, self.backing_offset, self.backing_length, self.cluster_bits, self.size]
        fields += [self.crypt, self.l1_entries, self.l1_offset, self.refcount_offset, self.refcount_clusters]
        head = struct.pack(">4sIQIIQIIQQIIQ", *fields, self.snapshots, self.snapshots_offset)
        if self.version >= 3:
            head += struct.pack(">QQQII", self.incompatible, 0, 0, self.refcount_order, self.header_length)
        return (head + self.extensions).ljust(CLUSTER, b"\0")


def extension(kind: int, data: bytes) -> bytes:
    return struct.pack(">II", kind, len(data)) + data + bytes(-len(data) % 8)


FILE_BYTES = 4 * CLUSTER


def check(header: Header, file_bytes: int = FILE_BYTES) -> qcow2.Qcow2Header:
    return qcow2.check_header(header.encode(), file_bytes)


def test_sound_headers_of_both_versions_pass() -> None:
    assert check(Header()) == qcow2.Qcow2Header(3, GIB, CLUSTER_BITS)
    assert check(Header(version=2)) == qcow2.Qcow2Header(2, GIB, CLUSTER_BITS)
    with_names = Header(extensions=extension(0x6803F857, b"\0" * 48) + extension(0, b""))
    assert check(with_names).virtual_size_bytes == GIB


@pytest.mark.parametrize(
    "options", [[], ["-o", "compat=0.10"], ["-o", "extended_l2=on,cluster_size=128k"], ["-o", "compression_type=zstd"]]
)
def test_what_qemu_writes_passes(tmp_path: Path, options: list[str]) -> None:
    image = tmp_path / "a.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", *options, image, "3G"], check=True)
    data = image.read_bytes()
    assert qcow2.check_header(data, len(data)).virtual_size_bytes == 3 * GIB


HOSTILE = {
    "backing file": Header(backing_offset=512, backing_length=11),
    "backing file without a length": Header(backing_offset=512),
    "backing file in version 2": Header(version=2, backing_offset=512, backing_length=11),
    "external data file": Header(incompatible=1 << 2),
    "name of a data file": Header(extensions=extension(0x44415441, b"/etc/shadow")),
    "format of a backing file": Header(extensions=extension(0xE2792ACA, b"raw")),
    "name behind another extension": Header(
        extensions=extension(0x6803F857, b"\0" * 48) + extension(0x44415441, b"/etc/shadow")
    ),
}
CORRUPT = {
    "magic": Header(magic=b"QFI\xfc"),
    "clusters too small": Header(cluster_bits=8),
    "clusters too large": Header(cluster_bits=22),
    "shift overflow": Header(cluster_bits=0xFFFFFFFF),
    "size zero": Header(size=0),
    "first-level table too short": Header(l1_entries=1),
    "first-level table huge": Header(l1_entries=0xFFFFFFFF),
    "first-level table not aligned": Header(l1_offset=3 * CLUSTER + 8),
    "first-level table over the header": Header(l1_offset=0),
    "first-level table behind the end": Header(l1_offset=1 << 40),
    "offset overflow": Header(l1_offset=(1 << 64) - CLUSTER),
    "no reference counts": Header(refcount_clusters=0),
    "reference counts huge": Header(refcount_clusters=0xFFFFFFFF),
    "reference counts behind the end": Header(refcount_offset=1 << 40),
    "reference counts too wide": Header(refcount_order=7),
    "marked corrupt": Header(incompatible=1 << 1),
    "snapshots without number": Header(snapshots=1 << 20),
    "snapshots behind the end": Header(snapshots=1, snapshots_offset=1 << 40),
    "header longer than its cluster": Header(header_length=2 * CLUSTER),
    "header not of eights": Header(header_length=105),
    "header too short": Header(header_length=72),
    "extension that does not fit": Header(extensions=struct.pack(">II", 0x12345678, 0xFFFFFFF0)),
}
UNSUPPORTED = {
    "version 1": Header(version=1),
    "version 4": Header(version=4),
    "AES": Header(crypt=1),
    "LUKS": Header(crypt=2),
    "LUKS by extension": Header(extensions=extension(0x0537BE77, b"\0" * 16)),
    "unknown feature": Header(incompatible=1 << 40),
    "absurd size": Header(size=1 << 62),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_that_names_another_is_hostile(name: str) -> None:
    with pytest.raises(Refused) as refused:
        check(HOSTILE[name])
    assert refused.value.code == "image.hostile" and refused.value.remedy


@pytest.mark.parametrize("name", CORRUPT)
def test_a_lying_header_is_corrupt(name: str) -> None:
    with pytest.raises(Corrupt) as refused:
        check(CORRUPT[name])
    assert refused.value.code == "image.corrupt" and refused.value.cause


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_is_not_taken_says_so(name: str) -> None:
    with pytest.raises(Invalid) as refused:
        check(UNSUPPORTED[name])
    assert refused.value.code == "image.unsupported" and refused.value.remedy


@given(st.integers(0, 200))
def test_a_truncated_file_is_corrupt(length: int) -> None:
    with pytest.raises(Corrupt):
        qcow2.check_header(Header().encode()[:length], length)


mutations = st.lists(st.tuples(st.integers(0, 159), st.integers(0, 255)), min_size=1, max_size=8)


@settings(max_examples=2000)
@given(mutations, st.integers(0, 1 << 40))
def test_mutants_are_judged_and_never_crash(changes: list[tuple[int, int]], file_bytes: int) -> None:
    data = bytearray(Header(extensions=extension(0x6803F857, b"\0" * 48)).encode())
    for offset, value in changes:
        data[offset] = value
    try:
        header = qcow2.check_header(bytes(data), file_bytes)
    except (Corrupt, Invalid, Refused) as judged:
        event(judged.code)
        return
    # What passes names no other file, whatever else was changed.
    backing_offset, backing_length = struct.unpack_from(">QI", data, 8)
    assert (backing_offset, backing_length) == (0, 0)
    assert header.version == 2 or not data[79] & (1 << 2)
    assert 0 < header.virtual_size_bytes <= qcow2.MAX_VIRTUAL_BYTES


@given(st.binary(max_size=400))
def test_noise_after_the_magic_never_crashes(noise: bytes) -> None:
    with pytest.raises(Problem):
        qcow2.check_header(qcow2.MAGIC + noise, 4 + len(noise))
