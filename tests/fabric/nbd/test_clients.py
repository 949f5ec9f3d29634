"""Real clients: libnbd's tools and Python binding, QEMU's tools, fio."""

from __future__ import annotations

import json
import os
import random
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from nbd_lab import MIB, NbdLab

GIB = 1 << 30


def run(*command: str) -> str:
    """The output of a command that must succeed."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL, check=False)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}{ended.stderr}"
    return ended.stdout


def libnbd(script: str, *arguments: str) -> str:
    """Run a script with libnbd's binding, which Debian has for its own Python only."""
    return run("/usr/bin/python3", "-c", "import sys, nbd\nh = nbd.NBD()\n" + textwrap.dedent(script), *arguments)


@pytest.fixture
def busy_lab(lab: NbdLab) -> Iterator[NbdLab]:
    """A lab whose pool another disk keeps moving: written, snapshotted, drained and swept by the end of each test."""
    yield lab
    lab.pool.drain()
    assert not lab.pool.check()["problems"]


def test_nbdinfo_sees_the_export_as_it_is(lab: NbdLab) -> None:
    # Without --no-content it prints bytes it never set where the program file(1) is not installed.
    [export] = json.loads(run("nbdinfo", "--no-content", "--json", lab.uri(lab.disk(GIB))))["exports"]
    assert export["export-size"] == GIB
    sizes = [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert sizes == [4096, 65536, 32 * MIB]
    can = ("can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero", "can_df", "can_fast_zero")
    assert all(export[each] for each in can)
    assert not export["is_read_only"]
    assert export["contexts"] == ["base:allocation"]


def test_nbdinfo_cannot_list(lab: NbdLab) -> None:
    export = lab.disk(MIB)
    ended = subprocess.run(
        ["nbdinfo", "--list", f"nbd+unix:///?socket={lab.socket_path}"], capture_output=True, text=True, check=False
    )
    assert ended.returncode != 0
    assert export not in ended.stdout + ended.stderr


def test_nbdcopy_in_and_out_with_holes(busy_lab: NbdLab, tmp_path: Path) -> None:
    source, back = tmp_path / "source.raw", tmp_path / "back.raw"
    chance = random.Random(1)
    with source.open("wb") as file:
        for block in range(0, 48 * MIB, 3 * MIB):
            file.seek(block + chance.randrange(65536) * 8)
            file.write(chance.randbytes(700_000))
        file.truncate(64 * MIB)
    uri = busy_lab.uri(busy_lab.disk(64 * MIB))
    run("nbdcopy", "--flush", str(source), uri)
    run("nbdcopy", uri, str(back))
    assert back.read_bytes() == source.read_bytes()
    holes = [each for each in json.loads(run("nbdinfo", "--map", "--json", uri)) if each["type"] & 1]
    assert sum(each["length"] for each in holes) >= 32 * MIB
    busy_lab.pool.drain()
    run("nbdcopy", uri, str(back))
    assert back.read_bytes() == source.read_bytes()


def test_qemu_img_converts_both_ways_and_compares(busy_lab: NbdLab, tmp_path: Path) -> None:
    qcow2 = tmp_path / "source.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", str(qcow2), "64M")
    run("qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", "-c", "write -P 6 10M 200k", str(qcow2))
    uri = busy_lab.uri(busy_lab.disk(64 * MIB))
    run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", str(qcow2), uri)
    run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", str(qcow2), uri)
    mapped = json.loads(run("qemu-img", "map", "--output=json", "-f", "raw", uri))
    assert sum(each["length"] for each in mapped if each["data"]) < 2 * MIB


@pytest.mark.parametrize("size", [64 * MIB, 64 * MIB + 512])
def test_qemu_io_writes_zeroes_discards_and_flushes(busy_lab: NbdLab, size: int) -> None:
    uri = busy_lab.uri(busy_lab.disk(size))
    commands = (
        "write -P 1 0 128k",
        "write -P 2 4k 512",
        "write -f -P 3 65000 2000",
        "write -z 8k 4k",
        "write -z -u 16k 64k",
        "discard 100k 20k",
        "aio_write -P 4 1M 4M",
        "aio_write -P 5 6M 4M",
        "aio_flush",
        f"write -P 9 {size - 512} 512",
        "flush",
        "read -P 1 0 4k",
        "read -P 2 4k 512",
        "read -P 1 4608 3584",
        "read -P 0 8k 4k",
        "read -P 0 16k 48k",
        "read -P 0 100k 20k",
        "read -P 4 1M 4M",
        "read -P 5 6M 4M",
        f"read -P 9 {size - 512} 512",
    )
    arguments = [word for command in commands for word in ("-c", command)]
    printed = run("qemu-io", "-f", "raw", *arguments, uri)
    assert "Pattern verification failed" not in printed
    assert "error" not in printed.lower()


