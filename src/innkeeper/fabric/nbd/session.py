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
from concurrent.futures import ThreadPoolExecutor
from struct import pack
from typing import TypeVar

from innkeeper.fabric.nbd.negotiation import Agreed
from innkeeper.fabric.nbd.protocol import (
    BASE_ALLOCATION_ID,
    CHUNK,
    CHUNK_DONE,
    COMMAND_FLAGS,
    DATA_CHUNK,
    ERROR_CHUNK,
    MAX_REQUEST_BYTES,
    REQUEST,
    REQUEST_MAGIC,
    SIMPLE_REPLY,
    SIMPLE_REPLY_MAGIC,
    STRUCTURED_REPLY_MAGIC,
    ChunkType,
    Command,
    CommandFlag,
    NbdError,
)
from innkeeper.fabric.nbd.turn import Turn
from innkeeper.fabric.pool import Pool
from innkeeper.model.problems import Invalid, NoSpace, Problem, Refused, Unavailable

log = logging.getLogger(__name__)

BUFFER_BYTES = 512 << 10
INLINE_READ_BYTES = 1 << 20
"""Longer reads go to a worker even when they are in memory, so that they keep nobody waiting."""
MAX_OUT_BYTES = 8 << 20
MAX_WORKING_BYTES = 64 << 20
_MAX_VECTOR = 512
_HEADER = REQUEST.size

Buffer = bytes | bytearray | memoryview
Handler = Callable[[int, int, int, int], None]
T = TypeVar("T")


def error_of(problem: Problem) -> NbdError:
    """The protocol's error for a problem."""
    if isinstance(problem, NoSpace):
        return NbdError.ENOSPC
    if isinstance(problem, Refused):
        return NbdError.EPERM
    if isinstance(problem, Invalid):
        return NbdError.EINVAL
    if isinstance(problem, Unavailable):
        return NbdError.ESHUTDOWN
    return NbdError.EIO


