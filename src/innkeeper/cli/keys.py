"""Keys of object stores: from a file or the environment, never from the command line, which others can see."""

from __future__ import annotations

import os
from pathlib import Path

import click

_NAMES = ("access_key_id", "secret_access_key")


def keys_in(path: Path) -> dict[str, str]:
    """The key in a file of lines such as ``access_key_id = ...``; Amazon's own files, with ``aws_`` before the names
    and one section, do too."""
    found: dict[str, str] = {}
    for line in path.read_text(errors="replace").splitlines():
        name, equals, value = line.partition("=")
        name = name.strip().lower().removeprefix("aws_")
        if equals and name in _NAMES:
            if name in found:
                raise click.UsageError(f"{path} has more than one {name}")
            found[name] = value.strip()
    if set(found) != set(_NAMES):
        raise click.UsageError(f"{path} has no line 'access_key_id = ...' and 'secret_access_key = ...'")
    return found


def keys_around() -> dict[str, str]:
    """The key in ``AWS_ACCESS_KEY_ID`` and ``AWS_SECRET_ACCESS_KEY``; none where they are not set."""
    found = {name: os.environ.get(f"AWS_{name.upper()}", "") for name in _NAMES}
    return found if all(found.values()) else {}
