"""Conversion in the jail, to a real NBD export: right bytes, nothing else reachable, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from image_files import MIB, Target, compressed, nbd_target, qcow2_file, raw_file, sparse_content

from innkeeper.compute.images import importer
from innkeeper.compute.images.jail import Jail, conversion, jailed
from innkeeper.model.problems import Failed, Invalid, Refused
from innkeeper.system import process

pytestmark = pytest.mark.root

NOBODY = 65534
SIZE_BYTES = 8 * MIB


@pytest.fixture(autouse=True)
def _root_only() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    with nbd_target(tmp_path, SIZE_BYTES) as served:
        yield served


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


def convert(path: Path, image_format: str, target: Target, scratch: Path, timeout_s: float = 60.0) -> list[float]:
    seen: list[float] = []
    work = importer.convert_to_nbd(
        path,
        image_format,
        socket=target.socket,
        export=target.export,
        uid=NOBODY,
        progress=seen.append,
        scratch=scratch,
        timeout_s=timeout_s,
    )
    asyncio.run(work)
    return seen


def _source(tmp_path: Path, kind: str, content: bytes) -> tuple[Path, str]:
    if kind.startswith("qcow2"):
        path = qcow2_file(tmp_path / "a.qcow2", content, *(["-c"] if "deflated" in kind else []))
    else:
        path = raw_file(tmp_path / "a.raw", content, 0o600 if "private" in kind else 0o644)
    suffix = next((suffix for suffix in (".xz", ".zst") if kind.endswith(suffix)), None)
    return (compressed(path, suffix) if suffix else path), kind[: 5 if kind.startswith("qcow2") else 3]


@pytest.mark.parametrize(
    "kind", ["raw", "raw private", "raw .xz", "raw .zst", "qcow2", "qcow2 deflated", "qcow2 .xz", "qcow2 .zst"]
)
def test_every_kind_arrives_whole_and_sparse(tmp_path: Path, target: Target, scratch: Path, kind: str) -> None:
    content = sparse_content(SIZE_BYTES)
    path, image_format = _source(tmp_path, kind, content)
    before = path.stat()
    seen = convert(path, image_format, target, scratch)
    assert target.file.read_bytes() == content
    assert target.file.stat().st_blocks * 512 < SIZE_BYTES // 4
    assert seen[-1] == 1.0 and seen == sorted(seen)
    assert list(scratch.iterdir()) == []
    after = path.stat()
    assert (before.st_mode, before.st_uid, before.st_mtime_ns) == (after.st_mode, after.st_uid, after.st_mtime_ns)


def test_a_raw_disk_with_a_foreign_header_is_copied_and_not_interpreted(
    tmp_path: Path, target: Target, scratch: Path
) -> None:
    canary = raw_file(tmp_path / "canary", b"secret" * 1000)
    inner = qcow2_file(tmp_path / "inner.qcow2", bytes(MIB)).read_bytes()
    name = str(canary).encode()
    header = inner[:8] + (0x200).to_bytes(8, "big") + len(name).to_bytes(4, "big") + inner[20:0x200] + name
    content = header.ljust(SIZE_BYTES, b"\0")
    convert(raw_file(tmp_path / "a.raw", content), "raw", target, scratch)
    assert target.file.read_bytes() == content


def test_a_file_that_was_swapped_after_inspection_is_refused(tmp_path: Path, target: Target, scratch: Path) -> None:
    image = qcow2_file(tmp_path / "a.qcow2", bytes(MIB))
    assert importer.inspect(image).format == "qcow2"
    data = bytearray(image.read_bytes())
    data[79] |= 1 << 2
    image.write_bytes(data)
    with pytest.raises(Refused) as refused:
        convert(image, "qcow2", target, scratch)
    assert refused.value.code == "image.hostile"


def test_even_an_unchecked_hostile_image_reaches_no_file_of_the_host(tmp_path: Path, target: Target) -> None:
    """The second wall: the header check is left out on purpose."""
    canary = raw_file(tmp_path / "canary.raw", b"canary" * 100_000)
    tmp_path.chmod(0o755)
    image = tmp_path / "a.qcow2"
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(canary), "-F", "raw", str(image), str(MIB)]
    subprocess.run(command, check=True)
    root = tmp_path / "jail"
    root.mkdir()
    done = process.run(
        jailed(Jail(root, image, target.socket, NOBODY), conversion("qcow2", target.export)), check=False
    )
    assert done.returncode != 0 and b"canary.raw" in done.stderr
    assert b"canary" not in target.file.read_bytes()


def test_the_jail_holds_nothing_but_what_the_conversion_needs(tmp_path: Path, target: Target) -> None:
    source = raw_file(tmp_path / "a.raw", bytes(MIB))
    root = tmp_path / "jail"
    root.mkdir()
    look = (
        "ls -a /; id -u; id -G; "
        "for place in / /tmp /usr /source; do touch $place/x 2>/dev/null && echo wrote $place; done; "
        "echo x 2>/dev/null >>/source && echo wrote source; ls /proc /sys /dev /etc /run 2>/dev/null; "
        "chroot / true 2>/dev/null && echo chroot; mknod /tmp/d c 1 3 2>/dev/null && echo mknod; exit 0"
    )
    done = process.run(jailed(Jail(root, source, target.socket, NOBODY), ["/bin/sh", "-c", look]))
    entries = [".", "..", "bin", "lib", "lib64", "nbd.sock", "sbin", "source", "tmp", "usr"]
    assert done.stdout.decode().split() == [*entries, str(NOBODY), str(NOBODY)]
    assert not root.is_mount() and list(root.iterdir()) == []
    assert source.read_bytes() == bytes(MIB)


def test_a_damaged_body_is_a_clear_failure(tmp_path: Path, target: Target, scratch: Path) -> None:
    image = qcow2_file(tmp_path / "a.qcow2", b"text that compresses well " * (SIZE_BYTES // 26), "-c")
    data = bytearray(image.read_bytes())
    start = 5 * 65536
    assert len(data) > start + 100
    data[start:] = b"\xff" * (len(data) - start)
    image.write_bytes(data)
    with pytest.raises(Failed) as failed:
        convert(image, "qcow2", target, scratch)
    assert failed.value.code == "image.convert_failed" and failed.value.cause and failed.value.remedy
    assert list(scratch.iterdir()) == []


def test_an_export_that_is_not_there_or_too_small_is_a_clear_failure(
    tmp_path: Path, target: Target, scratch: Path
) -> None:
    larger = raw_file(tmp_path / "a.raw", b"\1" * (SIZE_BYTES + MIB))
    with pytest.raises(Failed) as small:
        convert(larger, "raw", target, scratch)
    assert small.value.code == "image.convert_failed" and "small" in str(small.value.cause)
    target.export = "another"
    with pytest.raises(Failed):
        convert(larger, "raw", target, scratch)
    target.export = "x,file.filename=/etc/passwd"
    with pytest.raises(Invalid) as refused:
        convert(larger, "raw", target, scratch)
    assert refused.value.code == "image.export"


def test_a_late_or_cancelled_conversion_leaves_no_process_and_no_file(
    tmp_path: Path, target: Target, scratch: Path
) -> None:
    image = raw_file(tmp_path / "a.raw", sparse_content(SIZE_BYTES), 0o600)
    os.kill(target.process.pid, signal.SIGSTOP)
    with pytest.raises(Failed) as late:
        convert(image, "raw", target, scratch, timeout_s=0.5)
    assert late.value.code == "image.convert_timeout"
    assert list(scratch.iterdir()) == []

    async def cancel_it() -> None:
        work = asyncio.create_task(
            importer.convert_to_nbd(
                image, "raw", socket=target.socket, export=target.export, uid=NOBODY, scratch=scratch
            )
        )
        await asyncio.sleep(0.5)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(cancel_it())
    os.kill(target.process.pid, signal.SIGCONT)
    assert list(scratch.iterdir()) == []
