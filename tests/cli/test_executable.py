"""The executable as a process: help, completion, exit codes, and what holds without a daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from innkeeper.cli.main import COMMANDS, inn
from innkeeper.cli.options import InnCommand
from innkeeper.system.paths import Paths

Inn = Callable[..., "subprocess.CompletedProcess[str]"]
HEAVY = ("fastapi", "uvicorn", "numpy", "starlette", "apsw", "uvloop", "blake3", "pyroute2")


@pytest.mark.parametrize("arguments", [["--help"], ["vm", "ls", "--help"], ["vm", "create", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom innkeeper.cli.main import run\n"
        f"code = run({arguments!r})\n"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stderr == "0 []\n"


def test_every_command_has_help_and_the_common_options() -> None:
    context = click.Context(inn, info_name="inn")

    def visit(command: click.Command, path: str) -> None:
        assert command.help or command.short_help, path
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None, f"{path} {name}"
                visit(inner, f"{path} {name}")
        elif not path.startswith("fabric "):  # which knows pools, and no inn
            assert isinstance(command, InnCommand), path

    for name in COMMANDS:
        command = inn.get_command(context, name)
        assert command is not None
        visit(command, name)


def test_without_an_inn_the_remedy_is_named(executable: Inn, tmp_path: Path) -> None:
    ended = executable("--state-dir", str(tmp_path / "none"), "vm", "ls")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "error: there is no inn at" in ended.stderr
    assert "remedy: run 'inn up'" in ended.stderr
    assert not (tmp_path / "none").exists()


def test_without_a_daemon_the_remedy_is_named(executable: Inn, tmp_path: Path) -> None:
    Paths.open(tmp_path, create=True)
    ended = executable("vm", "ls", INNKEEPER_STATE=str(tmp_path))
    assert ended.returncode == 1
    assert "[daemon.unreachable]" in ended.stderr
    assert "inn up" in ended.stderr


def test_the_state_dir_may_stand_behind_the_verb(executable: Inn, tmp_path: Path) -> None:
    ended = executable("vm", "ls", "--state-dir", str(tmp_path / "elsewhere"))
    assert f"no inn at {tmp_path}/elsewhere" in ended.stderr


def test_down_without_an_inn_has_nothing_to_end(executable: Inn, tmp_path: Path) -> None:
    ended = executable("--state-dir", str(tmp_path / "none"), "down")
    assert (ended.returncode, ended.stdout) == (0, "")
    assert "nothing to end" in ended.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("completion", "bash")])
def test_a_reader_that_goes_away_is_no_error(arguments: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        command = [sys.executable, "-m", "innkeeper", *arguments]
        ended = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_wrong_usage_ends_with_2(executable: Inn) -> None:
    assert executable("frobnicate").returncode == 2
    assert executable("vm", "create").returncode == 2


def test_completion_of_verbs(executable: Inn) -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_INN_COMPLETE" in executable("completion", shell).stdout
    answers = executable(COMP_WORDS="inn vm s", COMP_CWORD="2", _INN_COMPLETE="bash_complete").stdout
    assert {"plain,start", "plain,show", "plain,set", "plain,save"} <= set(answers.split())


def test_version(executable: Inn) -> None:
    assert executable("--version").stdout.startswith("inn ")


def test_logs_are_read_without_a_daemon(executable: Inn, tmp_path: Path) -> None:
    home = Paths.open(tmp_path, create=True)
    assert executable("--state-dir", str(tmp_path), "logs").returncode == 1
    home.logs.mkdir()
    entries = [
        ("daemon", {"time": "2026-01-01T00:00:02+00:00", "level": "info", "process": "daemon", "message": "second"}),
        ("fabric", {"time": "2026-01-01T00:00:01+00:00", "level": "info", "process": "fabric", "message": "first"}),
    ]
    for name, entry in entries:
        (home.logs / f"{name}.log").write_text(json.dumps(entry) + "\nnot json\n")
    shown = executable("--state-dir", str(tmp_path), "logs").stdout.splitlines()
    assert [line for line in shown if "daemon" in line or "fabric" in line] == [
        "2026-01-01T00:00:01+00:00 fabric info: first",
        "2026-01-01T00:00:02+00:00 daemon info: second",
    ]
    assert len(executable("--state-dir", str(tmp_path), "logs", "-n", "1").stdout.splitlines()) == 1
