from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from running_api import RunningApi, running_api

from innkeeper.system import paths

Inn = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[paths.Paths]:
    """A founded inn in a directory of its own, sockets included."""
    with TemporaryDirectory(prefix="inn-cli-") as folder:
        monkeypatch.setattr(paths, "RUN_ROOT", Path(folder) / "run")
        monkeypatch.setenv("INNKEEPER_STATE", f"{folder}/state")
        yield paths.Paths.open(create=True)


@pytest.fixture
def served(home: paths.Paths) -> Iterator[RunningApi]:
    home.run.mkdir(parents=True)
    with running_api(home.api_socket) as running:
        yield running


@pytest.fixture
def executable() -> Inn:
    """Runs the real executable."""

    def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "innkeeper", *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=60,
            check=False,
        )

    return run
