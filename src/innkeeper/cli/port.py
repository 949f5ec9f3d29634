"""``inn port``: what passes cards' ports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

import click

from innkeeper.cli.lazy import VerbGroup
from innkeeper.cli.options import DURATION, SIZE, InnCommand, Ref
from innkeeper.cli.parse import request
from innkeeper.cli.session import Session, pass_session
from innkeeper.cli.tracing import trace
from innkeeper.model.capturing import CaptureStart
from innkeeper.model.problems import Failed
from innkeeper.model.sizes import format_size


@click.group(cls=VerbGroup, help="What passes cards' ports.")
def port() -> None:
    """The noun."""


port.add_command(trace)


@contextmanager
def _file(path: str) -> Iterator[BinaryIO]:
    """The file to write; ``-`` is standard output. Raises ``Failed`` (``capture.file``)."""
    try:
        if path == "-":
            yield sys.stdout.buffer
        else:
            with Path(path).open("wb") as file:
                yield file
    except BrokenPipeError:  # the reader has seen enough
        raise
    except OSError as refused:
        raise Failed(
            "capture.file", f"{path} cannot be written", cause=str(refused), remedy="choose another file"
        ) from refused


@port.command("capture", cls=InnCommand)
@click.argument("nic", type=Ref("nics"))
@click.option("--filter", "wanted", default="", help="Which frames, as pcap-filter(7) says: 'tcp port 80'.")
@click.option("--seconds", type=DURATION, default=10.0, show_default=True, help="How long, at most 1h.")
@click.option("--count", type=click.IntRange(1), help="How many frames at most.")
@click.option("--max-bytes", type=SIZE, help="How much pcap at most. [default: 64M]")
@click.option("--file", "path", required=True, metavar="FILE", help="Where to; - for standard output.")
@pass_session
def capture(
    session: Session, nic: str, wanted: str, seconds: float, count: int | None, max_bytes: int | None, path: str
) -> None:
    """Capture its frames: inn port capture web-0 --filter 'tcp port 80' --file web.pcap."""
    if path == "-" and sys.stdout.isatty():
        raise click.UsageError("pcap is not for a terminal: pipe it on, as in '| tcpdump -nr -', or give a file")
    wish = request(CaptureStart, filter=wanted, seconds=seconds, count=count, max_bytes=max_bytes)
    pieces = session.client.nics.capture(nic, wish)
    first, written = next(pieces, b""), 0  # what is refused leaves no file
    with _file(path) as file, closing(pieces):
        try:
            file.write(first)
            for piece in pieces:
                file.write(piece)
                file.flush()
                written += len(piece)
        except KeyboardInterrupt:
            session.say("interrupted; what was captured is kept")
    session.say(f"{nic}: {format_size(written)} captured")
