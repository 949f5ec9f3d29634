"""What commands share: their class, sizes, labels, references that complete, and the common options."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from innkeeper.cli.session import Session
from innkeeper.model.problems import Problem
from innkeeper.model.sizes import parse_size

F = TypeVar("F", bound=Callable[..., Any])


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def callback(ctx: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        if value:
            setattr(ctx.ensure_object(Session), name, value)
        return value

    return callback


def common_options() -> list[click.Option]:
    """``-o``, ``--quiet`` and ``--state-dir``, which stand before or after the verb."""
    return [
        click.Option(
            ["-o", "--output"],
            type=click.Choice(["table", "json"]),
            expose_value=False,
            is_eager=True,
            callback=_keep("format"),
            help="How to print data.",
        ),
        click.Option(
            ["-q", "--quiet"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_keep("quiet"),
            help="Names and ids only; no messages.",
        ),
        click.Option(
            ["--state-dir"],
            type=click.Path(file_okay=False),
            expose_value=False,
            is_eager=True,
            callback=_keep("state_dir"),
            help="The inn meant. [env: INNKEEPER_STATE; default: /var/lib/innkeeper]",
        ),
    ]


class InnCommand(click.Command):
    """A command that also takes the common options."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.params += common_options()


class Size(click.ParamType[int]):
    """A size such as 512M or 4G, in bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value), field=param.name or "size" if param else "size")
        except Problem as wrong:
            self.fail(f"{wrong.detail}; {wrong.remedy}", param, ctx)


SIZE = Size()


class Duration(click.ParamType[float]):
    """A time such as 90s, 15m, 12h or 3d, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is no duration; write for example 90s, 15m, 12h or 3d", param, ctx)
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


DURATION = Duration()


class Ref(click.ParamType[str]):
    """An id or a name; a shell completes it from the daemon's list of ``noun``."""

    name = "ref"

    def __init__(self, noun: str) -> None:
        self.noun = noun

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        session = ctx.find_object(Session) or Session(os.environ.get("INNKEEPER_STATE"))
        try:
            found = getattr(session.client, self.noun).ls()
        except Problem:  # a shell that completes must not print errors
            return []
        return [CompletionItem(one.name) for one in found if one.name.startswith(incomplete)]


def _label(_ctx: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    labels = {}
    for value in values:
        key, equals, content = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} is not KEY=VALUE")
        labels[key] = content
    return labels


def labels_option(function: F) -> F:
    """``--label KEY=VALUE``, any number of times."""
    return click.option("--label", "labels", multiple=True, callback=_label, metavar="KEY=VALUE", help="A label.")(
        function
    )


def no_labels_option(function: F) -> F:
    """``--no-labels``: none of the labels it had."""
    return click.option("--no-labels", is_flag=True, help="Take all its labels away.")(function)


def dry_run_option(function: F) -> F:
    """``--dry-run``: print the plan, do nothing."""
    return click.option("--dry-run", is_flag=True, help="Check the request and print the plan; change nothing.")(
        function
    )


def detach_option(function: F) -> F:
    """``--no-wait``: do not follow the task."""
    return click.option("--no-wait", is_flag=True, help="Print the task and do not wait for it.")(function)


def filter_option(function: F) -> F:
    """``--label`` of ``ls``: only what has it."""
    return click.option("--label", "labels", multiple=True, metavar="KEY[=VALUE]", help="Only those with it.")(function)


def given(**members: Any) -> dict[str, Any]:
    """Those members that the person named: what is None was not."""
    return {name: value for name, value in members.items() if value is not None}
