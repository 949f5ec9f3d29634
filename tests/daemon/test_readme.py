"""The README's first ten minutes, typed as they stand there, on an inn of their own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_inn import LiveInn, eventually, live_inn

pytestmark = [pytest.mark.guest, pytest.mark.root]
README = (Path(__file__).parents[2] / "README.md").read_text()


def commands(name: str) -> list[list[str]]:
    """The words of each ``inn`` command in the README's block of that name."""
    block = re.search(rf"<!-- commands: {name} -->\n((?:    .*\n)+)", README)
    assert block is not None, name
    lines = [shlex.split(line, comments=True) for line in block[1].splitlines()]
    assert all(line[0] == "inn" for line in lines)
    return [line[1:] for line in lines]


@pytest.fixture
def own_inn(tmp_path: Path) -> Iterator[LiveInn]:
    with live_inn(tmp_path / "state") as running:
        yield running


@pytest.mark.smoke
def test_the_first_ten_minutes(own_inn: LiveInn, tmp_path: Path) -> None:
    for words in commands("first-ten-minutes"):
        printed = own_inn(*words)
    assert "Linux" in printed
    for words in commands("checkpoint"):
        own_inn(*words)
    eventually(lambda: own_inn.run("vm", "exec", "web", "--", "true").returncode == 0, "web has booted again")
    assert own_inn.run("vm", "exec", "web", "--", "test", "-e", "/oops").returncode == 1
    for words in commands("backup"):
        own_inn(*[word.replace("/var/tmp/inn-backups", str(tmp_path / "backups")) for word in words])
    restored = own_inn.json("vm", "show", "web2")
    assert restored["status"]["state"] == "running"
