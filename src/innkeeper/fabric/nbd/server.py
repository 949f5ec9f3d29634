"""Accepts clients on the listening socket, checks who is there, and supervises their sessions."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from struct import Struct
from typing import Any

from innkeeper.fabric.catalog import Attachment
from innkeeper.fabric.meters import DiskMeter
from innkeeper.fabric.nbd.gate import Gate
from innkeeper.fabric.nbd.negotiation import HANDSHAKE_TIMEOUT_S, Agreed, Hangup, Negotiation
from innkeeper.fabric.nbd.session import Session
from innkeeper.fabric.nbd.turn import Turn
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import NotFound, Problem, Refused

log = logging.getLogger(__name__)

READ_WORKERS = 4
MAX_HANDSHAKES = 64
"""Connections of one user that have not yet said what they want; more are closed."""
MAX_CONNECTIONS = 32
"""Connections of one attachment; more are closed. Each may hold what ``session`` lets it."""
_SEND_BUFFER_BYTES = 1 << 20
_PEER = Struct("iII")


def peer_uid(sock: socket.socket) -> int:
    """The uid of the process at the other end of a unix socket (SO_PEERCRED, unix(7))."""
    _pid, uid, _gid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


class NbdServer:
    """Serves a pool's attachments on ``listener``; make it inside the event loop that shall run it."""

    def __init__(self, pool: Pool, listener: socket.socket) -> None:
        self._pool = pool
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._workers = ThreadPoolExecutor(READ_WORKERS, thread_name_prefix="nbd")
        self._turn = Turn(pool)
        self._sessions: dict[Session, Attachment] = {}
        self._meters: dict[str, DiskMeter] = {}
        """By disk or snapshot."""
        self._gate = Gate(pool, lambda: any(session.awaits_log for session in self._sessions))
        self._handshakes: set[asyncio.Task[None]] = set()
        self._shaking: Counter[int] = Counter()
        """Handshakes under way, by uid."""
        self._accepting: asyncio.Task[None] | None = None
        pool.on_room = self._room
        pool.on_policies = self._policies_changed

    def start(self) -> None:
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    def connections(self, attachment_id: str) -> int:
        """How many connections use the attachment."""
        return sum(1 for used in self._sessions.values() if used.id == attachment_id)

    def facts(self) -> dict[str, Any]:
        """What clients asked of each disk and snapshot, and how QoS policies fare. From the event loop."""
        known = {*self._pool.catalog.disks, *self._pool.catalog.snapshots}
        for subject in [subject for subject in self._meters if subject not in known]:
            del self._meters[subject]
        return {"meters": {key: meter.facts() for key, meter in self._meters.items()}, "flows": self._gate.facts()}

    def _policies_changed(self) -> None:
        """Called from whatever thread changed them."""
        self._loop.call_soon_threadsafe(self._regulate)

    def _regulate(self) -> None:
        """Put every connection under the policy that it is to be under now."""
        flows = self._gate.flows(list(self._sessions.values()))
        for session, attachment in self._sessions.items():
            session.regulate(flows[attachment.id])

    def drop(self, attachment_id: str) -> None:
        """Close the connections of an attachment that has ended."""
        for session in [session for session, used in self._sessions.items() if used.id == attachment_id]:
            session.close()

    async def close(self) -> None:
        """Close every connection; the listening socket stays, for whoever comes next."""
        for task in (self._accepting, *self._handshakes):
            if task is not None:
                task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        self._turn.commit()
        for session in list(self._sessions):
            session.close()
        self._pool.on_room = self._pool.on_policies = lambda: None
        self._gate.close()
        self._turn.close()
        await self._loop.run_in_executor(None, self._workers.shutdown)

    def _room(self) -> None:
        """The log has room again; called from whatever thread made it."""
        self._loop.call_soon_threadsafe(self._go_on)

    def _go_on(self) -> None:
        for session in list(self._sessions):
            session.room()

    async def _accept(self) -> None:
        while True:
            try:
                sock, _address = await self._loop.sock_accept(self._listener)
            except OSError as refused:
                log.warning("a connection cannot be accepted: %s", refused)
                await asyncio.sleep(0.1)
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            uid = peer_uid(sock)
            if self._shaking[uid] >= MAX_HANDSHAKES:
                sock.close()
                continue
            task = asyncio.create_task(self._welcome(sock, uid))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _welcome(self, sock: socket.socket, uid: int) -> None:
        """Negotiate with one client and begin its session."""
        agreed = None
        self._shaking[uid] += 1
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                agreed = await Negotiation(sock, lambda name: self._open(name, uid)).run()
            if agreed is not None and not self._may_begin(agreed):
                agreed = None
        except (Hangup, OSError) as over:
            log.debug("a client is not served: %s", over)
        finally:
            self._shaking[uid] -= 1
            if not self._shaking[uid]:
                del self._shaking[uid]
            if agreed is None:
                sock.close()
        if agreed is not None:
            self._begin(sock, agreed)

    def _may_begin(self, agreed: Agreed) -> bool:
        """Whether the attachment still stands and has not too many connections."""
        attachment = agreed.volume.attachment
        try:
            self._pool.volume(attachment.id)
        except Problem as ended:
            log.info("attachment %s ended while a client negotiated: %s", attachment.id, ended)
            return False
        if self.connections(attachment.id) >= MAX_CONNECTIONS:
            log.warning("attachment %s has %s connections; one more is refused", attachment.id, MAX_CONNECTIONS)
            return False
        return True

    def _begin(self, sock: socket.socket, agreed: Agreed) -> None:
        def closed() -> None:
            self._sessions.pop(session, None)
            self._regulate()

        attachment = agreed.volume.attachment
        meter = self._meters.setdefault(attachment.disk_id or str(attachment.snapshot_id), DiskMeter())
        session = Session(sock, agreed, self._pool, self._turn, self._workers, meter, closed)
        self._sessions[session] = attachment
        self._regulate()
        session.begin()

    def _open(self, name: str, uid: int) -> Volume:
        try:
            volume = self._pool.volume(name)
        except NotFound:
            raise
        except Problem as damaged:
            log.error("attachment %s cannot be served: %s", name, damaged)
            raise
        if volume.attachment.uid != uid:  # one without a uid is for use within the process alone
            log.warning("uid %s asked for attachment %s, which belongs to uid %s", uid, name, volume.attachment.uid)
            raise Refused("attachment.uid", "this export belongs to another user")
        return volume
