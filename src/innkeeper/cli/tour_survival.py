"""Killing the daemon and the fabric under running guests."""

from __future__ import annotations

import os
import signal
import threading
import time

from innkeeper.cli import lifecycle, processes
from innkeeper.cli.tour_stage import GUESTS, Stage, require
from innkeeper.client.inn import InnClient
from innkeeper.model import requests as ask
from innkeeper.model.problems import Problem
from innkeeper.model.views import ExecResult
from innkeeper.system import process

_LINES = 300
_WRITER = f"""
i=0
: > /stamps
while [ $i -lt {_LINES} ]; do
  i=$((i+1))
  printf 'stamp %06d\\n' $i | dd of=/stamps bs=13 seek=$((i-1)) conv=notrunc,fsync 2>/dev/null ||
    {{ echo failed; exit 1; }}
  echo $i
  echo $i > /run/told
done
"""
_PATIENCE_S = 60.0


def kill_daemon(stage: Stage) -> None:
    """SIGKILL, start again: the guests never noticed and are adopted."""
    before = {guest: stage.client.vms.show(guest).status.pid for guest in GUESTS}
    pid = stage.client.host.show().daemon_pid
    os.kill(pid, signal.SIGKILL)
    require(processes.wait_end(pid, 10.0), f"daemon {pid} survived SIGKILL")
    running = [guest for guest, guest_pid in before.items() if guest_pid and not process.has_ended(guest_pid)]
    require(len(running) == len(GUESTS), "a guest ended with the daemon", cause=f"still running: {running}")
    stage.say(f"daemon {pid} killed; all {len(running)} guests run on")
    with stage.timed("daemon started again"):
        health = lifecycle.start(stage.session)
    require(health.daemon_pid != pid, "the daemon is the old one")
    with stage.timed("guests adopted"):
        after = {guest: stage.ready(guest).status.pid for guest in GUESTS}
    require(after == before, "guests were not adopted", cause=f"pids before {before}, after {after}")
    stage.say(f"same processes as before: {', '.join(f'{guest} {pid}' for guest, pid in after.items())}")


class _Writer:
    """A guest that writes stamped lines, each with fsync, and prints the number of each that it was told is written."""

    def __init__(self, stage: Stage, guest: str) -> None:
        self._client = InnClient(stage.session.paths.api_socket)
        self._guest = guest
        self.outcome: ExecResult | Problem | None = None
        self._thread = threading.Thread(target=self._run, name="writer")
        self._thread.start()

    def _run(self) -> None:
        wish = ask.VmExec(argv=["sh", "-c", _WRITER], timeout_s=180.0)
        try:
            self.outcome = self._client.vms.exec(self._guest, wish)
        except Problem as problem:
            self.outcome = problem
        finally:
            self._client.close()

    def wait(self) -> ExecResult:
        """What it printed. Raises its problem."""
        self._thread.join()
        if isinstance(self.outcome, Problem):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome


def _told(stage: Stage, guest: str) -> int:
    return int(stage.sh(guest, "cat /run/told 2>/dev/null || echo 0") or 0)


def kill_fabric(stage: Stage) -> None:
    """SIGKILL while a guest writes: its I/O pauses, goes on, and nothing that it was told is written is missing."""
    guest = GUESTS[1]
    stage.sh(guest, "rm -f /run/told /stamps")
    writer = _Writer(stage, guest)
    try:
        pid = _wait_writing(stage, guest)
        os.kill(pid, signal.SIGKILL)
        killed_at = time.monotonic()
        told = _told(stage, guest)
        stage.say(f"fabric {pid} killed while {guest} writes; it had been told of {told} of {_LINES} lines")
        fresh = _wait_new_fabric(stage, pid)
        stage.say(f"the keeper started fabric {fresh} ({time.monotonic() - killed_at:.2f} s)")
    finally:
        result = writer.wait()
    printed = result.stdout.decode().split()
    require(result.exit_code == 0 and "failed" not in printed, "the guest saw an error", cause=" ".join(printed[-3:]))
    stage.sh(guest, "sync; echo 3 > /proc/sys/vm/drop_caches")
    written = stage.sh(guest, "cat /stamps").splitlines()
    expected = [f"stamp {int(number):06d}" for number in printed]
    require(written == expected, "acknowledged lines are missing", cause=f"{len(written)} of {len(expected)} are there")
    errors = stage.sh(guest, "dmesg | grep -ci 'i/o error' || true")
    require(errors == "0", f"the guest's kernel logged {errors} I/O errors")
    stage.say(f"the guest saw no error; all {len(written)} lines that it was told are written are there")


def _wait_writing(stage: Stage, guest: str) -> int:
    """The fabric's pid once the guest is in the middle of writing."""
    deadline = time.monotonic() + _PATIENCE_S
    while _told(stage, guest) < 20:
        require(time.monotonic() < deadline, f"{guest} does not write")
        time.sleep(0.1)
    pid = stage.client.host.show().fabric_pid
    require(pid is not None, "the fabric's pid is unknown")
    assert pid is not None
    return pid


def _wait_new_fabric(stage: Stage, old: int) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        pid = processes.noted(stage.session.paths, "fabric")
        if pid is not None and pid != old:
            return pid
        require(time.monotonic() < deadline, "the keeper did not start a new fabric")
        time.sleep(0.02)
