"""Which process holds which port, read from /proc as ss does.

The seed's story: a hypervisor's manager failed with "a Hardware Management error" because a Tomcat had taken 443. So a
port that is taken is reported with the name of its holder.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from pathlib import Path

_TCP_LISTEN = "0A"
_UDP_BOUND = "07"


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for others: its address, and the process that holds it where it may be seen."""

    protocol: str
    address: str
    port: int
    inode: int
    pid: int | None = None
    process: str = "unknown"


def parse_table(text: str, protocol: str) -> list[Listener]:
    """The listeners in the text of ``/proc/net/{tcp,tcp6,udp,udp6}`` (format: proc_net_tcp(5)); pure."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] not in (_TCP_LISTEN, _UDP_BOUND):
            continue
        if (fields[3] == _TCP_LISTEN) != protocol.startswith("tcp"):
            continue
        host, _, port = fields[1].partition(":")
        found.append(Listener(protocol[:3], _address(host), int(port, 16), int(fields[9])))
    return found


def _address(hexadecimal: str) -> str:
    raw = bytes.fromhex(hexadecimal)
    words = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    return socket.inet_ntop(socket.AF_INET if len(words) == 4 else socket.AF_INET6, words)


def listeners(proc: Path = Path("/proc")) -> list[Listener]:
    """Every listening socket of this network namespace with its process."""
    found: list[Listener] = []
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        table = proc / "net" / protocol
        if table.exists():
            found += parse_table(table.read_text(), protocol)
    holders = _holders(proc, {listener.inode for listener in found})
    named = []
    for listener in found:
        pid, name = holders.get(listener.inode, (None, listener.process))
        named.append(replace(listener, pid=pid, process=name))
    return named


def _holders(proc: Path, inodes: set[int]) -> dict[int, tuple[int, str]]:
    holders: dict[int, tuple[int, str]] = {}
    for directory in proc.iterdir():
        if not directory.name.isdigit():
            continue
        try:
            for descriptor in (directory / "fd").iterdir():
                target = str(descriptor.readlink())
                if target.startswith("socket:[") and int(target[8:-1]) in inodes:
                    name = (directory / "comm").read_text().strip()
                    holders[int(target[8:-1])] = (int(directory.name), name)
        except OSError:
            continue  # the process has ended meanwhile, or is not ours to look into
    return holders
