"""When a process counts as ended."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting_process import waiting_process

from innkeeper.model.problems import Failed
from innkeeper.system import process

LEADER_ENDS = """
import ctypes, sys, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
print(flush=True)
ctypes.CDLL(None).pthread_exit(None)
"""


def until(condition: object, patience_s: float = 10) -> bool:
    deadline = time.monotonic() + patience_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_a_process_that_runs_has_not_ended_and_its_remains_have() -> None:
    with waiting_process() as child:
        assert not process.has_ended(child.pid)
        child.kill()
        assert until(lambda: process.has_ended(child.pid)), "nobody has waited for it yet"
        assert Path(f"/proc/{child.pid}").exists()
    assert process.has_ended(child.pid)
    assert process.has_ended(2**22 + 1)


def test_a_process_has_not_ended_while_one_of_its_threads_goes_on() -> None:
    with subprocess.Popen([sys.executable, "-c", LEADER_ENDS], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        stat = Path(f"/proc/{child.pid}/stat")
        try:
            assert until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z"), "the leader is a zombie"
            assert not process.has_ended(child.pid)
        finally:
            child.kill()
        assert until(lambda: process.has_ended(child.pid))


def test_what_cannot_be_started_is_a_problem(tmp_path: Path) -> None:
    tool = tmp_path / "tool"
    tool.write_text("no programme, and nobody may run it")
    for start in (process.run, process.spawn, lambda argv: asyncio.run(process.run_async(argv))):
        with pytest.raises(Failed) as problem:
            start([str(tool)])
        assert problem.value.code == "tool.failed" and "cannot be started" in str(problem.value)
