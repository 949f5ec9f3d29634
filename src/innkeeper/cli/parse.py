"""From options to a request: what the model refuses becomes a usage error that names the field."""

from __future__ import annotations

from typing import Any, TypeVar

import click
from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)


def request(kind: type[M], /, **members: Any) -> M:
    """A ``kind`` of those ``members`` that are not None.

    Raises ``click.UsageError`` for what is not valid.
    """
    try:
        return kind(**{name: value for name, value in members.items() if value is not None})
    except ValidationError as wrong:
        lines = []
        for error in wrong.errors():
            field = ".".join(str(part) for part in error["loc"])
            message = error["msg"].removeprefix("Value error, ")
            lines.append(f"{field}: {message}" if field else message)
        raise click.UsageError("; ".join(lines)) from wrong
