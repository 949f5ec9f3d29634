"""Giving a tap that had to be made again to the process that had the old one open: its guest goes on.

A process whose tap somebody deleted keeps an open file of /dev/net/tun without a device. Root borrows that very file
(pidfd_getfd(2)) and attaches it to the new tap.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from contextlib import suppress
from pathlib import Path

from innkeeper.network.links import TAP_FLAGS, TUNSETIFF

_TUNSETVNETHDRSZ = 0x400454D8
_PIDFD_GETFD = 438
HEADER_BYTES = 12
"""The header that QEMU's virtio cards put before each frame once the guest's driver runs."""


def give_back(pid: int, tap: str, header_bytes: int = HEADER_BYTES) -> bool:
    """Attach the file of ``pid`` that has lost its tap to ``tap``, which must not be open.

    False where there is none, or several and nobody knows which it was, or where the kernel refuses: then only a new
    start of the process helps. Segmentation offloads of the guest stay off until then.
    """
    lost = _lost_files(pid)
    if len(lost) != 1:
        return False
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        borrowed = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, lost[0], 0)
    finally:
        os.close(process)
    if borrowed < 0:
        return False
    try:
        fcntl.ioctl(borrowed, TUNSETIFF, struct.pack("16sH22x", tap.encode(), TAP_FLAGS))
        fcntl.ioctl(borrowed, _TUNSETVNETHDRSZ, struct.pack("i", header_bytes))
    except OSError:
        return False
    finally:
        os.close(borrowed)
    return True


def _lost_files(pid: int) -> list[int]:
    """The descriptors of a process that are open taps without a device."""
    found = []
    with suppress(OSError):  # it may end meanwhile
        for entry in list(Path(f"/proc/{pid}/fd").iterdir()):
            with suppress(OSError):  # it may be closed meanwhile
                if str(entry.readlink()) == "/dev/net/tun":
                    facts = Path(f"/proc/{pid}/fdinfo/{entry.name}").read_text().splitlines()
                    if any(line.startswith("iff:") and not line[4:].strip() for line in facts):
                        found.append(int(entry.name))
    return found
