"""A real pool in this process behind the fabric's client contract, with a small NBD server over its volumes.

What the fabric's own service does with processes and an event loop, this does with threads, so that tests of the rooms
above can look inside and make it fail.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

from innkeeper.fabric.nbd.protocol import (
    GREETING,
    GREETING_MAGIC,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REQUEST,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Command,
    HandshakeFlag,
    Info,
    Reply,
)
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import NotFound, Problem
from innkeeper.system.files import Io


class PoolLab:
    """The contract of ``FabricClient`` over a ``Pool``; ``disk`` and ``write`` make content."""

    def __init__(self, directory: Path) -> None:
        self.pool = Pool.open(Io(), str(directory / "pool"), background=False)
        self.storage_id = str(uuid4())
        self.pool.storage_create(self.storage_id)
        self.nbd_socket = directory / "nbd.sock"
        self.calls: list[str] = []
        self.before_call: Callable[[str], None] = lambda op: None
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self.nbd_socket))
        self._server.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self._lock = threading.Lock()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join()
        self.pool.close()

    def __getattr__(self, op: str) -> Any:
        async def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append(op)
            self.before_call(op)
            return await asyncio.to_thread(getattr(self.pool, op), *arguments, **named)

        if op.startswith("_"):
            raise AttributeError(op)
        return call

    # --- content, for tests ---

    def disk(self, size_bytes: int) -> str:
        disk_id = str(uuid4())
        self.pool.disk_create(disk_id, size_bytes, self.storage_id)
        return disk_id

    def write(self, disk_id: str, pieces: dict[int, bytes]) -> None:
        """Write each piece at its offset and have it in the log."""
        attachment = str(uuid4())
        self.pool.attach(attachment, disk_id=disk_id, role="writer")
        volume = self.pool.volume(attachment)
        for offset, data in pieces.items():
            volume.stage_write(offset, data)
            self.pool.submit()
        volume.close()
        self.pool.detach(attachment)

    def zero(self, disk_id: str, offset: int, length: int) -> None:
        attachment = str(uuid4())
        self.pool.attach(attachment, disk_id=disk_id, role="writer")
        volume = self.pool.volume(attachment)
        volume.stage_zero(offset, length)
        self.pool.submit()
        volume.close()
        self.pool.detach(attachment)

    def snapshot(self, *disk_ids: str) -> list[str]:
        made = {str(uuid4()): disk_id for disk_id in disk_ids}
        self.pool.snapshot_create(made)
        return list(made)

    def content(self, *, disk_id: str | None = None, snapshot_id: str | None = None) -> bytes:
        attachment = str(uuid4())
        self.pool.attach(attachment, disk_id=disk_id, snapshot_id=snapshot_id, role="reader")
        volume = self.pool.volume(attachment)
        data = volume.read_blocking(0, volume.size_bytes)
        volume.close()
        self.pool.detach(attachment)
        return data

    # --- NBD ---

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,))
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            try:
                self._talk(connection, stream.read)
            except (OSError, ValueError):
                return

    def _talk(self, connection: socket.socket, read: Callable[[int], bytes]) -> None:
        connection.sendall(GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, HandshakeFlag.FIXED_NEWSTYLE))
        read(4)
        _, option, length = OPTION.unpack(read(OPTION.size))
        body = read(length)
        export = body[4 : 4 + int.from_bytes(body[:4], "big")].decode()
        try:
            volume = self.pool.volume(export)
        except NotFound as unknown:
            message = str(unknown).encode()
            connection.sendall(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, Reply.ERR_UNKNOWN, len(message)) + message)
            return
        facts = int(Info.EXPORT).to_bytes(2, "big") + volume.size_bytes.to_bytes(8, "big") + bytes(2)
        connection.sendall(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, Reply.INFO, len(facts)) + facts)
        connection.sendall(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, Reply.ACK, 0))
        while header := read(REQUEST.size):
            _, _, command, cookie, offset, length = REQUEST.unpack(header)
            if command == Command.DISC:
                break
            data, error = b"", 0
            try:
                if command == Command.READ:
                    data = volume.read_blocking(offset, length)
                elif command == Command.WRITE:
                    volume.stage_write(offset, read(length))
                    self.pool.submit()
                else:
                    self.pool.sync_blocking(self.pool.submit())
            except Problem as refused:
                error = 28 if refused.http_status == 507 else 5
            connection.sendall(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error, cookie) + data)
        volume.close()
