"""Long writes, received into buffers of their own, which are used again.

A fresh buffer costs as much in finding its memory as in receiving into it.
"""

from __future__ import annotations

import socket

AHEAD_BYTES = 2 << 20
"""What a client may send ahead; longer writes get a buffer of their own."""
STREAM_WRITE_BYTES = 256 << 10
"""Writes of streams from this length on get one too: a worker keeps it, and copying it would keep everyone waiting."""
KEPT = 8
"""Buffers that a connection keeps for its next writes."""
KEPT_BYTES = 2 << 20
"""Longer ones are not kept."""


class Buffers:
    """The buffers of one connection. Who takes one gives it back when nobody looks at it any more."""

    def __init__(self) -> None:
        self._spare: list[bytearray] = []

    def take(self, length: int) -> bytearray:
        """A buffer of exactly that length, with anything in it."""
        for index, spare in enumerate(self._spare):
            if len(spare) == length:
                return self._spare.pop(index)
        return bytearray(length)

    def give_back(self, buffer: bytearray) -> None:
        if len(buffer) <= KEPT_BYTES:
            self._spare.append(buffer)
            del self._spare[:-KEPT]


class LongWrite:
    """A write that is being received: (flags, cookie, offset), its buffer, and how much of that is here."""

    def __init__(self, request: tuple[int, bytes, int], buffer: bytearray, begun: memoryview) -> None:
        self.request = request
        self.buffer = buffer
        self._have = len(begun)
        buffer[: self._have] = begun

    def receive(self, sock: socket.socket) -> bool:
        """Receive more of it; whether it is whole now. Raises ``OSError``, also at the connection's end."""
        received = sock.recv_into(memoryview(self.buffer)[self._have :])
        if not received:
            raise ConnectionResetError("the client has gone in the middle of a write")
        self._have += received
        return self._have == len(self.buffer)
