"""Random reads of drained, compressed data of four times the content cache's size.

The cache is made small (``cache_resize``), so that the working set fits the memory of a small machine: what is stored
of ours and the peer's qcow2 file are both wholly in the page cache, having just been written and read. The row shows
the cost of decompression, not that of a medium.
"""

from __future__ import annotations

from bench.report import Context, Row, higher
from bench.serve import FILL, GIB, MIB, PEER, RANDOM, Served, fio, iops, pairs

TIMES = 4


def rows(context: Context) -> list[Row]:
    """The row of the cold disk."""
    cache_bytes = 32 * MIB if context.quick else 256 * MIB
    size = TIMES * cache_bytes

    def measure(served: Served) -> dict[str, float]:
        if served.fabric is not None:
            served.fabric.ask("cache_resize", cache_bytes)
        fio(served, FILL | {"size": size})
        served.drain()
        fio(served, {"rw": "read", "bs": "1m", "iodepth": 8, "size": size})
        job = RANDOM | {"rw": "randread", "size": size}
        fio(served, job | {"runtime": 2})
        return {"read": iops(fio(served, job | {"runtime": 4 if context.quick else 20}))}

    mine, theirs = pairs(context, 2 * GIB, measure)
    name = f"4 KiB random read QD 32, compressed, working set {TIMES} x the cache"
    return [higher(name, mine["read"], "IOPS", PEER, theirs["read"], 0.7)]
