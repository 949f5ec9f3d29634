"""docs/cli.md names every command."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from innkeeper.cli.main import COMMANDS, inn

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
NOUNS = [name for name in COMMANDS if name not in ("fabric", "serve", "tour", "up", "down")]


def test_every_command_is_on_the_page() -> None:
    assert [name for name in COMMANDS if f"inn {name}" not in PAGE] == []


@pytest.mark.parametrize("noun", NOUNS)
def test_every_verb_is_on_the_page(noun: str) -> None:
    context = click.Context(inn)
    command = inn.get_command(context, noun)
    verbs = command.list_commands(context) if isinstance(command, click.Group) else []
    rows = " ".join(line for line in PAGE.splitlines() if f"`inn {noun}" in line)
    words = set(rows.replace("`", " ").replace(",", " ").split())
    assert [verb for verb in verbs if verb not in words] == []
