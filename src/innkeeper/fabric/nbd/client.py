"""A small blocking NBD client for this house's own rooms: pipelined reads and writes over a unix socket.

Fixed newstyle handshake with GO and simple replies only (https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md).
Programs of others use libnbd; this one exists because libnbd's Python binding is bound to Debian's own interpreter.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

from innkeeper.fabric.nbd.protocol import (
    GREETING,
    GREETING_MAGIC,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    Command,
    HandshakeFlag,
    Info,
    Option,
    Reply,
)
from innkeeper.model.problems import Failed, NoSpace, Problem, Unavailable

Buffer = bytes | bytearray | memoryview
_OUTSTANDING = 32
_TIMEOUT_S = 120.0
_MAX_REPLY_BYTES = 64 << 10


class NbdClient:
    """One connection to an export. One thread uses it.

    Every method raises ``Unavailable`` (``nbd.connection``) when the server is away or breaks off, and ``Failed``
    (``nbd.failed``) or ``NoSpace`` (``nbd.full``) when it answers with an error.
    """

    def __init__(self, socket_path: Path | str, export: str, timeout_s: float = _TIMEOUT_S) -> None:
        self._export = export
        self._cookie = 0
        self._waiting: dict[int, tuple[int, Callable[[bytes], None] | None]] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(str(socket_path))
            self.size_bytes = self._shake_hands()
        except OSError as refused:
            self._socket.close()
            self._broken(refused)
        except Problem:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, Command.DISC, 0, 0, 0))
        except OSError:
            pass  # the connection is gone already
        self._socket.close()

    def submit_read(self, offset: int, length: int, done: Callable[[bytes], None]) -> None:
        """Ask for bytes; ``done`` is called with them from this or a later call."""
        self._submit(Command.READ, offset, length, (), length, done)

    def submit_write(self, offset: int, parts: list[Buffer]) -> None:
        """Send bytes; a later call, ``settle`` at the latest, raises when the server refuses them."""
        self._submit(Command.WRITE, offset, sum(map(len, parts)), parts, 0, None)

    def flush(self) -> None:
        """Settle, then have everything on the medium."""
        self.settle()
        self._submit(Command.FLUSH, 0, 0, (), 0, None)
        self.settle()

    def settle(self) -> None:
        """Wait for the replies to all that was submitted."""
        while self._waiting:
            self._take_reply()

    def _submit(
        self,
        command: Command,
        offset: int,
        length: int,
        parts: list[Buffer] | tuple[()],
        reply_bytes: int,
        done: Callable[[bytes], None] | None,
    ) -> None:
        while len(self._waiting) >= _OUTSTANDING:
            self._take_reply()
        self._cookie += 1
        self._waiting[self._cookie] = (reply_bytes, done)
        try:
            self._socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, command, self._cookie, offset, length))
            for part in parts:
                self._socket.sendall(part)
        except OSError as broken:
            self._broken(broken)

    def _take_reply(self) -> None:
        magic, error, cookie = SIMPLE_REPLY.unpack(self._receive(SIMPLE_REPLY.size))
        if magic != SIMPLE_REPLY_MAGIC or cookie not in self._waiting:
            self._broken(OSError("it answers out of protocol"))
        length, done = self._waiting.pop(cookie)
        if error:
            if error == errno.ENOSPC:
                raise NoSpace(
                    "nbd.full",
                    "the pool has no room for what is written",
                    remedy="remove disks, snapshots or images, or give its file system more space",
                )
            raise Failed(
                "nbd.failed",
                f"the fabric refuses I/O on export {self._export}",
                cause=os.strerror(error),
                remedy="see 'inn logs' for what it says of that disk",
            )
        data = self._receive(length)
        if done is not None:
            done(data)

    def _shake_hands(self) -> int:
        magic, option_magic, flags = GREETING.unpack(self._receive(GREETING.size))
        if magic != GREETING_MAGIC or option_magic != OPTION_MAGIC or not flags & HandshakeFlag.FIXED_NEWSTYLE:
            self._broken(OSError("it does not greet as an NBD server"))
        name = self._export.encode()
        data = len(name).to_bytes(4, "big") + name + (0).to_bytes(2, "big")
        self._socket.sendall(
            (HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES).to_bytes(4, "big")
            + OPTION.pack(OPTION_MAGIC, Option.GO, len(data))
            + data
        )
        size_bytes = -1
        while True:
            magic, _, reply, length = OPTION_REPLY.unpack(self._receive(OPTION_REPLY.size))
            if magic != OPTION_REPLY_MAGIC or length > _MAX_REPLY_BYTES:
                self._broken(OSError("it answers out of protocol"))
            body = self._receive(length)
            if reply == Reply.ACK and size_bytes >= 0:
                return size_bytes
            if reply == Reply.INFO and int.from_bytes(body[:2], "big") == Info.EXPORT:
                size_bytes = int.from_bytes(body[2:10], "big")
            elif reply & 0x80000000:
                raise Failed(
                    "nbd.refused",
                    f"the fabric refuses export {self._export}",
                    cause=body.decode(errors="replace")[:200] or f"reply {reply:#x}",
                )

    def _receive(self, length: int) -> bytes:
        buffer = bytearray(length)
        view = memoryview(buffer)
        try:
            while view:
                got = self._socket.recv_into(view)
                if not got:
                    self._broken(OSError("it closed the connection"))
                view = view[got:]
        except OSError as broken:
            self._broken(broken)
        return bytes(buffer)

    def _broken(self, cause: OSError) -> NoReturn:
        self._socket.close()
        raise Unavailable(
            "nbd.connection",
            f"the connection to export {self._export} is broken",
            cause=str(cause),
            remedy="see that the fabric runs, then try again",
        ) from cause
