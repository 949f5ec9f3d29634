"""``inn completion``: the script that makes a shell complete commands, options, and names of guests."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from innkeeper.cli.options import InnCommand


@click.command(cls=InnCommand)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script: eval "$(inn completion bash)"."""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(ctx.find_root().command, {}, "inn", "_INN_COMPLETE").source())
