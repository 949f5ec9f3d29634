"""The guard of an uplink's move: a process of its own that gives the host's network back unless that is confirmed.

``python -m innkeeper.network.uplink_guard RECORD`` waits beside the daemon, in a session of its own, and needs nothing
of it: not that it lives, and no file but the record. It ends when the record says that it was confirmed, or is gone.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from innkeeper.network.links import write_sysctl
from innkeeper.network.uplink_batch import run_batch
from innkeeper.network.uplink_plan import return_steps
from innkeeper.network.uplink_record import Record, RecordFile, boot_time_s

_LOOK_S = 0.1
_TRIES = 5


def index_of(name: str) -> int:
    """The index of a device of this thread's namespace; 0 when there is none."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def give_back(record: Record) -> list[str]:
    """Put the card and the host's network back as they were; returns what the kernel refused. May be repeated."""
    if index_of(record.uplink) == 0:
        return [f"{record.uplink} is gone: {', '.join(map(str, record.network.addresses)) or 'nothing'} stays away"]
    hears_ipv6 = record.network.setting("ipv6/disable_ipv6")
    if hears_ipv6 is not None:  # a bridge's port has no IPv6 of its own; before addresses can come back it must
        write_sysctl(f"net/ipv6/conf/{record.uplink}/disable_ipv6", hears_ipv6, optional=True)
    refused: list[str] = []
    for attempt in range(_TRIES):
        refused = run_batch(return_steps(record.uplink, record.bridge, record.network), index_of)
        if not refused:
            break
        time.sleep(0.1 * attempt)
    return refused


def give_back_unconfirmed(file: RecordFile, now: Callable[[], float] = boot_time_s) -> bool:
    """Give back what nobody confirmed in time; whether the guard's work is done."""
    with file.locked():
        record = file.read()
        if record is None or record.state != "pending":
            return True
        if now() < record.deadline_s:
            return False
        refused = give_back(record)
        file.write(record.model_copy(update={"state": "returned", "refused": refused}))
    return True


def main() -> int:
    """Wait and act; the ready mark says that all that is needed is in memory."""
    file = RecordFile.at(Path(sys.argv[1]))
    file.mark_ready()
    while True:
        record = file.read()
        if record is None or record.state != "pending":
            return 0
        if boot_time_s() >= record.deadline_s and give_back_unconfirmed(file):
            return 0
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
