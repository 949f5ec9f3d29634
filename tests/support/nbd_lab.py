"""A pool behind the real NBD server in a thread of this process, and a client that says exactly what a test wants."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import uvloop

from innkeeper.fabric.keeper import listen
from innkeeper.fabric.nbd import protocol as p
from innkeeper.fabric.nbd.server import NbdServer
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.fabric.space import Limits
from innkeeper.system.files import Io

PATIENCE_S = 30.0
MIB = 1 << 20


class NbdLab:
    """``disk`` makes a disk and an attachment of it; ``uri`` and ``connect`` reach it."""

    def __init__(self, directory: Path, limits: Limits | None = None) -> None:
        self.socket_path = directory / "nbd.sock"
        self.pool = Pool.open(Io(), str(directory / "pool"), limits=limits)
        self.storage_id = str(uuid4())
        self.pool.storage_create(self.storage_id)
        self.problems: list[dict[str, Any]] = []
        """What the event loop reports: exceptions that nobody caught."""
        self._listener = listen(self.socket_path)
        self._ending: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()))
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(lambda _loop, context: self.problems.append(context))
        self._ending = asyncio.Event()
        self.server = NbdServer(Pools(self.pool), self._listener)
        self.server.start()
        self._ready.set()
        await self._ending.wait()
        await self.server.close()

    def close(self) -> None:
        assert self._ending is not None
        self.loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()
        self._listener.close()
        self.pool.close()
        assert not self.problems, self.problems

    def disk(self, size_bytes: int, *, role: str = "writer", uid: int | None = None) -> str:
        """The export's name of a new disk."""
        disk_id = str(uuid4())
        self.pool.disk_create(disk_id, size_bytes, self.storage_id)
        return self.attach(disk_id=disk_id, role=role, uid=os.geteuid() if uid is None else uid)

    def attach(self, **subject: Any) -> str:
        attachment_id = str(uuid4())
        self.pool.attach(attachment_id, **subject)
        return attachment_id

    def facts(self) -> dict[str, Any]:
        """``NbdServer.facts``, asked in its event loop."""

        async def ask() -> dict[str, Any]:
            return self.server.facts()

        return asyncio.run_coroutine_threadsafe(ask(), self.loop).result(PATIENCE_S)

    def uri(self, export: str) -> str:
        return f"nbd+unix:///{export}?socket={self.socket_path}"

    @contextmanager
    def connect(self, export: str | None = None, **how: Any) -> Iterator[RawClient]:
        """A client; with ``export`` through the handshake."""
        client = RawClient(self.socket_path)
        try:
            client.greet()
            if export is not None:
                client.go(export, **how)
            yield client
        finally:
            client.close()


@dataclass(frozen=True, slots=True)
class Answer:
    """A reply: the error (0: none), and the data or the extents of all its chunks."""

    error: int
    cookie: int
    data: bytes = b""
    extents: tuple[tuple[int, int], ...] = ()
    structured: bool = True


