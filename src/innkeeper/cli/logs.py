"""``inn logs``: reads the log files themselves, because they matter most when the daemon does not answer."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from innkeeper.cli.options import InnCommand, Ref
from innkeeper.cli.session import Session, pass_session
from innkeeper.model.problems import NotFound

_POLL_S = 0.3
_KNOWN = ("time", "level", "process", "logger", "message", "traceback")


def _readable(line: str) -> str:
    """A JSON line for people; any other line as it is."""
    try:
        entry: Any = json.loads(line)
    except ValueError:
        return line
    if not isinstance(entry, dict) or "message" not in entry:
        return line
    extra = " ".join(f"{name}={value}" for name, value in entry.items() if name not in _KNOWN)
    head = f"{entry.get('time', '')} {entry.get('process', '')} {entry.get('level', '')}: {entry['message']}"
    return "\n".join(part for part in (f"{head} {extra}".rstrip(), entry.get("traceback", "")) if part)


def _moment(line: str) -> str:
    """What sorts lines of several processes; lines without a time follow the one before."""
    try:
        entry = json.loads(line)
    except ValueError:
        return ""
    return str(entry.get("time", "")) if isinstance(entry, dict) else ""


def _tail(files: list[Path], count: int) -> list[str]:
    """The last ``count`` lines of all files, in order of time."""
    stamped: list[tuple[str, str]] = []
    for file in files:
        moment = ""
        with file.open(errors="replace") as lines:
            for line in deque(lines, maxlen=count):
                moment = _moment(line) or moment
                stamped.append((moment, line.rstrip("\n")))
    return [line for _, line in sorted(stamped, key=lambda each: each[0])][-count:]


def last_lines(file: Path, count: int) -> str | None:
    """The end of one log file for people; None when it says nothing."""
    if not file.exists():
        return None
    return "\n".join(_readable(line) for line in _tail([file], count)) or None


def _follow(files: list[Path], at: dict[Path, int]) -> Iterator[str]:
    """Lines that are added after the offsets ``at``, for ever; a file that was cut is read from its start."""
    while True:
        for file in files:
            size = file.stat().st_size if file.exists() else 0
            if size < at.get(file, 0):
                at[file] = 0
            if size > at.get(file, 0):
                with file.open("rb") as lines:
                    lines.seek(at.get(file, 0))
                    fresh = lines.read()
                whole = fresh[: fresh.rfind(b"\n") + 1]
                at[file] = at.get(file, 0) + len(whole)
                yield from whole.decode(errors="replace").splitlines()
        time.sleep(_POLL_S)


def _files(session: Session, source: str, vm: str | None) -> list[Path]:
    if vm is not None:
        folder = session.paths.vm_state(session.client.vms.show(vm).id)
        return sorted(folder.rglob("*.log"))
    names = ("daemon", "fabric", "keeper") if source == "all" else (source,)
    return [file for name in names if (file := session.paths.logs / f"{name}.log").exists()]


@click.command(cls=InnCommand)
@click.option("--source", type=click.Choice(["all", "daemon", "fabric", "keeper"]), default="all", show_default=True)
@click.option("--vm", type=Ref("vms"), help="What QEMU and the helpers of that guest said.")
@click.option("-n", "--lines", "count", type=click.IntRange(0), default=50, show_default=True)
@click.option("-f", "--follow", is_flag=True, help="Go on until interrupted.")
@pass_session
def logs(session: Session, source: str, vm: str | None, count: int, follow: bool) -> None:
    """What the inn's processes and guests logged; -o json prints the lines as they are."""
    files = _files(session, source, vm)
    if not files:
        of = f"of guest {vm}" if vm else f"at {session.paths.logs}"
        raise NotFound("log.not_found", f"there is no log {of}", remedy="'inn up' starts the inn")
    form = str if session.format == "json" else _readable
    ends = {file: file.stat().st_size for file in files}
    for line in _tail(files, count) if count else []:
        click.echo(form(line))
    if follow:
        for line in _follow(files, ends):
            click.echo(form(line))