def test_libnbd_strictly(busy_lab: NbdLab) -> None:
    """libnbd with all its own checks on what the server sends."""
    size = 16 * MIB
    printed = libnbd(
        """
        h.set_request_structured_replies(True)
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        h.connect_uri(sys.argv[1])
        assert h.get_structured_replies_negotiated() and h.can_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
        block = bytes(range(256)) * 256
        h.pwrite(block, 65536, nbd.CMD_FLAG_FUA)
        assert h.pread(65536, 65536) == block
        chunks = []
        keep = lambda data, at, status, error: chunks.append((at, bytes(data))) or 0
        h.pread_structured(65536, 65536, keep, nbd.CMD_FLAG_DF)
        assert chunks == [(65536, block)]
        h.zero(65536, 65536 * 2, nbd.CMD_FLAG_NO_HOLE)
        h.trim(4096, 65536)
        h.flush()
        assert h.pread(4096, 65536) == bytes(4096)
        seen = []
        h.block_status(h.get_size(), 0, lambda context, offset, entries, error: seen.append(entries) or 0)
        assert sum(seen[0][::2]) == h.get_size(), seen
        h.set_strict_mode(0)
        for wrong in (
            lambda: h.pread(4096, h.get_size()),
            lambda: h.pwrite(block, h.get_size() - 4096),
            lambda: h.trim(4096, h.get_size()),
            lambda: h.zero(4096, h.get_size()),
        ):
            try:
                wrong()
            except nbd.Error as refused:
                print(refused.errno)
            else:
                print("done")
        h.shutdown()
        """,
        busy_lab.uri(busy_lab.disk(size)),
    )
    assert printed.split() == ["EINVAL", "ENOSPC", "EINVAL", "ENOSPC"]


def test_a_flush_on_one_connection_covers_the_other(lab: NbdLab) -> None:
    """What MULTI_CONN promises: after the flush nothing that was acknowledged on any connection needs a sync."""
    libnbd(
        """
        other = nbd.NBD()
        for each in (h, other):
            each.connect_uri(sys.argv[1])
            assert each.can_multi_conn()
        other.pwrite(b"o" * 4096, 0)
        h.flush()
        assert h.pread(4096, 0) == b"o" * 4096
        """,
        lab.uri(lab.disk(MIB)),
    )
    assert not lab.pool.needs_sync(lab.pool.log.sequence)


def test_a_snapshot_is_served_read_only_while_its_disk_goes_on(busy_lab: NbdLab) -> None:
    lab = busy_lab
    export = lab.disk(16 * MIB)
    uri = lab.uri(export)
    run("qemu-io", "-f", "raw", "-c", "write -P 1 0 1M", uri)
    snapshot = "00000000-0000-4000-8000-000000000001"
    [attachment] = [each for each in lab.pool.attachment_ls() if each["id"] == export]
    lab.pool.snapshot_create({snapshot: attachment["disk_id"]})
    frozen = lab.uri(lab.attach(snapshot_id=snapshot, role="reader", uid=os.geteuid()))
    run("qemu-io", "-f", "raw", "-c", "write -P 2 0 1M", uri)
    assert "verification failed" not in run("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 1M", frozen)
    lab.pool.drain()
    assert "verification failed" not in run("qemu-io", "-r", "-f", "raw", "-c", "read -P 1 0 1M", frozen)
    assert "verification failed" not in run("qemu-io", "-f", "raw", "-c", "read -P 2 0 1M", uri)


def fio(lab: NbdLab, tmp_path: Path, export: str, *options: str) -> dict[str, object]:
    output = tmp_path / "fio.json"
    common = ("--name=job", "--ioengine=nbd", f"--uri={lab.uri(export)}", "--output-format=json", f"--output={output}")
    run("fio", *common, *options)
    text = output.read_text()
    found: dict[str, object] = json.loads(text[text.index("{") :])["jobs"][0]
    assert found["error"] == 0
    return found


def test_fio_verifies_what_it_wrote(busy_lab: NbdLab, tmp_path: Path) -> None:
    fio(
        busy_lab,
        tmp_path,
        busy_lab.disk(64 * MIB),
        *("--rw=randwrite", "--bs=4k", "--iodepth=32", "--size=32m"),
        *("--verify=crc32c", "--verify_backlog=256", "--verify_fatal=1", "--verify_state_save=0"),
    )
