"""Bridges with guests in namespaces: what frames are sent through, as fast as the kernel takes them.

A guest is a namespace whose ``eth0`` is wired to the bridge by a veth that carries a port's name, because the rules
know ports by their names. Frames are sent by sendmmsg on a packet socket, past queues: the processor that sends does
the whole work of a frame, through both wires, the bridge and its rules. So frames a second are the inverse of what a
frame costs.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from innkeeper.network.links import write_sysctl
from innkeeper.network.meter_dump import read_statistics
from innkeeper.network.namespace import NetworkThread
from innkeeper.network.nft import Nft
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.transaction import Schema, compile_elements, replace
from innkeeper.system import process

T = TypeVar("T")
Ends = tuple[PortPolicy, PortPolicy]
"""The ports of the one that sends and of the one that receives."""
Load = Callable[[str], None]
"""Loads rules in a namespace."""
INN_ID = "b3nc"
SWITCH = SwitchPolicy("bench", f"inbr-{INN_ID}1", kind="nat", subnet="10.64.0.0/16")
STRANGER = "52:54:00:ff:ff:fe"
"""A mac behind the receiver that its stack does not take for its own, so that nothing is done with what arrives."""
_BATCH = 64
_QDISC_BYPASS = 20
_SOL_PACKET = 263


def port_of(number: int) -> PortPolicy:
    """The port of guest ``number``, from 0."""
    high, low = divmod(number + 256, 256)
    return PortPolicy(
        f"intp-{INN_ID}{number}", f"52:54:00:00:{high:02x}:{low:02x}", (f"10.64.{high}.{low}",), hostname=f"vm{number}"
    )


def ports_of(count: int) -> list[PortPolicy]:
    return [port_of(number) for number in range(count)]


def no_guard(namespace: str) -> None:
    """Frames are held to nothing."""


def guard(ports: list[PortPolicy]) -> Load:
    """Loads the inn's rules for those ports."""

    def load() -> None:
        nft = Nft()
        try:
            nft.apply(replace(Schema(INN_ID), compile_elements([(SWITCH, ports)])))
        finally:
            nft.close()

    return lambda namespace: within(namespace, load)


def within(namespace: str, function: Callable[[], T]) -> T:
    """Call ``function`` in a thread in that namespace; sockets that it makes stay there."""

    async def call() -> T:
        thread = NetworkThread(namespace)
        try:
            return await thread.call(function)
        finally:
            await thread.close()

    return asyncio.run(call())


def run_in(namespace: str, *command: str, input_text: str | None = None) -> str:
    """What a command in a namespace prints."""
    given = None if input_text is None else input_text.encode()
    done = process.run(["ip", "netns", "exec", namespace, *command], stdin=given, timeout_s=600)
    return done.stdout.decode()


@contextmanager
def new_namespace(name: str) -> Iterator[str]:
    """A network namespace for the time of the block; its name carries this process's id."""
    full = f"bench-{os.getpid()}-{name}"
    process.run(["ip", "netns", "add", full])
    try:
        run_in(full, "ip", "link", "set", "lo", "up")
        yield full
    finally:
        process.run(["ip", "netns", "del", full])


@dataclass
class World:
    """A bridge with a sender and a receiver, in namespaces of their own."""

    namespace: str
    sender: str
    receiver: str
    ends: Ends
    flood: Flood

    def rate(self, seconds: float) -> float:
        """Frames a second from the sender to the receiver, in a flood of that length.

        Raises ``RuntimeError`` when frames are lost on the way: then something else was measured.
        """
        before = self._arrived()
        sent, took = self.flood.send(seconds)
        deadline = time.monotonic() + 2
        while (arrived := self._arrived() - before) < sent and time.monotonic() < deadline:
            time.sleep(0.01)
        if not 0.99 * sent <= arrived <= sent + 50:
            raise RuntimeError(f"{arrived} of {sent} frames arrived in {self.namespace}")
        return sent / took

    def _arrived(self) -> int:
        return within(self.receiver, lambda: read_statistics("eth0")["eth0"][1])


