"""What of SQLite's write-ahead log was left out though it had been committed (sqlite.org/walformat.html)."""

from __future__ import annotations

import struct

from innkeeper.fabric.layout import PAGE
from innkeeper.system.files import File

_WAL_HEADER, _WAL_FRAME, _COMMITS_OF_ONE = 32, 24 + PAGE, 2


def first_lost_commit(file: File, frames: int) -> int | None:
    """Where a write-ahead log (sqlite.org/walformat.html) has a further commit behind the ``frames`` that count, or
    None.

    One transaction may be torn, for its sync had not returned: its last frame is there twice, to fill a sector. A
    header that fails its checksum voids all that is there.
    """
    head = file.pread(_WAL_HEADER, 0)
    size = file.size()
    if len(head) < _WAL_HEADER or size < _WAL_HEADER + _WAL_FRAME:
        return None
    salts = head[16:24]
    if _wal_sum(head[:24]) != struct.unpack(">II", head[24:32]):
        return 0
    commits = 0
    for offset in range(_WAL_HEADER + frames * _WAL_FRAME, size - _WAL_FRAME + 1, _WAL_FRAME):
        frame = file.pread(16, offset)
        if frame[8:16] == salts and frame[4:8] != bytes(4):
            commits += 1
            if commits > _COMMITS_OF_ONE:
                return offset
    return None


def _wal_sum(data: bytes) -> tuple[int, int]:
    order = "<" if data[3] == 0x82 else ">"
    one = other = 0
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for index in range(0, len(words), 2):
        one = one + words[index] + other & 0xFFFFFFFF
        other = other + words[index + 1] + one & 0xFFFFFFFF
    return one, other