class RawClient:
    """The NBD protocol as bytes on a blocking socket."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(path))
        self.structured = False
        self.size_bytes = self.flags = 0
        self.block_sizes: tuple[int, ...] = ()
        self._cookie = 0

    def close(self) -> None:
        self.sock.close()

    def receive(self, length: int) -> bytes:
        """Exactly ``length`` bytes; ``ConnectionError`` at the end."""
        data = bytearray()
        while len(data) < length:
            part = self.sock.recv(min(length - len(data), MIB))
            if not part:
                raise ConnectionResetError("closed")
            data += part
        return bytes(data)

    # --- handshake ---

    def greet(self, flags: int = 3) -> None:
        magic, option_magic, offered = p.GREETING.unpack(self.receive(p.GREETING.size))
        assert (magic, option_magic, offered) == (p.GREETING_MAGIC, p.OPTION_MAGIC, 3)
        self.sock.sendall(flags.to_bytes(4, "big"))

    def option(self, option: int, data: bytes = b"") -> list[tuple[int, bytes]]:
        """Send an option; (type, data) of every reply up to the one that ends it."""
        self.sock.sendall(p.OPTION.pack(p.OPTION_MAGIC, option, len(data)) + data)
        replies = []
        while True:
            magic, answered, kind, length = p.OPTION_REPLY.unpack(self.receive(p.OPTION_REPLY.size))
            assert (magic, answered) == (p.OPTION_REPLY_MAGIC, option)
            replies.append((kind, self.receive(length)))
            if kind == p.Reply.ACK or kind & 0x80000000:
                return replies

    def export_name(self, export: str, *, padding: int = 0) -> None:
        """Choose the export the old way; ``padding``: zeros that come where they were not waived."""
        name = export.encode()
        self.sock.sendall(p.OPTION.pack(p.OPTION_MAGIC, p.Option.EXPORT_NAME, len(name)) + name)
        self.size_bytes, self.flags = struct.unpack(">QH", self.receive(10))
        assert self.receive(padding) == bytes(padding)

    def prepare(self, export: str, *, structured: bool, context: bool) -> None:
        """Ask for structured replies and the context ``base:allocation``."""
        name = export.encode()
        if structured:
            assert self.option(p.Option.STRUCTURED_REPLY) == [(p.Reply.ACK, b"")]
            self.structured = True
        if structured and context:
            wanted = p.BASE_ALLOCATION.encode()
            query = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(wanted)) + wanted
            kinds = [kind for kind, _ in self.option(p.Option.SET_META_CONTEXT, query)]
            assert kinds == [p.Reply.META_CONTEXT, p.Reply.ACK]

    def go(self, export: str, *, structured: bool = True, context: bool = True) -> None:
        name = export.encode()
        self.prepare(export, structured=structured, context=context)
        replies = self.option(p.Option.GO, len(name).to_bytes(4, "big") + name + bytes(2))
        assert replies[-1][0] == p.Reply.ACK, replies
        for _, data in replies[:-1]:
            if data[:2] == b"\0\0":
                self.size_bytes, self.flags = int.from_bytes(data[2:10], "big"), int.from_bytes(data[10:12], "big")
            else:
                self.block_sizes = tuple(int.from_bytes(data[at : at + 4], "big") for at in (2, 6, 10))

    # --- transmission ---

    def send(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> int:
        """Send a request; its cookie."""
        self._cookie += 1
        self.sock.sendall(p.REQUEST.pack(p.REQUEST_MAGIC, flags, command, self._cookie, offset, length) + data)
        return self._cookie

    def answer(self, read_length: int = 0) -> Answer:
        """The next answer; ``read_length`` is what a simple reply to a read carries."""
        magic = int.from_bytes(self.receive(4), "big")
        if magic == p.SIMPLE_REPLY_MAGIC:
            error, cookie = int.from_bytes(self.receive(4), "big"), int.from_bytes(self.receive(8), "big")
            data = self.receive(read_length) if read_length and not error else b""
            return Answer(error, cookie, data, structured=False)
        assert magic == p.STRUCTURED_REPLY_MAGIC and self.structured, hex(magic)
        _, flags, kind, cookie, length = p.CHUNK.unpack(magic.to_bytes(4, "big") + self.receive(p.CHUNK.size - 4))
        body = self.receive(length)
        assert flags == p.CHUNK_DONE
        if kind == p.ChunkType.ERROR:
            assert length == 6 + int.from_bytes(body[4:6], "big")
            return Answer(int.from_bytes(body[:4], "big"), cookie)
        if kind == p.ChunkType.OFFSET_DATA:
            return Answer(0, cookie, body[8:])
        assert kind == p.ChunkType.BLOCK_STATUS and body[:4] == b"\0\0\0\1"
        words = [int.from_bytes(body[at : at + 4], "big") for at in range(4, length, 4)]
        return Answer(0, cookie, extents=tuple(zip(words[::2], words[1::2], strict=True)))

    def ask(self, command: int, offset: int = 0, length: int = 0, data: bytes = b"", flags: int = 0) -> Answer:
        """Send a request and take its answer."""
        cookie = self.send(command, offset, length or len(data), data, flags)
        found = self.answer(length if command == p.Command.READ else 0)
        assert found.cookie == cookie
        return found

    def closed(self) -> bool:
        """Whether the server closes the connection, without another word."""
        try:
            return self.sock.recv(1) == b""
        except ConnectionResetError:
            return True
