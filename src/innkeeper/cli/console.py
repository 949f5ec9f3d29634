"""A guest's serial console on this terminal, and its screen on a TCP port."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import click

from innkeeper.cli.relay import relay
from innkeeper.model.problems import Unavailable

ESCAPE = b"\x1d"
"""Ctrl-]"""


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """The terminal passes every key on while inside; nothing changes when there is none."""
    if not sys.stdin.isatty():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def attach_console(path: str) -> None:
    """Join standard input and output to the console at ``path`` until Ctrl-], the end of input, or the guest's end.

    Raises ``Unavailable`` (``vm.console``) when nothing listens there.
    """
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.connect(path)
        except OSError as refused:
            remedy = "another console may be open; run as root"
            raise Unavailable(
                "vm.console", "the console cannot be reached", cause=str(refused), remedy=remedy
            ) from refused
        with _raw_terminal():
            _join(line, sys.stdin.fileno(), sys.stdout.fileno())


def _join(line: socket.socket, keyboard: int, screen: int) -> None:
    """Copy both ways until one side ends; a pipe's end of input still lets the guest answer for a moment."""
    sources: list[int | socket.socket] = [line, keyboard]
    while True:
        ready, _, _ = select.select(sources, [], [], None if keyboard in sources else 1.0)
        if not ready:
            return
        if line in ready:
            output = line.recv(65536)
            if not output:
                return
            os.write(screen, output)
        if keyboard in ready:
            typed = os.read(keyboard, 4096)
            if not typed:
                sources.remove(keyboard)
            head, escape, _ = typed.partition(ESCAPE)
            try:
                line.sendall(head)
            except BrokenPipeError:  # the guest ended while this was typed
                return
            if escape:
                return


def serve_vnc(path: str, listen: str) -> None:
    """Serve the screen at ``path`` on ``listen`` (``ADDRESS:PORT``) until interrupted."""
    address, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise click.UsageError("--listen wants ADDRESS:PORT, for example 127.0.0.1:5901")
    try:
        listener = socket.create_server((address or "127.0.0.1", int(port)))
    except OSError as refused:
        remedy = "choose another port"
        raise Unavailable("vnc.port", f"{listen} cannot be listened on", cause=str(refused), remedy=remedy) from refused
    asyncio.run(relay(listener, path))
