"""``inn disk export``: a disk over NBD on a socket of the person's choice.

The fabric makes an attachment for the caller's uid; this process binds the socket and passes bytes between it and the
fabric's own. Nothing is rewritten, so a client names the attachment as its export: the URI that is printed does.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from urllib.parse import quote

import click

from innkeeper.cli.relay import relay
from innkeeper.cli.session import Session
from innkeeper.model.problems import Conflict, Failed
from innkeeper.model.requests import DiskExport
from innkeeper.model.sizes import format_size
from innkeeper.model.views import OpenExport

_MAX_PATH = 107


def _bind(path: Path) -> socket.socket:
    """A listening socket at ``path``, for this uid only.

    Raises ``Conflict`` (``export.path_taken``), ``Failed`` (``export.path``).
    """
    if len(os.fsencode(path)) > _MAX_PATH:
        raise Failed("export.path", f"{path} is too long for a socket", remedy=f"at most {_MAX_PATH} bytes")
    if path.exists():
        raise Conflict("export.path_taken", f"{path} exists", remedy="remove it, or choose another path")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
        listener.listen(16)
    except OSError as refused:
        listener.close()
        raise Failed(
            "export.path", f"{path} cannot be made", cause=str(refused), remedy="choose another path"
        ) from refused
    finally:
        os.umask(before)
    return listener


def uri(export: str, path: Path) -> str:
    """The NBD URI of ``export`` behind the socket ``path``."""
    return f"nbd+unix:///{quote(export)}?socket={quote(str(path))}"


def serve_export(session: Session, ref: str, wish: DiskExport, path: Path) -> None:
    """Serve the disk at ``path`` until SIGINT, SIGTERM or SIGHUP; the attachment and the socket are gone afterwards."""
    path = path.absolute()
    listener = _bind(path)
    try:
        opened = session.client.disks.export_open(ref, wish)
        try:
            asyncio.run(relay(listener, opened.socket, lambda: _announce(session, opened, ref, path)))
        finally:
            session.client.disks.export_close(ref, opened.attachment_id)
    finally:
        listener.close()
        path.unlink(missing_ok=True)


def _announce(session: Session, opened: OpenExport, ref: str, path: Path) -> None:
    if session.format == "json":
        session.show(opened)
    else:
        click.echo(uri(opened.export, path))
    mode = "read only" if opened.read_only else "writable"
    session.say(f"{ref}: {format_size(opened.size_bytes)}, {mode}; end with Ctrl-C")
