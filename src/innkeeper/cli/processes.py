"""The inn's own processes: found by pid file, told from strangers by their command line, ended in an orderly way."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from innkeeper.system import process
from innkeeper.system.paths import Paths

_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Found:
    """A living process: its pid and its command line."""

    pid: int
    command: str


def _command(pid: int) -> str | None:
    """The command line; None when there is no such process or only its remains (a zombie)."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    return line.replace(b"\0", b" ").decode(errors="replace").strip() or None


def belongs(paths: Paths, command: str) -> bool:
    """Whether a command line names this inn's directories: as a word, an option's value, or in QEMU's JSON."""
    homes = "|".join(re.escape(str(home)) for home in (paths.state, paths.run))
    return re.search(rf'(?:^|[\s=,:"])(?:{homes})(?:$|[/\s,:"])', command) is not None


def noted(paths: Paths, name: str) -> int | None:
    """The pid in ``RUN/<name>.pid`` when that process lives and is of this inn."""
    try:
        pid = int((paths.run / f"{name}.pid").read_text())
    except (OSError, ValueError):
        return None
    command = _command(pid)
    return pid if command is not None and belongs(paths, command) else None


def of_inn(paths: Paths) -> Iterator[Found]:
    """Every living process but this one whose command line names this inn and that is part of it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in (os.getpid(), os.getppid()):
            continue
        command = _command(int(entry.name))
        if command is not None and belongs(paths, command) and _is_ours(command):
            yield Found(int(entry.name), command)


def _is_ours(command: str) -> bool:
    """A daemon, fabric, keeper or helper; not an editor or a shell that has a file of the inn on its command line."""
    program = Path(command.split(" ", 1)[0]).name
    helpers = ("qemu-system-", "dnsmasq", "swtpm")
    inner = (" innkeeper.fabric", "-m innkeeper ", "innkeeper.daemon", " innkeeper.network")
    return program.startswith(helpers) or (program.startswith("python") and any(part in command for part in inner))


def wait_end(pid: int, timeout_s: float) -> bool:
    """Whether the process has ended within ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not process.has_ended(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def end(pid: int, *, timeout_s: float = 20.0) -> None:
    """SIGTERM, then SIGKILL when it is still there after ``timeout_s``; returns when it is gone."""
    for number, patience_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 10.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        if wait_end(pid, patience_s):
            return
