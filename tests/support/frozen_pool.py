"""Pools of earlier formats, kept as text: files as runs of non-zero bytes, and what their disks must read as.

``python tests/support/frozen_pool.py`` makes the one of the program as it stands, named after the formats of meta and
of the log; it is run once, when a format is new, and what it wrote is never changed afterwards.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import random
import tempfile
from pathlib import Path
from typing import Any
from uuid import UUID

from innkeeper.fabric import logformat, meta
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.system.files import Io

FROZEN = Path(__file__).parents[1] / "fabric" / "frozen"
LIMITS = Limits(log_bytes=4 << 20, segment_bytes=1 << 20, group_bytes=1 << 20)
PAGE = 4096
STORAGE, DISK, CLONE, SNAPSHOT, LATE, WRITER, HOLD = (str(UUID(int=number)) for number in range(1, 8))
SIZE = (5 << 20) + 512


def freeze(directory: Path) -> dict[str, Any]:
    """Every file below ``directory``: its size, its runs of pages that are not zero, and the bytes of those."""
    files = {}
    content = bytearray()
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            runs: list[list[int]] = []
            for offset in range(0, len(data), PAGE):
                if not data[offset : offset + PAGE].strip(b"\0"):
                    continue
                if runs and sum(runs[-1]) == offset:
                    runs[-1][1] += PAGE
                else:
                    runs.append([offset, PAGE])
                content += data[offset : offset + PAGE].ljust(PAGE, b"\0")
            files[str(path.relative_to(directory))] = {"size": len(data), "runs": runs}
    packed = base64.b85encode(lzma.compress(bytes(content), preset=9)).decode()
    return {"files": files, "lzma_base85": [packed[at : at + 110] for at in range(0, len(packed), 110)]}


def thaw(frozen: dict[str, Any], directory: Path) -> None:
    """The files of ``freeze``."""
    content = io.BytesIO(lzma.decompress(base64.b85decode("".join(frozen["lzma_base85"]))))
    for name, facts in frozen["files"].items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for offset, length in facts["runs"]:
                file.seek(offset)
                file.write(content.read(length))
            file.truncate(facts["size"])


def write(pool: Pool, disk_id: str, pieces: dict[int, bytes]) -> None:
    pool.attach(WRITER, disk_id=disk_id, role="writer")
    volume = pool.volume(WRITER)
    for offset, data in pieces.items():
        volume.stage_write(offset, data)
        pool.submit()
    volume.close()
    pool.detach(WRITER)


def stream(pool: Pool, disk_id: str, offset: int, data: bytes) -> None:
    """Write whole blocks past the log."""
    pool.attach(WRITER, disk_id=disk_id, role="writer")
    volume = pool.volume(WRITER)
    volume.stage_stored(offset, data, volume.store_blocks(offset, data))
    pool.submit()
    pool.detach(WRITER)


def digests(pool: Pool) -> dict[str, str]:
    """SHA-256 of every disk and snapshot of the pool, by id."""
    found = {}
    subjects = [("disk_id", disk["id"]) for disk in pool.disk_ls()]
    subjects += [("snapshot_id", snapshot["id"]) for snapshot in pool.snapshot_ls()]
    for what, subject in subjects:
        pool.attach(WRITER, role="reader", **{what: subject})
        volume = pool.volume(WRITER)
        found[subject] = hashlib.sha256(volume.read_blocking(0, volume.size_bytes)).hexdigest()
        volume.close()
        pool.detach(WRITER)
    return found


def make(directory: Path) -> dict[str, str]:
    """A pool with a bit of everything, closed; returns the digests of its content."""
    chance = random.Random(7)
    pool = Pool.open(Io(), str(directory), limits=LIMITS, background=False)
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, SIZE, STORAGE)
    text = b"".join(b"%08d the guest of the inn\n" % number for number in range(6000))[: 128 << 10]
    write(pool, DISK, {0: text, 1 << 20: chance.randbytes(64 << 10), 2 << 20: text[: 64 << 10], SIZE - 512: b"end" * 8})
    pool.drain()
    write(pool, DISK, {4 * PAGE: chance.randbytes(PAGE), (1 << 20) + PAGE: bytes(PAGE), 3 << 20: b"x" * PAGE})
    pool.drain()
    pool.snapshot_create({SNAPSHOT: DISK})
    pool.disk_clone(CLONE, SNAPSHOT)
    write(pool, CLONE, {0: b"clone" * 100, 4 << 20: text[: 3 * PAGE]})
    write(pool, DISK, {7 * PAGE: chance.randbytes(2 * PAGE)})
    pool.snapshot_create({LATE: DISK})
    pool.hold(HOLD, LATE)
    stream(pool, CLONE, 2 << 20, chance.randbytes(64 << 10) + text[: 64 << 10])
    write(pool, DISK, {8 * PAGE: b"undrained" * 400})
    found = digests(pool)
    pool.close()
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        found = make(Path(place))
        content = {"digests": found, **freeze(Path(place))}
    FROZEN.mkdir(exist_ok=True)
    target = FROZEN / f"pool-v{meta.VERSION}-log-v{logformat.VERSION}.json"
    target.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{target}: {target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