class Flood:
    """Sends one frame again and again on ``eth0`` of the namespace of the thread that makes it."""

    def __init__(self, frame: bytes) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.bind(("eth0", 0))
        self._socket.setsockopt(_SOL_PACKET, _QDISC_BYPASS, 1)
        self._frame = ctypes.create_string_buffer(frame, len(frame))
        # struct mmsghdr: name, its length, vector, its length, control, its length, flags, and what was sent
        self._vector = ctypes.create_string_buffer(struct.pack("=QQ", ctypes.addressof(self._frame), len(frame)))
        header = struct.pack("=QIxxxxQQQQixxxxIxxxx", 0, 0, ctypes.addressof(self._vector), 1, 0, 0, 0, 0)
        self._messages = ctypes.create_string_buffer(header * _BATCH)
        self._send = ctypes.CDLL(None, use_errno=True).sendmmsg

    def send(self, seconds: float) -> tuple[int, float]:
        """(frames sent, seconds that took)."""
        sent, began = 0, time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            done = self._send(self._socket.fileno(), self._messages, _BATCH, 0)
            if done < 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            sent += done
        return sent, took

    def close(self) -> None:
        self._socket.close()


def datagram(sender: PortPolicy, receiver: PortPolicy, size_bytes: int) -> bytes:
    """A UDP frame of that size between two guests."""
    payload = size_bytes - 14 - 20 - 8
    source, target = (socket.inet_aton(port.ipv4[0]) for port in (sender, receiver))
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + payload, 1, 0, 64, 17, 0, source, target)
    total = sum(struct.unpack("!10H", header))
    checksum = ~(total % 0xFFFF) & 0xFFFF
    header = header[:10] + struct.pack("!H", checksum) + header[12:]
    ethernet = bytes.fromhex((STRANGER + sender.mac).replace(":", "")) + b"\x08\x00"
    return ethernet + header + struct.pack("!HHHH", 4000, 4000, 8 + payload, 0) + bytes(payload)


def _quiet_bridges() -> None:
    """Bridged frames do not pass the rules of IP, as on a host where nobody loaded br_netfilter."""
    for which in ("iptables", "ip6tables", "arptables"):
        write_sysctl(f"net/bridge/bridge-nf-call-{which}", "0", optional=True)


@contextmanager
def new_world(name: str, ends: Ends, load: Load, frame_bytes: int = 60) -> Iterator[World]:
    """A world for the time of the block; ``load`` loads what frames are held to in the bridge's namespace."""
    with (
        new_namespace(f"{name}-sw") as namespace,
        new_namespace(f"{name}-a") as sender,
        new_namespace(f"{name}-b") as receiver,
    ):
        within(namespace, _quiet_bridges)
        plain = ["type", "bridge", "forward_delay", "0", "mcast_snooping", "0"]
        run_in(namespace, "ip", "link", "add", SWITCH.bridge, *plain)
        run_in(namespace, "ip", "link", "set", SWITCH.bridge, "up")
        for guest, port in zip((sender, receiver), ends, strict=True):
            link = ["type", "veth", "peer", "name", "eth0", "address", port.mac, "netns", guest]
            run_in(namespace, "ip", "link", "add", port.tap, *link)
            run_in(namespace, "ip", "link", "set", port.tap, "master", SWITCH.bridge, "up")
            run_in(guest, "ip", "addr", "add", f"{port.ipv4[0]}/16", "dev", "eth0")
            run_in(guest, "ip", "link", "set", "eth0", "up")
        run_in(namespace, "bridge", "fdb", "add", STRANGER, "dev", ends[1].tap, "master", "static")
        load(namespace)
        flood = within(sender, lambda: Flood(datagram(*ends, frame_bytes)))
        try:
            yield World(namespace, sender, receiver, ends, flood)
        finally:
            flood.close()
