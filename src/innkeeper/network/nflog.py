"""What the kernel tells of frames that rules log (nfnetlink_log): opening it, and reading its messages.

A group of a network namespace has one listener. Acting: ``open_group``, ``received``, ``link_names``; the rest is pure.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from innkeeper.model.problems import Conflict, Failed

_NETLINK_NETFILTER = 12
_PACKET, _CONFIG = 4 << 8, 4 << 8 | 1
_ERROR = 2
_REQUEST_ACK = 0x1 | 0x4
_COMMAND, _MODE, _TIMEOUT = 1, 2, 4
_BIND = 1
_COPY_PACKET = 2
_COPY_BYTES = 256
_GATHER_CENTISECONDS = 10
"""The kernel gathers for so long before it wakes the reader."""
_HEADER, _IN, _OUT, _PHYSICAL_IN, _PHYSICAL_OUT, _PAYLOAD, _PREFIX, _VLAN = 1, 4, 5, 6, 7, 9, 10, 20
_VLAN_TAG = 2
_RECEIVE_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Logged:
    """A frame that a rule with ``prefix`` logged: what it carries (``ethertype``), from the network header on.

    Indexes are those of bridge ports, 0 for none; ``vlan_id`` is None without a tag.
    """

    prefix: str
    in_index: int
    out_index: int
    ethertype: int
    vlan_id: int | None
    packet: bytes


def open_group(group: int) -> socket.socket:
    """A socket, not blocking, that gets every frame logged to ``group`` in this thread's namespace.

    Raises ``Conflict`` (``network.log_group``) when another program has the group, ``Failed`` (``network.log``).
    """
    listening = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
        listening.bind((0, 0))
        for kind, value in (
            (_COMMAND, struct.pack("!B", _BIND)),
            (_MODE, struct.pack("!IBB", _COPY_BYTES, _COPY_PACKET, 0)),
            (_TIMEOUT, struct.pack("!I", _GATHER_CENTISECONDS)),
        ):
            _configure(listening, group, kind, value)
        listening.setblocking(False)
    except OSError as refused:
        listening.close()
        if refused.errno in (errno.EPERM, errno.EBUSY):  # the kernel says the former of another's group
            raise Conflict(
                "network.log_group",
                f"group {group} of the kernel's packet log is another program's",
                cause="one program hears a group, and what rules of ACLs log goes to this one",
                remedy="end that program; lists allow and deny all the same",
            ) from refused
        raise Failed(
            "network.log",
            "the kernel's packet log cannot be opened",
            cause=str(refused),
            remedy="'inn doctor' checks the kernel; lists allow and deny all the same",
        ) from refused
    return listening


def _configure(listening: socket.socket, group: int, kind: int, value: bytes) -> None:
    attribute = struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    body = struct.pack("!BBH", socket.AF_UNSPEC, 0, group) + attribute
    listening.send(struct.pack("=IHHII", 16 + len(body), _CONFIG, _REQUEST_ACK, 1, 0) + body)
    while True:
        answer = listening.recv(_BUFFER_BYTES)
        (kind_of_answer,) = struct.unpack_from("=H", answer, 4)
        if kind_of_answer == _ERROR:  # also says that all is well; frames may come before it
            (code,) = struct.unpack_from("=i", answer, 16)
            if code:
                raise OSError(-code, os.strerror(-code))
            return


def received(listening: socket.socket, most: int) -> Iterator[Logged]:
    """What has come in, of at most so many messages; what the kernel had no room for is passed over."""
    for _ in range(most):
        try:
            yield from parse(listening.recv(_BUFFER_BYTES))
        except BlockingIOError:
            return
        except OSError as lost:
            if lost.errno != errno.ENOBUFS:
                raise


def link_names(indexes: Iterable[int]) -> dict[int, str]:
    """The links of this thread's namespace that have those indexes."""
    found = {}
    for index in indexes:
        with contextlib.suppress(OSError, OverflowError):
            found[index] = socket.if_indextoname(index)
    return found


def parse(messages: bytes) -> Iterator[Logged]:
    """The frames in what was received; what is cut short is left out."""
    offset = 0
    while offset + 20 <= len(messages):
        length, kind = struct.unpack_from("=IH", messages, offset)
        if length < 20 or offset + length > len(messages):
            return
        if kind == _PACKET:
            yield _logged(dict(_attributes(messages, offset + 20, offset + length)))
        offset += length + 3 & ~3


def _logged(found: dict[int, bytes]) -> Logged:
    def number(width: int, *kinds: int) -> int:
        values = (found.get(kind, b"") for kind in kinds)
        return next((int.from_bytes(value[:width]) for value in values if len(value) >= width), 0)

    tag = dict(_attributes(nested := found.get(_VLAN, b""), 0, len(nested))).get(_VLAN_TAG, b"")
    return Logged(
        prefix=found.get(_PREFIX, b"").rstrip(b"\0").decode(errors="replace"),
        in_index=number(4, _PHYSICAL_IN, _IN),
        out_index=number(4, _PHYSICAL_OUT, _OUT),
        ethertype=number(2, _HEADER),
        vlan_id=int.from_bytes(tag) & 0xFFF if len(tag) == 2 else None,
        packet=found.get(_PAYLOAD, b""),
    )


def _attributes(message: bytes, offset: int, end: int) -> Iterator[tuple[int, bytes]]:
    while offset + 4 <= end:
        length, kind = struct.unpack_from("=HH", message, offset)
        if length < 4 or offset + length > end:
            return
        yield kind & 0x3FFF, message[offset + 4 : offset + length]
        offset += length + 3 & ~3
