"""From a client's first byte to its chosen export: the fixed newstyle handshake.

Export names are attachment ids, which cannot be guessed; LIST is refused so that it tells none.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct, error

from innkeeper.fabric.nbd.protocol import (
    BASE_ALLOCATION,
    BASE_ALLOCATION_ID,
    GREETING,
    GREETING_MAGIC,
    MAX_NAME_BYTES,
    MAX_OPTION_BYTES,
    MAX_REQUEST_BYTES,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    HandshakeFlag,
    Info,
    Option,
    Reply,
    TransmissionFlag,
)
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import NotFound, Problem, Refused

HANDSHAKE_TIMEOUT_S = 30.0
_PREFERRED_BLOCK = 65536
_EXPORT = Struct(">HQH")
_BLOCK_SIZE = Struct(">HIII")
_U32 = Struct(">I")
_U16 = Struct(">H")
_KNOWN_FLAGS = int(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES)

OpenVolume = Callable[[str], Volume]
"""The volume of an attachment that this peer may use; raises ``NotFound`` or ``Refused``."""


class Hangup(Exception):
    """The client has gone, or says what no client says: the connection ends without a word."""


@dataclass(slots=True)
class Agreed:
    """What client and server have agreed on."""

    volume: Volume
    structured: bool
    base_allocation: bool


def transmission_flags(volume: Volume, structured: bool) -> int:
    """What the export can do. MULTI_CONN is true: a flush on any connection covers them all."""
    flags = TransmissionFlag.HAS_FLAGS | TransmissionFlag.SEND_FLUSH | TransmissionFlag.SEND_FUA
    flags |= TransmissionFlag.CAN_MULTI_CONN
    if structured:
        flags |= TransmissionFlag.SEND_DF
    if not volume.writable:
        return int(flags | TransmissionFlag.READ_ONLY)
    return int(
        flags | TransmissionFlag.SEND_TRIM | TransmissionFlag.SEND_WRITE_ZEROES | TransmissionFlag.SEND_FAST_ZERO
    )


class Negotiation:
    """One client's handshake on a non-blocking socket."""

    def __init__(self, sock: socket.socket, open_volume: OpenVolume) -> None:
        self._sock = sock
        self._open = open_volume
        self._loop = asyncio.get_running_loop()
        self._structured = False
        self._context_name: str | None = None
        self._no_zeroes = False

    async def run(self) -> Agreed | None:
        """Carry it out; None when the client ends it in good order.

        Raises ``Hangup`` and ``OSError``.
        """
        greeting = HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES
        await self._send(GREETING.pack(GREETING_MAGIC, OPTION_MAGIC, greeting))
        (flags,) = _U32.unpack(await self._receive(4))
        if not flags & HandshakeFlag.FIXED_NEWSTYLE or flags & ~_KNOWN_FLAGS:
            raise Hangup(f"handshake flags {flags:#x}")
        self._no_zeroes = bool(flags & HandshakeFlag.NO_ZEROES)
        while True:
            magic, option, length = OPTION.unpack(await self._receive(OPTION.size))
            if magic != OPTION_MAGIC:
                raise Hangup("no option where one belongs")
            if length > MAX_OPTION_BYTES:
                await self._skip(length)
                await self._reply(option, Reply.ERR_TOO_BIG)
                continue
            data = await self._receive(length)
            if option == Option.EXPORT_NAME:
                return await self._export_name(data)
            if option == Option.ABORT:
                await self._reply(option, Reply.ACK)
                return None
            agreed = await self._option(option, data)
            if agreed is not None:
                return agreed

    async def _option(self, option: int, data: bytes) -> Agreed | None:
        try:
            if option == Option.GO or option == Option.INFO:
                return await self._go(option, data)
            if option == Option.STRUCTURED_REPLY:
                if data:
                    await self._reply(option, Reply.ERR_INVALID)
                else:
                    self._structured = True
                    await self._reply(option, Reply.ACK)
            elif option in (Option.SET_META_CONTEXT, Option.LIST_META_CONTEXT):
                await self._meta_context(option, data)
            elif option == Option.LIST:
                await self._reply(option, Reply.ERR_POLICY, b"export names are not listed")
            else:
                await self._reply(option, Reply.ERR_UNSUP)
        except (error, UnicodeDecodeError, IndexError):
            await self._reply(option, Reply.ERR_INVALID)
        return None

    async def _export_name(self, data: bytes) -> Agreed:
        try:
            volume = self._open(data.decode())
        except (Problem, UnicodeDecodeError) as refused:
            raise Hangup(str(refused)) from refused
        answer = Struct(">QH").pack(volume.size_bytes, transmission_flags(volume, self._structured))
        await self._send(answer if self._no_zeroes else answer + bytes(124))
        return self._agreed(volume, data.decode())

    def _agreed(self, volume: Volume, name: str) -> Agreed:
        return Agreed(volume, self._structured, self._structured and self._context_name == name)

    async def _go(self, option: int, data: bytes) -> Agreed | None:
        (length,) = _U32.unpack_from(data)
        if length > MAX_NAME_BYTES or 4 + length + 2 > len(data):
            raise IndexError
        name = data[4 : 4 + length].decode()
        (wanted,) = _U16.unpack_from(data, 4 + length)
        if len(data) != 4 + length + 2 + 2 * wanted:
            raise IndexError
        try:
            volume = self._open(name)
        except NotFound:
            await self._reply(option, Reply.ERR_UNKNOWN, b"no such export")
            return None
        except Refused as refused:
            await self._reply(option, Reply.ERR_POLICY, refused.detail.encode()[:4000])
            return None
        except Problem as away:
            await self._reply(option, Reply.ERR_SHUTDOWN, away.detail.encode()[:4000])
            return None
        export = _EXPORT.pack(Info.EXPORT, volume.size_bytes, transmission_flags(volume, self._structured))
        sizes = _BLOCK_SIZE.pack(Info.BLOCK_SIZE, volume.minimum_block, _PREFERRED_BLOCK, MAX_REQUEST_BYTES)
        await self._reply(option, Reply.INFO, export)
        await self._reply(option, Reply.INFO, sizes)
        await self._reply(option, Reply.ACK)
        return self._agreed(volume, name) if option == Option.GO else None

    async def _meta_context(self, option: int, data: bytes) -> None:
        listing = option == Option.LIST_META_CONTEXT
        if not listing:
            self._context_name = None  # also where the option fails
        if not self._structured:
            await self._reply(option, Reply.ERR_INVALID, b"structured replies come first")
            return
        (length,) = _U32.unpack_from(data)
        name, at = data[4 : 4 + length].decode(), 4 + length
        (count,) = _U32.unpack_from(data, at)
        queries, at = [], at + 4
        for _ in range(count):
            (length,) = _U32.unpack_from(data, at)
            if at + 4 + length > len(data):
                raise IndexError
            queries.append(data[at + 4 : at + 4 + length].decode())
            at += 4 + length
        if at != len(data):
            raise IndexError
        wanted = (listing and not queries) or any(
            query == BASE_ALLOCATION or (listing and query == "base:") for query in queries
        )
        if wanted:
            if not listing:
                self._context_name = name
            context = _U32.pack(0 if listing else BASE_ALLOCATION_ID) + BASE_ALLOCATION.encode()
            await self._reply(option, Reply.META_CONTEXT, context)
        await self._reply(option, Reply.ACK)

    # --- bytes ---

    async def _reply(self, option: int, reply: Reply, data: bytes = b"") -> None:
        await self._send(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, reply, len(data)) + data)

    async def _send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._sock, data)

    async def _receive(self, length: int) -> bytes:
        parts = bytearray()
        while len(parts) < length:
            part = await self._loop.sock_recv(self._sock, length - len(parts))
            if not part:
                raise Hangup("the client has gone")
            parts += part
        return bytes(parts)

    async def _skip(self, length: int) -> None:
        while length:
            length -= len(await self._receive(min(length, MAX_OPTION_BYTES)))
