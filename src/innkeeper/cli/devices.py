"""Network cards of this host on the command line, completed by the shell."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from innkeeper.network.uplink_policy import DEVICE_PREFIXES

_SHOWN = Path("/sys/class/net")
_NOT_OFFERED = ("lo", "inbr-", "intp-", "inif-", *DEVICE_PREFIXES)


class Cards(click.ParamType[str]):
    """One card or several with commas between them; those that belong to an inn are not offered."""

    name = "cards"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, begun = incomplete.rpartition(",")
        names = sorted(one.name for one in _SHOWN.iterdir()) if _SHOWN.is_dir() else []
        offered = [name for name in names if name.startswith(begun) and not name.startswith(_NOT_OFFERED)]
        return [CompletionItem(f"{before}{comma}{name}") for name in offered if name not in before.split(",")]


CARDS = Cards()
