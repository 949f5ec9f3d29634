"""Commands that are imported when they are used, so that ``inn`` answers at once.

This is the one place that loads modules by name: a group holds ``name -> (module:attribute, help line)``; the help
lists without importing. A module of the CLI imports what it needs at its top as everywhere else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click

ALIASES: Mapping[str, str] = {"list": "ls", "delete": "rm"}


class VerbGroup(click.Group):
    """A group whose verbs have the aliases ``list`` (ls) and ``delete`` (rm); without a verb it shows its help."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        options.setdefault("no_args_is_help", True)
        super().__init__(*arguments, **options)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, ALIASES.get(cmd_name, ""))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


class LazyGroup(VerbGroup):
    """A group of commands that are imported by name when they are asked for.

    ``lazy`` maps a command's name to ``module:attribute`` and its help line; a hidden one has an empty line.
    """

    def __init__(self, *arguments: Any, lazy: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, attribute = self._lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, line) for name, (_, line) in self._lazy.items() if line]
        rows += [(name, command.get_short_help_str(60)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
