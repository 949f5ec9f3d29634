"""Noticing that others change what is the inn's: the kernel's notifications of rules, links and addresses.

A ``Watch`` belongs to the thread that changes the switches and hears what it does itself, too. Of rules the kernel
says which socket asked for a change (``nlmsg_pid`` of netlink(7)), so those of this process are known. Of links it does
not: what comes in while the thread works is its own doing and is let be, what comes in between is somebody else's.
What slips through (a link changed in the very moment of an own change, a DHCP server that dies) is left to the look
that is taken now and then.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from innkeeper.model.problems import Failed

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_GROUP_LINK, _GROUP_ADDRESS4, _GROUP_NFTABLES = 1, 5, 7
_ADD_MEMBERSHIP = 1
_SOL_NETLINK = 270
_SO_RCVBUFFORCE = 33
_NEW_LINK, _DEL_LINK, _NEW_ADDRESS, _DEL_ADDRESS = 16, 17, 20, 21
_LINK_NAME, _LINK_MTU, _LINK_MASTER, _ADDRESS_LABEL = 3, 4, 10, 3
_UNSPECIFIED = 0
_IFF_UP = 1
_NFT_SUBSYSTEM, _NFT_NEW_GENERATION = 10, 15
_FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
_TABLE = 1
_BUFFER_BYTES = 1 << 18
_QUEUE_BYTES = 1 << 20
"""What may wait to be heard: making all rules anew says more than the kernel's usual 208 KiB hold, and what others do
in that moment would be lost with it."""
ANYTHING = "the rules or links of this host"
"""Said where so much was changed that the kernel could not tell what."""


@dataclass(frozen=True, slots=True)
class LinkNews:
    """What the kernel says of a link; ``facts`` (index, master, mtu, up) are None when it is gone."""

    name: str
    facts: tuple[int, int, int, bool] | None


class Watch:
    """Who touched the tables named ``table`` or links whose names begin with ``prefixes``.

    Raises ``Failed`` (``network.watch``) when the kernel gives no notifications.
    """

    def __init__(self, table: str, prefixes: tuple[str, ...]) -> None:
        self._table, self._prefixes = table, prefixes
        self._touched: set[str] = set()
        self._known: dict[str, tuple[int, int, int, bool]] = {}
        self._own_ports: frozenset[int] = frozenset()
        self._rules = _listen(_NETLINK_NETFILTER, _GROUP_NFTABLES)
        try:
            self._links = _listen(_NETLINK_ROUTE, _GROUP_LINK, _GROUP_ADDRESS4)
        except Failed:
            self._rules.close()
            raise

    @property
    def descriptors(self) -> tuple[int, int]:
        """Readable when something was said."""
        return self._rules.fileno(), self._links.fileno()

    def close(self) -> None:
        self._rules.close()
        self._links.close()

    @contextmanager
    def own_doing(self) -> Iterator[None]:
        """What is said of links during the block was caused by it."""
        self._touched |= self._heard_of_rules() | self._heard_of_links()
        try:
            yield
        finally:
            self._touched |= self._heard_of_rules() - {ANYTHING}
            self._heard_of_links()

    def touched(self) -> frozenset[str]:
        """What others have touched since it was asked last: tables and links by name."""
        touched, self._touched = frozenset(self._touched), set()
        return touched

    def _heard_of_rules(self) -> set[str]:
        heard = set()
        for message in _pending(self._rules):
            if message is None:
                heard.add(ANYTHING)
                continue
            heard |= {f"table {table}" for table, port in tables(message, self._table) if not self._is_own(port)}
        return heard

    def _is_own(self, port: int) -> bool:
        """Whether a socket of this process asked for the change; they are looked up when an unknown one comes."""
        if port not in self._own_ports:
            self._own_ports = own_ports()
        return port in self._own_ports

    def _heard_of_links(self) -> set[str]:
        heard = set()
        for message in _pending(self._links):
            if message is None:
                heard.add(ANYTHING)
                continue
            heard |= {name for name in addressed(message) if name.startswith(self._prefixes)}
            for news in links(message):
                if news.name.startswith(self._prefixes) and self._known.get(news.name) != news.facts:
                    heard.add(news.name)
                    if news.facts is None:
                        self._known.pop(news.name, None)
                    else:
                        self._known[news.name] = news.facts
        return heard


async def readable(descriptors: Sequence[int], timeout_s: float) -> bool:
    """Wait until there is something to read at one of them; False when nothing came in that time."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    for descriptor in descriptors:
        loop.add_reader(descriptor, ready.set)
    try:
        await asyncio.wait_for(ready.wait(), timeout_s)
    except TimeoutError:
        return False
    finally:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
    return True


