"""Accepts clients on the listening socket, checks who is there, and supervises their sessions."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import replace
from struct import Struct
from typing import Any

from innkeeper.fabric.catalog import Attachment
from innkeeper.fabric.meters import DiskMeter
from innkeeper.fabric.nbd.gate import Gate
from innkeeper.fabric.nbd.movable import MovableSession
from innkeeper.fabric.nbd.negotiation import HANDSHAKE_TIMEOUT_S, Agreed, Hangup, Negotiation
from innkeeper.fabric.nbd.turn import Turn
from innkeeper.fabric.nbd.workers import Workers
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.pools import Pools
from innkeeper.fabric.volume import Volume
from innkeeper.model.problems import NotFound, Problem, Refused, Unavailable

log = logging.getLogger(__name__)

MAX_HANDSHAKES = 64
"""Connections of one user that have not yet said what they want; more are closed."""
MAX_CONNECTIONS = 32
"""Connections of one attachment; more are closed. Each may hold what ``session`` lets it."""
HOLD_PATIENCE_S = 5.0
LOOK_AGAIN_S = 5.0
"""How often those who wait for room are looked at, told or not."""
HOLD_POLL_S = 0.001
_SEND_BUFFER_BYTES = 1 << 20
_PEER = Struct("iII")


def peer_uid(sock: socket.socket) -> int:
    """The uid of the process at the other end of a unix socket (SO_PEERCRED, unix(7))."""
    _pid, uid, _gid = _PEER.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    return int(uid)


class NbdServer:
    """Serves the pools' attachments on ``listener``; make it inside the event loop that shall run it."""

    def __init__(self, pools: Pools, listener: socket.socket) -> None:
        self._pools = pools
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._workers = Workers(pools)
        self._turns: dict[Pool, Turn] = {}
        """Of the pools that were used so far."""
        self._sessions: dict[MovableSession, Attachment] = {}
        self._held: set[str] = set()
        """Attachments that are held back."""
        self._meters: dict[str, DiskMeter] = {}
        """By disk or snapshot."""
        self._gate = Gate(pools, self._is_busy)
        self._handshakes: set[asyncio.Task[None]] = set()
        self._shaking: Counter[int] = Counter()
        """Handshakes under way, by uid."""
        self._accepting: asyncio.Task[None] | None = None
        self._looking: asyncio.TimerHandle | None = None
        pools.on_close = self._let_go

    def start(self) -> None:
        self._looking = self._loop.call_later(LOOK_AGAIN_S, self._look_again)
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept())

    def connections(self, attachment_id: str) -> int:
        """How many connections use the attachment."""
        return sum(1 for used in self._sessions.values() if used.id == attachment_id)

    def facts(self) -> dict[str, Any]:
        """What clients asked of each disk and snapshot, and how QoS policies fare. From the event loop."""
        known = {each for pool in self._pools.all() for each in (*pool.catalog.disks, *pool.catalog.snapshots)}
        for subject in [subject for subject in self._meters if subject not in known]:
            del self._meters[subject]
        return {"meters": {key: meter.facts() for key, meter in self._meters.items()}, "flows": self._gate.facts()}

    def _is_busy(self) -> bool:
        """Whether the pools could not give more now: somebody waits for the log, or for a worker to read for him.

        Who waits for a worker is pressed, however few requests he sends.
        """
        working = [session for session in self._sessions if session.work.requests]
        for session in working:
            if session.flow is not None:
                session.flow.pressed = True
        waiting = sum(session.work.requests for session in working)
        return waiting > self._workers.count or any(session.awaits_log for session in self._sessions)

    def _turn_of(self, pool: Pool) -> Turn:
        """The turn of a pool; from its first use on the pool tells when it has room, and when policies change."""
        turn = self._turns.get(pool)
        if turn is None:
            turn = self._turns[pool] = Turn(pool)
            pool.on_room = self._room
            pool.on_policies = self._policies_changed
        return turn

    def _let_go(self, pool: Pool) -> None:
        """Called from whatever thread closes a pool that nothing uses any more."""
        pool.on_room = pool.on_policies = lambda: None
        self._loop.call_soon_threadsafe(self._forget, pool)

    def _forget(self, pool: Pool) -> None:
        turn = self._turns.pop(pool, None)
        if turn is not None:
            turn.close()

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

    @asynccontextmanager
    async def held_back(self, attachment_ids: Collection[str]) -> AsyncIterator[None]:
        """Take no requests of those attachments while the context is open, and have answered all before it is.

        Raises ``Unavailable`` (``move.busy``) where that takes too long. Afterwards the connections go on, wherever the
        attachments then are.
        """
        self._held.update(attachment_ids)
        sessions = [session for session, used in self._sessions.items() if used.id in attachment_ids]
        for session in sessions:
            session.freeze()
        try:
            deadline = self._loop.time() + HOLD_PATIENCE_S
            while not all(session.idle for session in sessions):
                if self._loop.time() > deadline:
                    raise Unavailable("move.busy", "the disk's requests take too long", remedy="try again")
                await asyncio.sleep(HOLD_POLL_S)
            yield
        finally:
            self._held.difference_update(attachment_ids)
            for session, used in list(self._sessions.items()):
                if used.id in attachment_ids:
                    self._reopen(session, used.id)
                    session.thaw()
            self._regulate()

    def _reopen(self, session: MovableSession, attachment_id: str) -> None:
        """Let a connection use its attachment where that is now."""
        try:
            pool, volume = self._pools.volume(attachment_id)
        except Problem as gone:
            log.warning("attachment %s is gone, and its connection is closed: %s", attachment_id, gone)
            session.close()
            return
        if volume.attachment is not self._sessions[session]:
            session.move_to(volume, self._turn_of(pool))
            self._sessions[session] = volume.attachment

    async def close(self) -> None:
        """Close every connection; the listening socket stays, for whoever comes next."""
        for task in (self._accepting, *self._handshakes):
            if task is not None:
                task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)
        for turn in self._turns.values():
            turn.commit()
        for session in list(self._sessions):
            session.close()
        self._gate.close()
        if self._looking is not None:
            self._looking.cancel()
        for pool, turn in self._turns.items():
            pool.on_room = pool.on_policies = lambda: None
            turn.close()
        await self._loop.run_in_executor(None, self._workers.shutdown)

    def _room(self) -> None:
        """The log has room again; called from whatever thread made it."""
        self._loop.call_soon_threadsafe(self._go_on)

    def _go_on(self) -> None:
        for session in list(self._sessions):
            session.room()

    def _look_again(self) -> None:
        """Whatever kept those who wait from being told."""
        self._looking = self._loop.call_later(LOOK_AGAIN_S, self._look_again)
        if any(session.awaits_log for session in self._sessions):
            self._go_on()

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
            self._pools.volume(attachment.id)
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
        pool, volume = self._pools.volume(attachment.id)  # it may have moved while the client negotiated
        agreed = replace(agreed, volume=volume)
        session = MovableSession(sock, agreed, pool, self._turn_of(pool), self._workers, meter, closed)
        session.frozen = attachment.id in self._held
        self._sessions[session] = volume.attachment
        self._regulate()
        session.begin()

    def _open(self, name: str, uid: int) -> Volume:
        try:
            _, volume = self._pools.volume(name)
        except NotFound:
            raise
        except Problem as damaged:
            log.error("attachment %s cannot be served: %s", name, damaged)
            raise
        if volume.attachment.uid != uid:  # one without a uid is for use within the process alone
            log.warning("uid %s asked for attachment %s, which belongs to uid %s", uid, name, volume.attachment.uid)
            raise Refused("attachment.uid", "this export belongs to another user")
        return volume
