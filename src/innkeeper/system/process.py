"""The one gate for subprocesses: explicit environment, closed stdin, failures printed so that they can be pasted."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from innkeeper.model.problems import Failed, Unavailable

BASE_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}
_TAIL_BYTES = 4000


@dataclass(frozen=True, slots=True)
class Completed:
    """A process that has ended: what ran, its exit status and its two outputs as bytes."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


def which(tool: str) -> str:
    """The absolute path of ``tool``.

    Raises ``Unavailable`` (``tool.missing``) when it is not installed.
    """
    found = shutil.which(tool, path=BASE_ENVIRONMENT["PATH"])
    if found is None:
        raise Unavailable("tool.missing", f"{tool} is not installed", remedy="run 'make setup' or 'inn doctor'")
    return found


def _failure(completed: Completed) -> Failed:
    errors = completed.stderr[-_TAIL_BYTES:].decode(errors="replace").strip()
    tool = Path(completed.argv[0]).name
    return Failed(
        "tool.failed",
        f"{tool} ended with status {completed.returncode}",
        cause=f"$ {shlex.join(completed.argv)}\n{errors}",
        remedy="run the command by hand to see more",
    )


def _late(command: tuple[str, ...], timeout_s: float | None) -> Failed:
    return Failed("tool.timeout", f"{command[0]} took longer than {timeout_s} s", cause=f"$ {shlex.join(command)}")


def _unstarted(command: tuple[str, ...], refused: OSError) -> Failed:
    return Failed(
        "tool.failed",
        f"{Path(command[0]).name} cannot be started",
        cause=f"{refused}\n$ {shlex.join(command)}",
        remedy="look whether memory, processes or open files of this host are used up",
    )


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    return {**BASE_ENVIRONMENT, **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = 60.0,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Run ``argv`` to its end and return it; blocks.

    Raises ``Unavailable`` (``tool.missing``), ``Failed`` (``tool.failed`` when ``check``, ``tool.timeout``).
    """
    command = (which(argv[0]) if "/" not in argv[0] else argv[0], *argv[1:])
    try:
        ended = subprocess.run(
            command,
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            env=_environment(env),
            cwd=cwd,
            timeout=timeout_s,
            check=False,
            pass_fds=pass_fds,
        )
    except subprocess.TimeoutExpired as late:
        raise _late(command, timeout_s) from late
    except FileNotFoundError as missing:
        raise Unavailable("tool.missing", f"{command[0]} is not installed", remedy="run 'make setup'") from missing
    except OSError as refused:
        raise _unstarted(command, refused) from refused
    completed = Completed(command, ended.returncode, ended.stdout, ended.stderr)
    if check and completed.returncode != 0:
        raise _failure(completed)
    return completed


async def run_async(
    argv: Sequence[str],
    *,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float | None = 60.0,
    check: bool = True,
    pass_fds: Sequence[int] = (),
) -> Completed:
    """Like ``run`` without blocking the event loop; a cancelled or late process is killed and waited for."""
    command = (which(argv[0]) if "/" not in argv[0] else argv[0], *argv[1:])
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except FileNotFoundError as missing:
        raise Unavailable("tool.missing", f"{command[0]} is not installed", remedy="run 'make setup'") from missing
    except OSError as refused:
        raise _unstarted(command, refused) from refused
    try:
        stdout, stderr = await asyncio.wait_for(process.communicate(stdin), timeout_s)
    except TimeoutError as late:
        raise _late(command, timeout_s) from late
    finally:
        if process.returncode is None:
            _kill_group(process.pid)
            await process.wait()
    completed = Completed(command, process.returncode or 0, stdout, stderr)
    if check and completed.returncode != 0:
        raise _failure(completed)
    return completed


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def has_ended(pid: int) -> bool:
    """Whether the process has closed all that it held: it is gone, or only its exit status is left.

    Its command line vanishes earlier (proc(5)): one that is being ended may still hold sockets and locks then.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    fields = stat.rpartition(")")[2].split()
    state, threads = fields[0], int(fields[17])
    return state in "ZX" and threads <= 1


def spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start ``argv`` in a session of its own with closed stdin, its output appended to ``log`` (or discarded).

    The process outlives its parent; while the parent lives, it reaps the process through the returned handle.
    Raises ``Unavailable`` (``tool.missing``), ``Failed`` (``tool.failed``) when it cannot be started.
    """
    command = (which(argv[0]) if "/" not in argv[0] else argv[0], *argv[1:])
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640) if log else subprocess.DEVNULL
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_environment(env),
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except FileNotFoundError as missing:
        raise Unavailable("tool.missing", f"{command[0]} is not installed", remedy="run 'make setup'") from missing
    except OSError as refused:
        raise _unstarted(command, refused) from refused
    finally:
        if output >= 0:
            os.close(output)
