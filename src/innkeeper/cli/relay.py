"""Passes bytes between a listening socket and a unix socket, unchanged, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable

_CHUNK = 256 * 1024


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while chunk := await reader.read(_CHUNK):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
    except ConnectionError:  # one side went away; the other is told by closing
        writer.close()


async def _splice(upstream: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        far_reader, far_writer = await asyncio.open_unix_connection(upstream)
    except OSError:  # the far side is away for now: the caller sees its connection end and may try again
        writer.close()
        return
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_pump(reader, far_writer))
            both.create_task(_pump(far_reader, writer))
    finally:
        for each in (far_writer, writer):
            each.close()
            with contextlib.suppress(ConnectionError):
                await each.wait_closed()


async def relay(listener: socket.socket, upstream: str, ready: Callable[[], None] = lambda: None) -> None:
    """Splice every connection to ``listener`` to one of its own at ``upstream``, until SIGINT, SIGTERM or SIGHUP."""
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    running: set[asyncio.Task[None]] = set()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(_splice(upstream, reader, writer))
        running.add(task)
        task.add_done_callback(running.discard)

    if listener.family == socket.AF_UNIX:
        server = await asyncio.start_unix_server(accepted, sock=listener)
    else:
        server = await asyncio.start_server(accepted, sock=listener)
    try:
        ready()
        await ended.wait()
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
