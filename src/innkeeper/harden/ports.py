"""Which process holds which port, as ``ss`` tells it.

The seed's story: a hypervisor's manager failed with "a Hardware Management error" because a Tomcat had taken 443. So a
port that is taken is reported with the name of its holder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from innkeeper.system import process

_HOLDER = re.compile(r'\("(?P<name>[^"]*)",pid=(?P<pid>\d+)')
_WILDCARDS = ("0.0.0.0", "::", "*")


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for others: its address, and the process that holds it where it may be seen.

    ``device`` is the only interface that it hears, None when it hears all.
    """

    protocol: str
    address: str
    port: int
    device: str | None = None
    pid: int | None = None
    process: str = "unknown"

    def takes(self, address: str, device: str) -> bool:
        """Whether another socket would find ``address`` on ``device`` taken."""
        return self.device in (None, device) and (self.everywhere or self.address == address)

    @property
    def everywhere(self) -> bool:
        return self.address in _WILDCARDS


def parse_sockets(text: str) -> list[Listener]:
    """The listeners in the output of ``ss -H -l -n -t -u -p`` (columns: ss(8)); pure."""
    found = []
    for line in text.splitlines():
        fields = line.split(maxsplit=6)
        if len(fields) < 6 or fields[0] not in ("tcp", "udp"):
            continue
        host, _, port = fields[4].rpartition(":")
        address, _, device = host.partition("%")
        holder = _HOLDER.search(fields[6]) if len(fields) > 6 else None
        listener = Listener(fields[0], address.strip("[]"), int(port), device.strip("]") or None)
        found.append(replace(listener, pid=int(holder["pid"]), process=holder["name"]) if holder else listener)
    return found


def listeners() -> list[Listener]:
    """Every listening socket of this network namespace with its process. Raises ``Unavailable`` (``tool.missing``)."""
    ended = process.run(["ss", "-H", "-l", "-n", "-t", "-u", "-p"], check=False, timeout_s=10)
    return parse_sockets(ended.stdout.decode(errors="replace"))


def command_names(pid: int, directory: Path) -> bool:
    """Whether the command line of a process names ``directory`` or something in it."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return f"{directory}/".encode() in command
