"""One connection's requests and replies.

Requests are parsed as many as a read of the socket brought; writes are staged straight from the receive buffer and
answered by the turn; reads of what is in memory are answered at once, others by a worker thread, out of order. Nothing
is read from a client whose answers pile up, or while the log has no room.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from struct import Struct

from innkeeper.fabric.bypass import Stored
from innkeeper.fabric.layout import BLOCK
from innkeeper.fabric.meters import DiskMeter
from innkeeper.fabric.nbd import replies
from innkeeper.fabric.nbd.buffers import AHEAD_BYTES, STREAM_WRITE_BYTES, Buffers, LongWrite
from innkeeper.fabric.nbd.negotiation import Agreed
from innkeeper.fabric.nbd.protocol import (
    MAX_REQUEST_BYTES,
    REQUEST_MAGIC,
    Command,
    CommandFlag,
    NbdError,
    command_flags,
    error_of,
    write_error,
)
from innkeeper.fabric.nbd.turn import Due, Turn
from innkeeper.fabric.nbd.work import Work
from innkeeper.fabric.nbd.workers import Workers
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.qos import Flow
from innkeeper.model.problems import Problem

log = logging.getLogger(__name__)

INLINE_READ_BYTES = 1 << 20
"""Longer reads go to a worker even when they are in memory, so that they keep nobody waiting."""
MAX_OUT_BYTES = 8 << 20
MAX_WORKING_BYTES = 64 << 20
MAX_EXTENTS = 1 << 16
"""Of one answer to BLOCK_STATUS; the client asks again for the rest."""
_MAX_VECTOR = 512
_YIELD_AFTER = 256
"""Requests that one connection may have handled before the others have their turn."""

_REQUEST = Struct(">IHH8sQI")
"""``protocol.REQUEST`` with the cookie as the eight bytes that go back as they came."""
_HEADER = _REQUEST.size

# The members of an enum cost ten times what an int costs; these are used for every request.
_READ, _WRITE, _DISC = int(Command.READ), int(Command.WRITE), int(Command.DISC)
_FUA = int(CommandFlag.FUA)

Buffer = bytes | bytearray | memoryview
Handler = Callable[[int, bytes, int, int], None]


class Session:
    """The transmission phase of one connection; ``on_closed`` is called once when it is over."""

    def __init__(
        self,
        sock: socket.socket,
        agreed: Agreed,
        pool: Pool,
        turn: Turn,
        workers: Workers,
        meter: DiskMeter,
        on_closed: Callable[[], None],
    ) -> None:
        self._sock = sock
        self.volume = agreed.volume
        self._structured = agreed.structured
        self._base_allocation = agreed.base_allocation
        self._command_flags = command_flags(agreed.structured)
        self._pool = pool
        self._turn = turn
        self._now = pool.io.clock.monotonic
        self._meter = meter
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self.flow: Flow | None = None
        """The QoS policy's flow that its requests draw on."""
        self._throttled: asyncio.TimerHandle | None = None
        self._buffer = bytearray(AHEAD_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._long: LongWrite | None = None
        self._whole: LongWrite | None = None  # it has been received, and waits for room
        self._buffers = Buffers()
        self._out: deque[Buffer] = deque()
        self._out_bytes = 0
        self.work = Work(lambda: workers.of(pool), lambda: turn.at_end(self))
        self._packing = workers.packing
        self._reading = False
        self._writing = False
        self._closed = False
        self._ending = False
        self.awaits_log = self.frozen = False
        self._staged: list[bytes] = []
        """Cookies of requests that are answered when the kernel has what was staged; below, when the medium has it."""
        self._durable: list[bytes] = []
        self._staged_at = self._durable_at = 0.0
        """When the first of them was taken."""
        self._began = 0.0
        """When the requests at hand were taken."""
        self._handlers: dict[int, Handler] = {
            _READ: self._read,
            int(Command.FLUSH): self._flush_command,
            int(Command.TRIM): self._trim,
            int(Command.WRITE_ZEROES): self._zero,
            int(Command.BLOCK_STATUS): self._status,
        }

    def begin(self) -> None:
        if not self.frozen:
            self._resume()

    def close(self) -> None:
        """End the connection now; requests under way are not answered."""
        if self._closed:
            return
        self._closed = self.work.closed = True
        self._pause()
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        if self._throttled is not None:
            self._throttled.cancel()
        self._sock.close()
        self.volume.close()
        # What else holds on to this session lets go at some time: its buffers go now.
        self._buffer, self._view = bytearray(), memoryview(b"")
        self._long, self._whole, self._buffers = None, None, Buffers()
        self._out.clear()
        self._on_closed()

    # --- receiving ---

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._sock.fileno())

    def _resume(self) -> None:
        if not self._reading and not self._closed and not self._ending:
            self._reading = True
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def room(self) -> None:
        """There may be room again: go on with what was left unparsed."""
        self.awaits_log = False
        self._go_on()

    def _hold_back(self, wait_s: float) -> None:
        """Take nothing from the client until its policy allows the next request."""
        self._meter.waits += 1
        self._pause()
        self._throttled = self._loop.call_later(wait_s, self._unthrottle)

    def regulate(self, flow: Flow | None) -> None:
        """Draw on that flow from now on; what was held back under another is looked at again."""
        if flow is not self.flow:
            self.flow = flow
            if self._throttled is not None:
                self._throttled.cancel()
                self._unthrottle()

    def _go_on(self) -> None:
        held = self._reading or self.awaits_log or self.frozen or self._throttled is not None
        if not (held or self._closed or self._ending or self._crowded()) and self._take_whole():
            self._resume()
            self._parse()

    def _unthrottle(self) -> None:
        self._throttled = None
        self._go_on()

    def _crowded(self) -> bool:
        return self._out_bytes > MAX_OUT_BYTES or self.work.size_bytes > MAX_WORKING_BYTES

    def _readable(self) -> None:
        try:
            if self._long is not None:
                if not self._long.receive(self._sock):
                    return
                self._whole, self._long = self._long, None
                if not self._take_whole():
                    return
            else:
                if self._start:
                    self._make_room()
                received = self._sock.recv_into(self._view[self._end :])
                if not received:
                    self.close()
                    return
                self._end += received
        except BlockingIOError:
            return
        except OSError as lost:
            log.debug("a client is lost: %s", lost)
            self.close()
            return
        self._parse()

    def _take_whole(self) -> bool:
        """Write the long write that has been received, if one has; False where it has to wait for room once more."""
        if (whole := self._whole) is not None:
            if self.volume.log_room() <= 0 or self.volume.waits_for_room(len(whole.buffer)):
                self._await_log()
                return False
            self._whole = None
            self._write(*whole.request, whole.buffer)
        return True

    def _parse(self) -> None:
        """Take every whole request from the buffer."""
        buffer, view, start, end = self._buffer, self._view, self._start, self._end
        unpack, volume, write, flow = _REQUEST.unpack_from, self.volume, self._write, self.flow
        left = _YIELD_AFTER
        now = self._began = self._now()
        room = volume.log_room()
        meter, reads = self._meter, self._meter.reads
        while end - start >= _HEADER and not self._closed:
            if self._out_bytes > MAX_OUT_BYTES or self.work.size_bytes > MAX_WORKING_BYTES:
                self._pause()  # what it asks for piles up: what it has sent waits in the buffer
                break
            if not left:
                self._pause()  # `flush` goes on, after the others
                break
            left -= 1
            magic, flags, command, cookie, offset, length = unpack(buffer, start)
            if magic != REQUEST_MAGIC:
                log.warning("a client lost the thread of the protocol; closing its connection")
                self.close()
                return
            body = start + _HEADER
            if command == _WRITE:
                if length > MAX_REQUEST_BYTES:
                    self.close()
                    return
                if room <= 0 or volume.waits_for_room(length):
                    self._await_log()
                    break
                short = end - body < length
                if short and not self._deserves_buffer(offset, length):
                    break
                if flow is not None and (wait_s := flow.ask(length, now)):
                    self._hold_back(wait_s)
                    break
                room -= length
                if short:
                    buffer = self._buffers.take(length)
                    self._long = LongWrite((flags, cookie, offset), buffer, view[body:end])
                    start = end
                    break
                start = body + length
                write(flags, cookie, offset, view[body:start])
                continue
            if command == _DISC:
                start = body
                self._ending = True
                self._pause()
                break
            if flow is not None and (wait_s := flow.ask(length if command == _READ else 0, now)):
                self._hold_back(wait_s)
                break
            start = body
            self._dispatch(command, flags, cookie, offset, length)
        if meter.reads != reads:
            meter.read_s.add(self._now() - now, meter.reads - reads)
        if self._closed:
            return
        self._start, self._end = start, end
        self._turn.at_end(self)

    def _await_log(self) -> None:
        """Take nothing from the client until the log has room, or it is known whether the pool has."""
        self._meter.waits += 1
        self.awaits_log = True
        if self.flow is not None:
            self.flow.pressed = True
        self._pause()

    def _deserves_buffer(self, offset: int, length: int) -> bool:
        """Whether a write that is not whole yet is received into a buffer of its own."""
        return length > AHEAD_BYTES - _HEADER or (length >= STREAM_WRITE_BYTES and self.volume.expects(offset))

    def _make_room(self) -> None:
        """Give the buffer room for more; what was staged from it has been taken by the log."""
        if self._staged or self._durable:
            self._turn.commit()
        left = self._end - self._start
        if left:
            self._view[:left] = self._view[self._start : self._end]
        self._start, self._end = 0, left

    # --- requests ---

    def _dispatch(self, command: int, flags: int, cookie: bytes, offset: int, length: int) -> None:
        handler = self._handlers.get(command)
        if handler is None or flags & ~self._command_flags[command]:
            self._fail(command, cookie, NbdError.EINVAL)
            return
        try:
            handler(flags, cookie, offset, length)
        except Problem as problem:
            self._fail(command, cookie, error_of(problem))

    def _has_staged(self, cookie: bytes, flags: int) -> None:
        """A request has been staged (or, for a flush, needs nothing staged): it is answered when it is safe."""
        if flags & _FUA:
            if not self._durable:
                self._durable_at = self._began
            self._durable.append(cookie)
        else:
            if not self._staged:
                self._staged_at = self._began
            self._staged.append(cookie)
        self._turn.staged(self)

    def take_staged(self) -> tuple[Due, Due]:
        """The requests that the turn has to answer by ``answer``: (when staged is in the kernel, on the medium)."""
        meter = self._meter
        taken = Due(self._staged, self._staged_at, meter.write_s), Due(self._durable, self._durable_at, meter.flush_s)
        self._staged, self._durable = [], []
        return taken

    def answer(self, due: Due, problem: Problem | None) -> None:
        """Answer requests that carry nothing back."""
        if self._closed or not due.cookies:
            return
        self._put(replies.plain(due.cookies, 0 if problem is None else error_of(problem)))
        due.latency.add(self._now() - due.since, len(due.cookies))

    def _write(self, flags: int, cookie: bytes, offset: int, data: bytearray | memoryview) -> None:
        if flags & ~_FUA:
            self._fail(_WRITE, cookie, NbdError.EINVAL)
            return
        try:
            if len(data) >= BLOCK and self.volume.streams(offset, len(data)):
                self._stream(flags, cookie, offset, data)
                return
            self.volume.stage_write(offset, data)
        except Problem as problem:
            self._fail(_WRITE, cookie, write_error(problem, offset + len(data), self.volume.size_bytes))
            return
        self._written(flags, cookie, len(data))

    def _written(self, flags: int, cookie: bytes, length: int) -> None:
        meter = self._meter
        meter.writes += 1
        meter.written_bytes += length
        self._has_staged(cookie, flags)

    def _stream(self, flags: int, cookie: bytes, offset: int, data: bytearray | memoryview) -> None:
        """A write of a sequential stream: a worker stores its blocks, then its names go through the log."""
        kept = data if isinstance(data, bytearray) else bytes(data)
        whole = offset % BLOCK == len(data) % BLOCK == 0
        began = self._began

        def use(stored: Stored | None) -> None:
            self._began = began
            try:
                self.volume.stage_stored(offset, kept, stored)
            except Problem as problem:
                self._fail(_WRITE, cookie, write_error(problem, offset + len(kept), self.volume.size_bytes))
                return
            self._written(flags, cookie, len(kept))
            if whole and stored is not None and isinstance(kept, bytearray):
                self._buffers.give_back(kept)

        self.work.begin(
            len(kept),
            lambda: self.volume.store_blocks(offset, kept),
            use,
            lambda failed: self._fail(_WRITE, cookie, failed),
            self.volume.give_up,
            self._packing,
        )

    def _zero(self, flags: int, cookie: bytes, offset: int, length: int) -> None:
        try:
            self.volume.stage_zero(offset, length)
        except Problem as problem:
            self._fail(Command.WRITE_ZEROES, cookie, write_error(problem, offset + length, self.volume.size_bytes))
            return
        self._has_staged(cookie, flags)

    def _trim(self, flags: int, cookie: bytes, offset: int, length: int) -> None:
        self.volume.stage_trim(offset, length)
        self._has_staged(cookie, flags)

    def _flush_command(self, _flags: int, cookie: bytes, offset: int, length: int) -> None:
        if offset or length:
            self._fail(Command.FLUSH, cookie, NbdError.EINVAL)
            return
        self._meter.flushes += 1
        self.volume.flushed()
        self._has_staged(cookie, _FUA)

    def _read(self, _flags: int, cookie: bytes, offset: int, length: int) -> None:
        if length > MAX_REQUEST_BYTES or not length:
            self._fail(Command.READ, cookie, NbdError.EINVAL)
            return
        data = self.volume.read_nowait(offset, length) if length <= INLINE_READ_BYTES else None
        meter = self._meter
        if data is not None:
            meter.reads += 1
            meter.read_bytes += length
            self._put_data(cookie, offset, data)
            return
        began = self._began

        def use(found: bytes) -> None:
            meter.reads += 1
            meter.read_bytes += length
            meter.read_s.add(self._now() - began)
            self._put_data(cookie, offset, found)

        self.work.begin(
            length,
            lambda: self.volume.read_blocking(offset, length),
            use,
            lambda failed: self._fail(Command.READ, cookie, failed),
        )

    def _status(self, flags: int, cookie: bytes, offset: int, length: int) -> None:
        if not self._base_allocation or not length:
            self._fail(Command.BLOCK_STATUS, cookie, NbdError.EINVAL)
            return
        only_one = bool(flags & CommandFlag.REQ_ONE)
        self.work.begin(
            4096,
            lambda: self.volume.allocation(offset, length),
            lambda runs: self._put(replies.status(cookie, runs[: 1 if only_one else MAX_EXTENTS])),
            lambda failed: self._fail(Command.BLOCK_STATUS, cookie, failed),
        )

    # --- replies ---

    def _put(self, part: Buffer) -> None:
        self._out.append(part)
        self._out_bytes += len(part)
        self._turn.at_end(self)

    def _put_data(self, cookie: bytes, offset: int, data: Buffer) -> None:
        """Queue a reply; whoever calls tells the turn. For a slow client the data is copied: it may be of an extent."""
        header = replies.before_data(cookie, offset, len(data), self._structured)
        self._out.append(header)
        self._out.append(bytes(data) if self._writing else data)
        self._out_bytes += len(header) + len(data)

    def _fail(self, command: int, cookie: bytes, failed: NbdError) -> None:
        chunked = self._structured and command in (Command.READ, Command.BLOCK_STATUS)
        self._put(replies.failure(cookie, failed, chunked))

    def flush(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        if self._closed:
            return
        out = self._out
        try:
            while out:
                whole = self._out_bytes
                if len(out) > _MAX_VECTOR:
                    sent = self._sock.sendmsg([out[index] for index in range(_MAX_VECTOR)])
                else:
                    sent = self._sock.sendmsg(out)
                self._out_bytes -= sent
                if sent == whole:
                    out.clear()
                    break
                while sent:
                    first = out[0]
                    if sent < len(first):
                        out[0] = memoryview(first)[sent:]
                        break
                    sent -= len(first)
                    out.popleft()
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._out = deque(map(bytes, out))
                self._loop.add_writer(self._sock.fileno(), self._turn.at_end, self)
            return
        except OSError as lost:
            log.debug("a client is lost: %s", lost)
            self.close()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())
        self.close() if self._ending else self._go_on()