def _listen(protocol: int, *groups: int) -> socket.socket:
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, protocol)
    try:
        with suppress(PermissionError):
            listening.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
        listening.bind((0, 0))
        for group in groups:
            listening.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
    except OSError as refused:
        listening.close()
        raise Failed(
            "network.watch",
            "the kernel does not tell what others change",
            cause=str(refused),
            remedy="what others change is still found, within half a minute",
        ) from refused
    return listening


def _pending(source: socket.socket) -> Iterator[bytes | None]:
    """What has been said; None where something could not be told for want of room."""
    while True:
        try:
            yield source.recv(_BUFFER_BYTES)
        except BlockingIOError:
            return
        except OSError as lost:
            if lost.errno != errno.ENOBUFS:
                raise
            yield None


def own_ports() -> frozenset[int]:
    """The netlink ports that sockets of this process have to nftables, in the namespace of this thread."""
    inodes = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            inodes.add(str(descriptor.readlink()))
    rows = [row.split() for row in Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]]
    return frozenset(
        int(row[2]) for row in rows if int(row[1]) == _NETLINK_NETFILTER and f"socket:[{row[9]}]" in inodes
    )


def _messages(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(type, start of the body, end) of each netlink message."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        if length < 16:
            return
        yield kind, offset + 16, min(offset + length, len(data))
        offset += length + 3 & ~3


def _attributes(data: bytes, offset: int, end: int) -> dict[int, bytes]:
    found = {}
    while offset + 4 <= end:
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : min(offset + length, end)]
        offset += length + 3 & ~3
    return found


def _text(value: bytes) -> str:
    return value.rstrip(b"\0").decode(errors="replace")


def tables(data: bytes, wanted: str) -> Iterator[tuple[str, int]]:
    """("family table", port that asked) of the messages about nftables' tables of that name and what is in them."""
    for kind, start, end in _messages(data):
        if kind >> 8 != _NFT_SUBSYSTEM or kind & 0xFF == _NFT_NEW_GENERATION:
            continue
        name = _text(_attributes(data, start + 4, end).get(_TABLE, b""))
        if name == wanted:
            yield f"{_FAMILIES.get(data[start], 'unknown')} {name}", *struct.unpack_from("=I", data, start - 4)


def links(data: bytes) -> Iterator[LinkNews]:
    """What is said of links; that a port left a bridge is said again as news of the link itself."""
    for kind, start, end in _messages(data):
        if kind not in (_NEW_LINK, _DEL_LINK) or data[start] != _UNSPECIFIED:
            continue
        index, flags = struct.unpack_from("=iI", data, start + 4)
        found = _attributes(data, start + 16, end)
        mtu, master = (int.from_bytes(found.get(key, b""), sys.byteorder) for key in (_LINK_MTU, _LINK_MASTER))
        facts = None if kind == _DEL_LINK else (index, master, mtu, bool(flags & _IFF_UP))
        yield LinkNews(_text(found.get(_LINK_NAME, b"")), facts)


def addressed(data: bytes) -> set[str]:
    """The devices whose IPv4 addresses came or went."""
    return {
        _text(_attributes(data, start + 8, end).get(_ADDRESS_LABEL, b""))
        for kind, start, end in _messages(data)
        if kind in (_NEW_ADDRESS, _DEL_ADDRESS)
    }
