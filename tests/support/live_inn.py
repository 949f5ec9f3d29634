"""A whole inn for a test: founded in a directory of its own, driven by the command that people type, then ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from innkeeper.client.inn import InnClient
from innkeeper.fabric.client import FabricClient
from innkeeper.model.resources import TaskState
from innkeeper.system.paths import Paths

SMALL = ("--image", "probe", "--memory", "128M")
"""Options of a guest that boots in seconds."""
UNDER_WAY = (TaskState.QUEUED, TaskState.RUNNING, TaskState.UNDOING)


def eventually(condition: Callable[[], bool], what: str, patience_s: float = 60, every_s: float = 0.1) -> None:
    """Wait until ``condition`` holds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(every_s)


class LiveInn:
    """An inn at ``state``; ``inn("vm", "ls")`` runs ``inn vm ls``."""

    def __init__(self, state: Path) -> None:
        self.state = state

    def run(self, *words: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """Run ``inn words...`` whatever comes of it."""
        command = [sys.executable, "-m", "innkeeper", *words]
        environment = {**os.environ, "INNKEEPER_STATE": str(self.state), "NO_COLOR": "1"}
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL
        )

    def __call__(self, *words: str) -> str:
        """What ``inn words...`` prints; it must succeed."""
        ended = self.run(*words)
        said = f"inn {' '.join(words)} -> {ended.returncode}\n{ended.stdout}{ended.stderr}"
        assert ended.returncode == 0, said + (self.log_end() if "daemon.unreachable" in said else "")
        return ended.stdout

    def log_end(self) -> str:
        """The end of the daemon's log: what it said last."""
        return (self.state / "log" / "daemon.log").read_text(errors="replace")[-6000:]

    def json(self, *words: str) -> Any:
        """What ``inn words... -o json`` prints, parsed."""
        return json.loads(self(*words, "-o", "json"))

    def checks(self) -> Any:
        """What ``inn doctor`` finds; it may end with 1."""
        return json.loads(self.run("doctor", "-o", "json").stdout)

    def refused(self, code: str, *words: str) -> str:
        """``inn words...`` must fail with that problem code; returns what it says."""
        ended = self.run(*words)
        assert ended.returncode == 1, f"inn {' '.join(words)} -> {ended.returncode}\n{ended.stdout}{ended.stderr}"
        assert f"[{code}]" in ended.stderr, ended.stderr
        assert "remedy:" in ended.stderr, ended.stderr
        return ended.stderr

    def sh(self, vm: str, script: str) -> str:
        """The output of a shell script in a guest."""
        return self("vm", "exec", vm, "--", "sh", "-c", script).strip()

    def pid(self, process: str) -> int:
        """The pid of the inn's ``daemon``, ``fabric`` or ``keeper``."""
        return int(self.json("host", "show")[f"{process}_pid"])

    def fabric(self, operation: str, **arguments: Any) -> Any:
        """One control operation of the inn's fabric, such as ``disk_ls``."""

        async def call() -> Any:
            client = FabricClient(Paths.open(self.state).fabric_socket)
            await client.connect()
            try:
                return await getattr(client, operation)(**arguments)
            finally:
                await client.close()

        return asyncio.run(call())

    def attached(self) -> set[str]:
        """The fabric's attachments."""
        return {each["id"] for each in self.fabric("attachment_ls")}

    def kill_at(self, step: str, *words: str) -> dict[str, Any]:
        """Start ``inn words...``, kill the daemon in that step, start it again; the task when it has been settled.

        Nothing runs between seeing the step and the kill that could give the step the time to end.
        """
        daemon = self.pid("daemon")
        task_id = self.json(*words, "--no-wait")["id"]
        with InnClient(Paths.open(self.state).api_socket) as client:

            def running() -> bool:
                shown = client.tasks.show(task_id)
                assert shown.state in UNDER_WAY, f"{shown.state} before it could be killed: {shown.problem}"
                return any(each.name == step and each.state == "running" for each in shown.steps)

            eventually(running, f"step {step!r} runs", every_s=0.005)
            os.kill(daemon, signal.SIGKILL)
        self("up")
        eventually(lambda: self.json("task", "show", task_id)["state"] not in UNDER_WAY, "the task has been settled")
        settled = dict(self.json("task", "show", task_id))
        assert settled["state"] == "failed", settled
        return settled


@contextmanager
def live_inn(state: Path) -> Iterator[LiveInn]:
    """An inn that is up; afterwards it has ended and left nothing but its directory."""
    inn = LiveInn(state)
    inn("up")
    try:
        yield inn
    finally:
        ended = inn.run("down", "--force")
        assert ended.returncode == 0, ended.stdout + ended.stderr
