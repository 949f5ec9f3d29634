"""Hearing DHCP at the port of a bridge that leads outside: what servers there send in, and what is asked of them.

A packet socket sees frames before the bridge has them, so an address is known about when its guest hears of it; and it
needs nothing of the kernel but what captures do. Its filter keeps all else away.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator
from dataclasses import replace

from innkeeper.network.capture import Instruction, open_socket, tag_of
from innkeeper.network.dhcp_messages import Message, read

_FRAME_BYTES = 16_384
_ANCILLARY_BYTES = 256
_FRAMES_AT_ONCE = 256
_OUTGOING = 4
_VLAN = 0x8100

_LOAD_HALF, _LOAD_BYTE = 0x28, 0x30
_LOAD_HALF_BEHIND, _LOAD_HEADER_LENGTH = 0x48, 0xB1
_EQUAL, _ANY_BIT, _RETURN = 0x15, 0x45, 0x06


def _kept(shift: int) -> tuple[Instruction, ...]:
    """The end of the filter, where a frame's type is loaded, which stands ``shift`` bytes later than without a tag."""
    return (
        (_EQUAL, 0, 8, 0x0800),
        (_LOAD_BYTE, 0, 0, 23 + shift),
        (_EQUAL, 0, 12, 17),
        (_LOAD_HALF, 0, 0, 20 + shift),
        (_ANY_BIT, 10, 0, 0x3FFF),
        (_LOAD_HEADER_LENGTH, 0, 0, 14 + shift),
        (_LOAD_HALF_BEHIND, 0, 0, 16 + shift),
        (_EQUAL, 8, 0, 67),
        (_EQUAL, 7, 6, 68),
        (_EQUAL, 0, 5, 0x86DD),
        (_LOAD_BYTE, 0, 0, 20 + shift),
        (_EQUAL, 0, 3, 17),
        (_LOAD_HALF, 0, 0, 56 + shift),
        (_EQUAL, 2, 0, 546),
        (_EQUAL, 1, 0, 547),
        (_RETURN, 0, 0, 0),
        (_RETURN, 0, 0, _FRAME_BYTES),
    )


_TYPE, _TAG_BYTES = 12, 4
_TAGGED = ((_LOAD_HALF, 0, 0, _TYPE + _TAG_BYTES), *_kept(_TAG_BYTES))
FILTER: tuple[Instruction, ...] = (
    (_LOAD_HALF, 0, 0, _TYPE),
    (_EQUAL, 0, len(_TAGGED), _VLAN),
    *_TAGGED,
    *_kept(0),
)
"""UDP in one piece for ports 67 and 68 (IPv4), 546 and 547 (IPv6), with a VLAN's tag or without.

The kernel keeps a frame's tag beside it, until it goes to a card that cannot put it in itself: then it is in the frame.
"""


def taken_off(frame: bytes, beside: tuple[int, int] | None) -> tuple[bytes, tuple[int, int] | None]:
    """The frame without the tag that is in it, and its tag (type, control); one that is ``beside`` it is the outer."""
    if beside is not None or frame[_TYPE : _TYPE + 2] != _VLAN.to_bytes(2):
        return frame, beside
    tag = _VLAN, int.from_bytes(frame[_TYPE + 2 : _TYPE + _TAG_BYTES])
    return frame[:_TYPE] + frame[_TYPE + _TAG_BYTES :], tag


def open_listener(device: str) -> socket.socket:
    """A socket that gets DHCP that passes ``device``, both ways, in the namespace of this thread.

    Raises ``NotFound`` (``nic.not_plugged``) where there is no such device, ``Failed`` (``capture.refused``).
    """
    return open_socket(device, FILTER)


class Listener:
    """Messages as they come, those that wait at once, until the device goes or is taken down.

    A server's word counts where it came in, a client's where it went out. ``close`` must be called by whoever does not
    read it to its end.
    """

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._ready = asyncio.Event()

    async def __aiter__(self) -> AsyncGenerator[list[Message]]:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._source, self._ready.set)
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                yield self._read()
        except OSError:
            return
        finally:
            loop.remove_reader(self._source)
            self._source.close()

    def _read(self) -> list[Message]:
        """Raises ``OSError`` when the device has gone, or is down."""
        messages: list[Message] = []
        for _ in range(_FRAMES_AT_ONCE):
            try:
                frame, ancillary, _, (_, _, way, *_) = self._source.recvmsg(_FRAME_BYTES, _ANCILLARY_BYTES)
            except BlockingIOError:
                return messages
            frame, tag = taken_off(frame, tag_of(ancillary))
            message = read(frame)
            if message is not None and (message.kind == "ask") == (way == _OUTGOING):
                ethertype, control = tag or (_VLAN, 0)
                if ethertype == _VLAN:
                    messages.append(replace(message, vlan_id=control & 0xFFF or None))
        self._ready.set()  # there may be more; others have their turn
        return messages
