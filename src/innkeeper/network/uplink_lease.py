"""Leases of the host (DHCPv4) on an external switch's bridge: asked for again there, since the card's own client no
longer hears the answers.

RFC 2131, 4.3.2 and 4.4.5: a request as in REBINDING, with the address in ``ciaddr`` and the identifier that the card's
client uses, which any server of the network that knows the lease answers. Nothing waits: ``look`` takes the answers
that have come and sends what is due. What is known of leases is kept below /run, and so for as long as the bridge.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import BaseModel, RootModel, ValidationError

from innkeeper.model.problems import Problem, Unavailable
from innkeeper.model.uplink import HostAddress
from innkeeper.network.uplink_record import boot_time_s

_PORT, _SERVER_PORT = 68, 67
_MAGIC = b"\x63\x82\x53\x63"
_REQUEST, _ACK, _NAK = 3, 5, 6
_TYPE, _LEASE_S, _CLIENT_ID, _WANTED, _END = 53, 51, 61, 55, 255
_AGAIN_S = 60.0
_IP_PKTINFO = 8


class Lease(BaseModel):
    """``client_id``: option 61 as hexadecimal digits, empty for none. Times are ``boot_time_s``."""

    address: str
    client_id: str = ""
    due_s: float
    expires_s: float
    refused: bool = False


class _Leases(RootModel[list[Lease]]):
    pass


class Leases:
    """The leases on the bridges of an inn; ``directory`` is of the records of moves."""

    def __init__(self, directory: Path, now: Callable[[], float] = boot_time_s) -> None:
        self._directory = directory
        self._now = now
        self._sockets: dict[tuple[str, str], tuple[socket.socket, int]] = {}

    def close(self) -> None:
        for opened, _ in self._sockets.values():
            opened.close()
        self._sockets.clear()

    def hold(self, bridge: str, addresses: Iterable[HostAddress], client_id: str) -> None:
        """Look after those of ``addresses`` that were leased, from now on."""
        now = self._now()
        held = {one.address: one for one in self.held(bridge)}
        for one in addresses:
            if one.leased and one.version == 4:
                expires_s = now + (one.lifetime_s or 0)
                held[one.address] = Lease(address=one.address, client_id=client_id, due_s=now, expires_s=expires_s)
        if held:
            self._keep(bridge, list(held.values()))

    def held(self, bridge: str) -> list[Lease]:
        try:
            return _Leases.model_validate_json(self._path(bridge).read_bytes()).root
        except (FileNotFoundError, ValidationError):
            return []

    def forget(self, bridge: str) -> None:
        """The bridge has no leases any more."""
        self._path(bridge).unlink(missing_ok=True)
        for key in [key for key in self._sockets if key[0] == bridge]:
            self._close(key)

    def look(self, bridge: str, mac: str, addresses: Iterable[str]) -> Problem | None:
        """Take answers, ask for what is due of the leases that are among the bridge's ``addresses``; what is wrong."""
        held = self.held(bridge)
        if not held:
            return None
        present = set(addresses)
        kept = [self._look_after(bridge, mac, one) for one in held if one.address in present]
        for gone in held:
            if gone.address not in present:
                self._close((bridge, gone.address))
        if kept != held:
            self._keep(bridge, kept)
        return next((problem for one in kept if (problem := self._judge(one))), None)

    def _look_after(self, bridge: str, mac: str, lease: Lease) -> Lease:
        now, key = self._now(), (bridge, lease.address)
        for kind, seconds in self._answers(key, mac):
            if kind == _NAK:
                lease = lease.model_copy(update={"refused": True, "due_s": now + _AGAIN_S})
            else:
                due_s = now + seconds / 2
                lease = lease.model_copy(update={"refused": False, "due_s": due_s, "expires_s": now + seconds})
            self._close(key)
        if now < lease.due_s:
            return lease
        with contextlib.suppress(OSError):  # no carrier, or somebody has the port: it is asked again
            self._ask(key, mac, lease)
        return lease.model_copy(update={"due_s": now + _AGAIN_S})

    def _judge(self, lease: Lease) -> Problem | None:
        if not lease.refused and self._now() < lease.expires_s:
            return None
        why = "the DHCP server refuses it" if lease.refused else "no DHCP server answers"
        return Unavailable(
            "switch.uplink_lease",
            f"the host's lease of {lease.address} is not renewed",
            cause=f"{why}; the server may give the address to somebody else",
            remedy=f"reserve {lease.address} on the DHCP server, or make it a static address of the host's",
        )

    def _ask(self, key: tuple[str, str], mac: str, lease: Lease) -> None:
        bridge, address = key
        self._close(key)
        number = int.from_bytes(os.urandom(4))
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, bridge.encode())
            opened.bind(("", _PORT))  # a refusal is broadcast
            sent = request(number, mac, address, bytes.fromhex(lease.client_id))
            source = struct.pack("=I4s4x", 0, socket.inet_aton(address))
            opened.sendmsg([sent], [(socket.IPPROTO_IP, _IP_PKTINFO, source)], 0, ("<broadcast>", _SERVER_PORT))
        except BaseException:
            opened.close()
            raise
        self._sockets[key] = (opened, number)

    def _answers(self, key: tuple[str, str], mac: str) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        if key not in self._sockets:
            return found
        opened, number = self._sockets[key]
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while not found:
                if (answer := read_answer(opened.recv(2048), number, mac, key[1])) is not None:
                    found.append(answer)
        return found

    def _close(self, key: tuple[str, str]) -> None:
        if (opened := self._sockets.pop(key, None)) is not None:
            opened[0].close()

    def _path(self, bridge: str) -> Path:
        return self._directory / f"{bridge}.leases"

    def _keep(self, bridge: str, leases: list[Lease]) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = self._path(bridge).with_suffix(".fresh")
        fresh.write_text(_Leases(leases).model_dump_json())
        fresh.rename(self._path(bridge))


def request(number: int, mac: str, address: str, client_id: bytes) -> bytes:
    """A DHCPREQUEST that asks any server for ``address``, which the client has, once more (RFC 2131)."""
    hardware, own = bytes.fromhex(mac.replace(":", "")), socket.inet_aton(address)
    fixed = struct.pack("!BBBBIHH4s12x16s192x4s", 1, 1, 6, 0, number, 0, 0, own, hardware, _MAGIC)
    options = bytes((_TYPE, 1, _REQUEST))
    if client_id:
        options += bytes((_CLIENT_ID, len(client_id))) + client_id
    return (fixed + options + bytes((_WANTED, 2, 1, _LEASE_S, _END))).ljust(300, b"\0")


def read_answer(message: bytes, number: int, mac: str, address: str) -> tuple[int, int] | None:
    """(type, seconds of the lease) of an answer to request ``number``; None when it is something else, or malformed."""
    if len(message) < 240 or message[0] != 2 or message[236:240] != _MAGIC:
        return None
    if message[4:8] != number.to_bytes(4) or message[28:34] != bytes.fromhex(mac.replace(":", "")):
        return None
    options, place = dict[int, bytes](), 240
    while place + 1 < len(message) and message[place] != _END:
        if message[place] == 0:
            place += 1
            continue
        length = message[place + 1]
        options.setdefault(message[place], message[place + 2 : place + 2 + length])
        place += 2 + length
    kind, lease = options.get(_TYPE, b""), options.get(_LEASE_S, b"")
    if kind == bytes((_NAK,)):
        return _NAK, 0
    if kind != bytes((_ACK,)) or len(lease) != 4 or message[16:20] != socket.inet_aton(address):
        return None
    return _ACK, int.from_bytes(lease)
