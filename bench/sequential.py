"""Sequential writes of 1 MiB to an empty disk with lz4 and deduplication, beside qemu-nbd with neither.

nbdcopy reads the same raw file out of the page cache for both, eight requests under way, and flushes at the end; its
whole run counts. One file is incompressible, the other holds regular files of this machine as a file system has them.
"""

from __future__ import annotations

import time
from pathlib import Path
from random import Random

from bench.backup import make_disk, warm
from bench.report import Context, Row, higher
from bench.serve import GIB, MIB, PEER, Served, pairs
from innkeeper.system import process


def copy_in(served: Served, raw: Path) -> float:
    """Seconds to write the file to the first disk and flush."""
    options = ("--connections=1", "--requests=8", f"--request-size={MIB}", "--sparse=0", "--flush")
    warm(raw)
    began = time.perf_counter()
    process.run(["nbdcopy", *options, str(raw), served.uris[0]], timeout_s=3600)
    return time.perf_counter() - began


def incompressible(path: Path, size_bytes: int) -> None:
    chance = Random(1)
    with path.open("wb") as file:
        for _ in range(size_bytes // MIB):
            file.write(chance.randbytes(MIB))


def rows(context: Context) -> list[Row]:
    """The rows of the sequential stream."""
    size = GIB if context.quick else 4 * GIB
    noise, files = context.work / "noise.raw", context.work / "files.raw"
    incompressible(noise, size)
    used = make_disk(files, size)
    with files.open("r+b") as file:
        file.truncate(used)
    found = []
    for what, raw, goal in (("incompressible data", noise, 0.8), ("real files", files, 1.0)):
        length = raw.stat().st_size

        def measure(served: Served, raw: Path = raw, length: int = length) -> dict[str, float]:
            return {"write": length / MIB / copy_in(served, raw)}

        mine, theirs = pairs(context, size, measure)
        name = f"1 MiB sequential write, lz4 + dedup, {what}, flushed"
        found.append(higher(name, mine["write"], "MiB/s", PEER, theirs["write"], goal))
    return found
