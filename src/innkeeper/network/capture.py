"""Captures of a port's frames as pcap: filters compiled by tcpdump, frames read from a packet socket.

The filter comes from people: tcpdump compiles it in a process without rights, and the kernel checks the program before
it takes it. Frames from the vm are seen before the guards judge them, frames towards it after.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass

from innkeeper.model.problems import Failed, Invalid, NotFound
from innkeeper.system import process

Instruction = tuple[int, int, int, int]

SNAP_BYTES = 262_144
_NOBODY = 65_534
_ALL_PROTOCOLS = 3
_SOL_PACKET, _PACKET_AUXDATA = 263, 8
_SO_RCVBUFFORCE, _SO_TIMESTAMPNS, _SO_ATTACH_FILTER = 33, 35, 26
_VLAN_VALID, _VLAN_TPID_VALID = 1 << 4, 1 << 6
_BUFFER_BYTES = 16 << 20
_FRAMES_AT_ONCE = 256
_IDLE_S = 1.0
_MAGIC_NANOSECONDS = 0xA1B23C4D
_ETHERNET = 1


def compile_filter(text: str) -> list[Instruction]:
    """The kernel's program for a filter as pcap-filter(7) says, such as ``tcp port 80``; empty for an empty one.

    Raises ``Invalid`` (``capture.filter``), ``Unavailable`` (``tool.missing``), ``Failed`` (``tool.timeout``).
    """
    if not text.strip():
        return []
    rights = ["setpriv", "--reuid", str(_NOBODY), "--regid", str(_NOBODY), "--clear-groups", "--no-new-privs"]
    tool = [process.which("tcpdump"), "-y", "EN10MB", "-s", str(SNAP_BYTES), "-ddd", "--", text]
    ended = process.run([*rights, *tool], timeout_s=10.0, check=False)
    if ended.returncode != 0:
        said = ended.stderr.decode(errors="replace").strip().removeprefix("tcpdump: ")
        raise Invalid(
            "capture.filter",
            f"{text!r} is not a filter",
            cause=said[:500] or None,
            remedy="write it as pcap-filter(7) says, such as 'tcp port 80' or 'host 10.0.0.5 and udp'",
        )
    return parse_program(ended.stdout.decode())


def parse_program(text: str) -> list[Instruction]:
    """What ``tcpdump -ddd`` prints: how many instructions, then each in four numbers."""
    lines = text.split("\n")[1:]
    program = [tuple(int(number) for number in line.split()) for line in lines if line]
    return [(code, true, false, value) for code, true, false, value in program]


def pcap_header() -> bytes:
    """The beginning of a pcap file of Ethernet frames with times in nanoseconds."""
    return struct.pack("<IHHiIII", _MAGIC_NANOSECONDS, 2, 4, 0, 0, SNAP_BYTES, _ETHERNET)


def pcap_record(seconds: int, nanoseconds: int, frame: bytes, length: int) -> bytes:
    """One frame of a pcap file; ``length`` is what it had on the wire."""
    return struct.pack("<IIII", seconds & 0xFFFFFFFF, nanoseconds, len(frame), length) + frame


@dataclass(frozen=True, slots=True)
class Limits:
    """When a capture ends by itself."""

    seconds: float
    octets: int
    frames: int = sys.maxsize


def open_socket(device: str, program: Sequence[Instruction]) -> socket.socket:
    """A socket that gets what passes ``device`` and its filter, in the namespace of this thread.

    Raises ``NotFound`` (``nic.not_plugged``), ``Failed`` (``capture.refused``).
    """
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER_BYTES)
        made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        made.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        if program:
            code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
            made.setsockopt(
                socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program), ctypes.addressof(code))
            )
        made.bind((device, _ALL_PROTOCOLS))
    except OSError as refused:
        made.close()
        if refused.errno == errno.ENODEV:
            raise NotFound(
                "nic.not_plugged", f"tap {device} is plugged into no switch", remedy="start its vm first"
            ) from refused
        raise Failed(
            "capture.refused", f"{device} cannot be captured", cause=str(refused), remedy="try a simpler filter"
        ) from refused
    return made


class Capture:
    """The pcap of what a socket gets, piece by piece, until its limits; an empty piece when a second brings nothing.

    It ends when the port does. ``close`` ends it too, and must be called by whoever does not read it to its end.
    """

    def __init__(self, source: socket.socket, limits: Limits) -> None:
        self._source = source
        self._limits = limits
        self._octets_left = limits.octets
        self._frames_left = limits.frames
        self._port_gone = False
        self._ready = asyncio.Event()
        self._watched = False
        self._closing = False

    @property
    def closed(self) -> bool:
        """Whether nothing comes any more."""
        return self._closing or self._source.fileno() < 0

    def close(self) -> None:
        """Let go of the port; may be repeated."""
        self._closing = True
        self._ready.set()
        if not self._watched:  # else whoever waits does it: a descriptor must not be closed under the loop
            self._source.close()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        ends_at = time.monotonic() + self._limits.seconds
        try:
            yield pcap_header()
            while not (self.closed or self._port_gone) and self._octets_left > 0 and self._frames_left > 0:
                rest = ends_at - time.monotonic()
                if rest <= 0:
                    return
                await self._readable(min(rest, _IDLE_S))
                yield self._read()
        finally:
            self.close()

    async def _readable(self, timeout_s: float) -> None:
        """Wait for a frame. The loop watches only meanwhile: while a slow client is waited for, frames wait too."""
        loop = asyncio.get_running_loop()
        self._ready.clear()
        loop.add_reader(self._source, self._ready.set)
        self._watched = True
        try:
            await asyncio.wait_for(self._ready.wait(), timeout_s)
        except TimeoutError:
            pass
        finally:
            self._watched = False
            loop.remove_reader(self._source)

    def _read(self) -> bytes:
        records: list[bytes] = []
        while len(records) < min(_FRAMES_AT_ONCE, self._frames_left) and self._octets_left > 0 and not self.closed:
            try:
                frame, facts, _, _ = self._source.recvmsg(SNAP_BYTES, 128)
            except BlockingIOError:
                break
            except OSError:
                if self._port_gone:
                    break
                self._port_gone = True  # said once; what passed before is still there
                continue
            records.append(_record(frame, facts))
            self._octets_left -= len(records[-1])
        self._frames_left -= len(records)
        return b"".join(records)


def tag_of(facts: Iterable[tuple[int, int, bytes]]) -> tuple[int, int] | None:
    """(ethertype, tag) that the kernel keeps beside a frame, of what came with it; None where it had no tag."""
    for level, kind, value in facts:
        if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            status, _, _, _, _, tag, protocol = struct.unpack_from("=IIIHHHH", value)
            if status & _VLAN_VALID:
                return (protocol if status & _VLAN_TPID_VALID else 0x8100), tag
    return None


def _record(frame: bytes, facts: list[tuple[int, int, bytes]]) -> bytes:
    seconds = nanoseconds = 0
    length = len(frame)
    for level, kind, value in facts:
        if (level, kind) == (socket.SOL_SOCKET, _SO_TIMESTAMPNS):
            seconds, nanoseconds = struct.unpack_from("=qq", value)
        elif (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
            (length,) = struct.unpack_from("=I", value, 4)
    if (tag := tag_of(facts)) is not None:
        frame, length = frame[:12] + struct.pack("!HH", *tag) + frame[12:], length + 4
    return pcap_record(seconds, nanoseconds, frame, max(length, len(frame)))