class Session:
    """The transmission phase of one connection; ``on_closed`` is called once when it is over."""

    def __init__(
        self,
        sock: socket.socket,
        agreed: Agreed,
        pool: Pool,
        turn: Turn,
        workers: ThreadPoolExecutor,
        on_closed: Callable[[], None],
    ) -> None:
        self._sock = sock
        self.volume = agreed.volume
        self._structured = agreed.structured
        self._base_allocation = agreed.base_allocation
        self._pool = pool
        self._turn = turn
        self._workers = workers
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._large: tuple[tuple[int, int, int], bytearray, int] | None = None
        """A write longer than the buffer: (flags, cookie, offset), its own buffer, bytes received of it."""
        self._out: deque[Buffer] = deque()
        self._out_bytes = 0
        self._working_bytes = 0
        self._reading = False
        self._writing = False
        self._closed = False
        self._ending = False
        self._awaits_log = False
        self._uncommitted = False
        """The log has not yet taken what was staged from the buffer: it must stay as it is."""
        self._handlers: dict[int, Handler] = {
            Command.READ: self._read,
            Command.FLUSH: self._flush_command,
            Command.TRIM: self._trim,
            Command.WRITE_ZEROES: self._zero,
            Command.BLOCK_STATUS: self._status,
        }

    def begin(self) -> None:
        self._resume()

    def close(self) -> None:
        """End the connection now; requests under way are not answered."""
        if self._closed:
            return
        self._closed = True
        self._pause()
        if self._writing:
            self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self.volume.close()
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
        """The log has room again: go on with what was left unparsed."""
        self._awaits_log = False
        self._go_on()

    def _go_on(self) -> None:
        if not (self._closed or self._reading or self._ending or self._awaits_log or self._crowded()):
            self._resume()
            self._parse()

    def _crowded(self) -> bool:
        return self._out_bytes > MAX_OUT_BYTES or self._working_bytes > MAX_WORKING_BYTES

    def _readable(self) -> None:
        try:
            if self._large is not None:
                self._receive_large()
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

    def _receive_large(self) -> None:
        assert self._large is not None
        request, data, have = self._large
        received = self._sock.recv_into(memoryview(data)[have:])
        if not received:
            self.close()
            return
        have += received
        self._large = request, data, have
        if have == len(data):
            self._large = None
            self._write(*request, data)

    def _parse(self) -> None:
        """Take every whole request from the buffer."""
        buffer, view, start, end = self._buffer, self._view, self._start, self._end
        staged = False
        while end - start >= _HEADER and not self._closed:
            magic, flags, command, cookie, offset, length = REQUEST.unpack_from(buffer, start)
            if magic != REQUEST_MAGIC:
                log.warning("a client lost the thread of the protocol; closing its connection")
                self.close()
                return
            if command == Command.WRITE:
                if self._pool.log_room() <= 0:
                    self._awaits_log = True
                    self._pause()
                    break
                if length > MAX_REQUEST_BYTES:
                    self.close()
                    return
                body = start + _HEADER
                if length > BUFFER_BYTES - _HEADER:
                    data = bytearray(length)
                    have = min(end - body, length)
                    data[:have] = view[body : body + have]
                    start = body + have
                    if have == length:
                        self._write(flags, cookie, offset, data)
                        continue
                    self._large = (flags, cookie, offset), data, have
                    break
                if end - body < length:
                    break
                self._write(flags, cookie, offset, view[body : body + length])
                staged = True
                start = body + length
                continue
            start += _HEADER
            if command == Command.DISC:
                self._ending = True
                self._pause()
                break
            if self._crowded():
                self._pause()
            self._dispatch(command, flags, cookie, offset, length)
        if self._closed:
            return
        self._start, self._end = start, end
        self._uncommitted |= staged
        self._turn.at_end(id(self), self._flush)

    def _make_room(self) -> None:
        """Give the buffer room for more; what was staged from it has been taken by the log."""
        if self._uncommitted:
            self._turn.commit()
        left = self._end - self._start
        if left:
            self._buffer[:left] = self._buffer[self._start : self._end]
        self._start, self._end = 0, left

    # --- requests ---

    def _dispatch(self, command: int, flags: int, cookie: int, offset: int, length: int) -> None:
        handler = self._handlers.get(command)
        if handler is None or flags & ~COMMAND_FLAGS[command]:
            self._fail(command, cookie, NbdError.EINVAL)
            return
        try:
            handler(flags, cookie, offset, length)
        except Problem as problem:
            self._fail(command, cookie, error_of(problem))

    def _answer(self, cookie: int) -> Callable[[Problem | None], None]:
        def answer(problem: Problem | None) -> None:
            if not self._closed:
                self._put(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, error_of(problem) if problem else 0, cookie))

        return answer

    def _write(self, flags: int, cookie: int, offset: int, data: bytearray | memoryview) -> None:
        if flags & ~CommandFlag.FUA:
            self._fail(Command.WRITE, cookie, NbdError.EINVAL)
            return
        if offset + len(data) > self.volume.size_bytes and self.volume.writable:
            self._fail(Command.WRITE, cookie, NbdError.ENOSPC)
            return
        try:
            self.volume.stage_write(offset, data)
        except Problem as problem:
            self._fail(Command.WRITE, cookie, error_of(problem))
            return
        self._turn.staged(self._answer(cookie), bool(flags & CommandFlag.FUA))

    def _zero(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if offset + length > self.volume.size_bytes and self.volume.writable:
            self._fail(Command.WRITE_ZEROES, cookie, NbdError.ENOSPC)
            return
        self.volume.stage_zero(offset, length)
        self._turn.staged(self._answer(cookie), bool(flags & CommandFlag.FUA))

    def _trim(self, flags: int, cookie: int, offset: int, length: int) -> None:
        self.volume.stage_trim(offset, length)
        self._turn.staged(self._answer(cookie), bool(flags & CommandFlag.FUA))

    def _flush_command(self, _flags: int, cookie: int, offset: int, length: int) -> None:
        if offset or length:
            self._fail(Command.FLUSH, cookie, NbdError.EINVAL)
            return
        self._turn.staged(self._answer(cookie), True)

    def _read(self, _flags: int, cookie: int, offset: int, length: int) -> None:
        if length > MAX_REQUEST_BYTES or not length:
            self._fail(Command.READ, cookie, NbdError.EOVERFLOW if length else NbdError.EINVAL)
            return
        data = self.volume.read_nowait(offset, length) if length <= INLINE_READ_BYTES else None
        if data is not None:
            self._put_data(cookie, offset, data)
            return
        self._work(
            length,
            lambda: self.volume.read_blocking(offset, length),
            lambda found: self._put_data(cookie, offset, found),
            lambda failed: self._fail(Command.READ, cookie, failed),
        )

    def _status(self, flags: int, cookie: int, offset: int, length: int) -> None:
        if not self._base_allocation or not length:
            self._fail(Command.BLOCK_STATUS, cookie, NbdError.EINVAL)
            return
        only_one = bool(flags & CommandFlag.REQ_ONE)
        self._work(
            4096,
            lambda: self.volume.allocation(offset, length),
            lambda runs: self._put_status(cookie, runs[:1] if only_one else runs),
            lambda failed: self._fail(Command.BLOCK_STATUS, cookie, failed),
        )

    def _work(
        self, size: int, work: Callable[[], T], use: Callable[[T], None], fail: Callable[[NbdError], None]
    ) -> None:
        self._working_bytes += size

        def done(future: asyncio.Future[T]) -> None:
            self._working_bytes -= size
            if self._closed or future.cancelled():
                return
            failure = future.exception()
            if failure is None:
                use(future.result())
            elif isinstance(failure, Problem):
                log.error("a request fails: %s", failure)
                fail(error_of(failure))
            else:
                fail(NbdError.EIO)
                raise failure
            self._turn.at_end(id(self), self._flush)

        self._loop.run_in_executor(self._workers, work).add_done_callback(done)

    # --- replies ---

    def _put(self, *parts: Buffer) -> None:
        self._out.extend(parts)
        self._out_bytes += sum(map(len, parts))
        self._turn.at_end(id(self), self._flush)

    def _put_data(self, cookie: int, offset: int, data: bytes) -> None:
        if self._structured:
            header = DATA_CHUNK.pack(
                STRUCTURED_REPLY_MAGIC, CHUNK_DONE, ChunkType.OFFSET_DATA, cookie, len(data) + 8, offset
            )
        else:
            header = SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, 0, cookie)
        self._put(header, data)

    def _put_status(self, cookie: int, runs: list[tuple[int, int]]) -> None:
        body = pack(">I", BASE_ALLOCATION_ID) + b"".join(pack(">II", *run) for run in runs)
        self._put(
            CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, ChunkType.BLOCK_STATUS, cookie, len(body)) + body
        )

    def _fail(self, command: int, cookie: int, failed: NbdError) -> None:
        if self._structured and command in (Command.READ, Command.BLOCK_STATUS):
            self._put(
                ERROR_CHUNK.pack(STRUCTURED_REPLY_MAGIC, CHUNK_DONE, ChunkType.ERROR, cookie, 6, failed, 0)
            )
        else:
            self._put(SIMPLE_REPLY.pack(SIMPLE_REPLY_MAGIC, failed, cookie))

    def _flush(self) -> None:
        """Send what is queued, as far as the socket takes it."""
        self._uncommitted = False
        if self._closed:
            return
        out = self._out
        try:
            while out:
                vector = [out[index] for index in range(min(len(out), _MAX_VECTOR))]
                sent = self._sock.sendmsg(vector)
                self._out_bytes -= sent
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
                self._loop.add_writer(self._sock.fileno(), self._flush_more)
            return
        except OSError as lost:
            log.debug("a client is lost: %s", lost)
            self.close()
            return
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock.fileno())
        if self._ending:
            self.close()
            return
        self._go_on()

    def _flush_more(self) -> None:
        self._turn.at_end(id(self), self._flush)
