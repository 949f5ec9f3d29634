"""Disk image files for tests of import: real ones by qemu-img, and an NBD export to convert them to."""

from __future__ import annotations

import lzma
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 1 << 20


def sparse_content(size_bytes: int = 8 * MIB) -> bytes:
    """Zeros with some islands of data, one at the very end."""
    content = bytearray(size_bytes)
    source = random.Random(1)
    for start in (0, MIB, 5 * MIB + 4096, size_bytes - 3 * 4096):
        content[start : start + 3 * 4096] = source.randbytes(3 * 4096)
    return bytes(content)


def raw_file(path: Path, content: bytes, mode: int = 0o644) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def qcow2_file(path: Path, content: bytes, *options: str) -> Path:
    """``content`` as qcow2; ``options`` go to qemu-img convert (``-c`` compresses)."""
    raw = path.with_suffix(".plain")
    raw.write_bytes(content)
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", *options, raw, path], check=True)
    raw.unlink()
    return path


def compressed(path: Path, suffix: str) -> Path:
    """The file compressed as its new name says."""
    data = path.read_bytes()
    target = path.with_name(path.name + suffix)
    target.write_bytes(lzma.compress(data, preset=0) if suffix == ".xz" else zstd.compress(data, 1))
    return target


@dataclass
class Target:
    """An NBD export of a zero-filled file."""

    file: Path
    socket: Path
    process: subprocess.Popen[bytes]
    export: str = "target"


@contextmanager
def nbd_target(directory: Path, size_bytes: int) -> Iterator[Target]:
    """qemu-nbd on a sparse file in ``directory``."""
    file, socket = directory / "target.raw", directory / "n.sock"
    file.touch()
    os.truncate(file, size_bytes)
    command = ["qemu-nbd", "-f", "raw", "-k", str(socket), "-x", "target", "-t", "--discard=unmap", str(file)]
    server = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 30
        while not socket.exists():
            assert server.poll() is None and time.monotonic() < deadline, "qemu-nbd does not start"
            time.sleep(0.01)
        socket.chmod(0o666)
        yield Target(file, socket, server)
    finally:
        server.kill()
        server.wait()
