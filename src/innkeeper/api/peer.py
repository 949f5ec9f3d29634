"""Who is at the other end of the unix socket."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

from fastapi import Request
from uvicorn.protocols.http.h11_impl import H11Protocol

_UCRED = struct.Struct("3i")


class PeerProtocol(H11Protocol):
    """uvicorn's protocol that puts the peer's uid and pid (SO_PEERCRED) where HTTP has the client's address."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        if peer is not None and peer.family == socket.AF_UNIX:
            pid, uid, _gid = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
            self.client = (f"uid:{uid}", pid)


def peer_pid(request: Request) -> int:
    """The process that asks; our own when the application is called in-process."""
    client = request.client
    return client.port if client is not None and client.host.startswith("uid:") else os.getpid()


def peer_uid(request: Request) -> int:
    """The uid of the process that asks; our own when the application is called in-process."""
    host = request.client.host if request.client else ""
    return int(host.removeprefix("uid:")) if host.startswith("uid:") else os.getuid()
