"""The checks that hold for every test, tried on tests that leak and skip."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

CONFTEST = """
from leaks import IN_CI, nothing_leaked, nothing_leaked_by_wider_fixtures
from skips import SkipsInCI
def pytest_configure(config):
    if IN_CI:
        config.pluginmanager.register(SkipsInCI())
"""
CLEAN = """
def test_it(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
    subprocess.run(["true"], check=True)
    asyncio.run(asyncio.sleep(0))
"""
CHILD = """
left = []
def test_it():
    left.append(subprocess.Popen(["sleep", "30"]))
def test_after():
    left[0].kill()
    left[0].wait()
"""
SOCKET = """
left = []
def test_it(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen()
    left.append(listener)
def test_after():
    left[0].close()
"""
TASK = """
left = []
def test_it():
    loop = asyncio.new_event_loop()
    left.append((loop, loop.create_task(asyncio.sleep(1))))
    loop.run_until_complete(asyncio.sleep(0))
def test_after():
    loop, task = left[0]
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
"""
PROCESS_OF_AN_INN = """
@pytest.mark.root
def test_it(tmp_path):
    (tmp_path / "inn.json").write_text('{"format": 1, "id": "zz9z", "uuid": ""}')
    # detached, so that it is no child any more
    script = f"exec 1>&- 2>&-; (exec -a {tmp_path}/daemon sleep 4) & sleep 0.5"
    subprocess.run(["bash", "-c", script])
"""
SKIPPED = """
@pytest.mark.skip(reason="not today")
def test_it():
    pass
def test_other():
    pass
"""


def _pytest(directory: Path, body: str, **environment: str) -> subprocess.CompletedProcess[str]:
    for module in ("leaks.py", "skips.py"):
        text = (TESTS / "support" / module).read_text()
        (directory / module).write_text(text.replace("\nGRACE_S = 3.0\n", "\nGRACE_S = 0.3\n"))
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(f"import asyncio, socket, subprocess, pytest\n{body}")
    (directory / "pytest.ini").write_text("[pytest]\npythonpath = .\nmarkers =\n    root: .\n    guest: .\n")
    clean = {name: value for name, value in os.environ.items() if name != "CI"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", directory],
        env={**clean, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_clean_test_passes(tmp_path: Path) -> None:
    ended = _pytest(tmp_path, CLEAN)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (CHILD, "child: "),
        (SOCKET, "listening socket: "),
        (TASK, "pending task: "),
        (PROCESS_OF_AN_INN, "of its inn: process "),
    ],
    ids=["child", "socket", "task", "inn"],
)
def test_a_leak_is_named(tmp_path: Path, body: str, said: str) -> None:
    ended = _pytest(tmp_path, body)
    assert ended.returncode == 1, ended.stdout
    assert "the test left behind" in ended.stdout
    assert said in ended.stdout


def test_a_skip_fails_in_ci_only(tmp_path: Path) -> None:
    assert _pytest(tmp_path, SKIPPED).returncode == 0
    in_ci = _pytest(tmp_path, SKIPPED, CI="true")
    assert in_ci.returncode == 1
    assert "not today" in in_ci.stdout
    (tmp_path.parent / "allowed-skips.txt").write_text("# a reason\nnot today\n")
    assert _pytest(tmp_path, SKIPPED, CI="true").returncode == 0
