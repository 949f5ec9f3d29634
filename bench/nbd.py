"""One disk over NBD beside qemu-nbd: random writes as a burst and sustained, hot random reads, sequential reads."""

from __future__ import annotations

from bench.report import Context, Row, higher
from bench.serve import FILL, GIB, MIB, PEER, RANDOM, Job, Served, fio, iops, pairs

BURST: Job = {"rw": "randwrite", "bs": "4k", "iodepth": 32, "size": "1g", "io_size": "256m"}
SIZE_BYTES = 8 * GIB
_HOT_BYTES = 512 * MIB


def hot_reads(served: Served, size_bytes: int, seconds: int) -> float:
    """Random reads a second of disks that are filled up to ``size_bytes``, of which all has been read before."""
    job = RANDOM | {"rw": "randread", "size": size_bytes}
    fio(served, job | {"runtime": max(1, seconds // 3)})
    return iops(fio(served, job | {"runtime": seconds}))


def _short(served: Served, quick: bool) -> dict[str, float]:
    seconds = 3 if quick else 15
    found = {"burst": iops(fio(served, BURST))}
    served.drain()
    fio(served, FILL | {"size": _HOT_BYTES})
    served.drain()
    found["hot"] = hot_reads(served, _HOT_BYTES, seconds)
    size = GIB if quick else 2 * GIB
    fio(served, FILL | {"offset": "2g", "size": size})
    served.drain()
    read: Job = {"rw": "read", "bs": "1m", "iodepth": 8, "time_based": 1, "offset": "2g", "size": size}
    fio(served, read | {"runtime": 1})
    found["read"] = fio(served, read | {"runtime": seconds})["read"]["bw_bytes"] / MIB
    return found


def _sustained(served: Served, quick: bool) -> dict[str, float]:
    """Random writes over a pre-filled disk, after the log has long been full; the last minute of ten."""
    size, ramp_s, seconds = (GIB, 20, 10) if quick else (SIZE_BYTES, 540, 60)
    fio(served, FILL | {"size": size})
    job = RANDOM | {"rw": "randwrite", "size": size, "ramp_time": ramp_s, "runtime": seconds}
    return {"sustained": iops(fio(served, job))}


def rows(context: Context) -> list[Row]:
    """The rows of one disk."""
    mine, theirs = pairs(context, SIZE_BYTES, lambda served: _short(served, context.quick))
    late, their_late = pairs(context, SIZE_BYTES, lambda served: _sustained(served, context.quick), rounds=1)
    mine, theirs = mine | late, theirs | their_late
    named = {
        "burst": ("4 KiB random write QD 32, burst", "IOPS", 2.0),
        "sustained": ("4 KiB random write QD 32, sustained", "IOPS", 1.0),
        "hot": ("4 KiB random read QD 32, hot", "IOPS", 1.5),
        "read": ("1 MiB sequential read", "MiB/s", 1.0),
    }
    return [higher(name, mine[key], unit, PEER, theirs[key], goal) for key, (name, unit, goal) in named.items()]
