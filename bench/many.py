"""Four disks of one pool beside four qemu-nbd: writes with a flush every 64, hot reads, and a mix of both; and the
writes with flushes of one disk.

"Hot" is a working set of 512 MiB, that of four disks together: what the content cache of a machine of 16 GiB holds.
"""

from __future__ import annotations

from bench.nbd import hot_reads
from bench.report import Context, Row, higher
from bench.serve import FILL, GIB, MIB, PEER, RANDOM, Served, fio, iops, pairs

DISKS = 4
_HOT_BYTES = 512 * MIB // DISKS


def _flushed(served: Served, quick: bool) -> float:
    """Random writes a second, a flush after every 64, on the filled start of the disks."""
    size, seconds = (256 * MIB, 5) if quick else (2 * GIB // len(served.uris), 20)
    fio(served, FILL | {"size": size})
    served.drain()
    return iops(fio(served, RANDOM | {"rw": "randwrite", "fsync": 64, "size": size, "runtime": seconds}))


def _four(served: Served, quick: bool) -> dict[str, float]:
    seconds = 5 if quick else 20
    fio(served, FILL | {"size": _HOT_BYTES})
    served.drain()
    found = {"hot": hot_reads(served, _HOT_BYTES, seconds)}
    mix = RANDOM | {"rw": "randrw", "rwmixread": 70, "size": _HOT_BYTES, "runtime": seconds}
    found["mix"] = iops(fio(served, mix))
    served.drain()
    found["flushed"] = _flushed(served, quick)
    return found


def rows(context: Context) -> list[Row]:
    """The rows of many disks, and of flushes."""
    one, their_one = pairs(context, 4 * GIB, lambda served: {"flushed": _flushed(served, context.quick)})
    four, their_four = pairs(context, 4 * GIB, lambda served: _four(served, context.quick), DISKS)
    peers = f"{DISKS} {PEER}"
    write, read = "4 KiB random write QD 32, fsync=64", "4 KiB random read QD 32, hot"
    return [
        higher(f"{write}: one disk", one["flushed"], "IOPS", PEER, their_one["flushed"], 1.1),
        higher(f"{write}: {DISKS} disks", four["flushed"], "IOPS", peers, their_four["flushed"], 1.8),
        higher(f"{read}: {DISKS} disks", four["hot"], "IOPS", peers, their_four["hot"], 1.5),
        higher(f"4 KiB random 70/30 mix QD 32: {DISKS} disks", four["mix"], "IOPS", peers, their_four["mix"], 1.5),
    ]
