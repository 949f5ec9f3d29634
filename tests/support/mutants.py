"""Requests and handshakes of NBD that are not quite right, made from right ones by chance."""

from __future__ import annotations

import random
import socket
import struct
from pathlib import Path

from nbd_lab import PATIENCE_S, RawClient

from innkeeper.fabric.nbd import protocol as p

SPEC_ERRORS = {0, *(int(each) for each in p.NbdError)}
WRITE = p.Command.WRITE


def requests(chance: random.Random, path: Path, export: str, size: int, count: int) -> int:
    """Send ``count`` requests with wrong fields over one connection, each answered as the protocol says, or the end of
    the connection; how many were sent."""
    client = RawClient(path)
    try:
        client.greet()
        client.go(export, structured=chance.random() < 0.7, context=chance.random() < 0.5)
        for number in range(1, count + 1):
            length = chance.choice([0, 1, 512, 4096, 70_000, chance.randrange(1 << 32)])
            command = chance.choice([*p.Command, chance.randrange(65536)])
            fields = [
                p.REQUEST_MAGIC,
                chance.choice([0, 0, 1, 2, 4, 8, 16, chance.randrange(65536)]),
                command,
                number,
                chance.choice([0, 4096, size - 512, chance.randrange(size), chance.randrange(1 << 64)]),
                length,
            ]
            if chance.random() < 0.01:
                fields[0] ^= 1 << chance.randrange(32)
            body = chance.randbytes(length) if command == WRITE and length <= 70_000 else b""
            client.sock.sendall(p.REQUEST.pack(*fields) + body)
            if command == WRITE and length > 70_000:
                return number  # its body will never come: the connection is of no more use
            try:
                found = client.answer(length if command == p.Command.READ else 0)
            except ConnectionError:
                assert command == p.Command.DISC or fields[0] != p.REQUEST_MAGIC
                return number
            assert found.cookie == number
            assert found.error in SPEC_ERRORS
        return count
    finally:
        client.close()


def conversation(chance: random.Random, export: str, size: int) -> list[bytes]:
    """A handshake and some requests as a client would send them without waiting, in their parts."""
    name = export.encode()
    base = p.BASE_ALLOCATION.encode()
    query = struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(base)) + base
    choice = len(name).to_bytes(4, "big") + name + struct.pack(">HH", 1, p.Info.BLOCK_SIZE)
    options = [(p.Option.STRUCTURED_REPLY, b"")]
    for extra in ((p.Option.LIST_META_CONTEXT, query), (p.Option.SET_META_CONTEXT, query), (p.Option.INFO, choice)):
        if chance.random() < 0.5:
            options.append(extra)
    options.append((p.Option.GO, choice) if chance.random() < 0.8 else (p.Option.EXPORT_NAME, name))
    parts = [struct.pack(">I", 3)]
    for option, data in options:
        parts += [p.OPTION.pack(p.OPTION_MAGIC, option, len(data)), data]
    for cookie in range(chance.randrange(8)):
        command = chance.choice(list(p.Command))
        length = chance.choice([512, 4096, 8192])
        offset = chance.randrange(size - length)
        parts.append(p.REQUEST.pack(p.REQUEST_MAGIC, 0, command, cookie, offset, length))
        if command == WRITE:
            parts.append(chance.randbytes(length))
    return parts


def mutated(chance: random.Random, parts: list[bytes]) -> bytes:
    """One to three changes: parts lost, doubled, swapped; bits flipped, bytes put in, taken out, cut off."""
    parts = list(parts)
    for _ in range(chance.randrange(3)):
        at, other = chance.randrange(len(parts)), chance.randrange(len(parts))
        kind = chance.randrange(3)
        if kind == 0:
            parts.insert(at, parts[other])
        elif kind == 1:
            parts[at], parts[other] = parts[other], parts[at]
        elif len(parts) > 1:
            del parts[at]
    data = bytearray(b"".join(parts))
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(min(len(data), 400)) if data else 0
        kind = chance.randrange(5)
        if kind == 0:
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 1:
            del data[at : at + chance.randrange(1, 9)]
        elif kind == 2 and len(data) >= at + 4:
            data[at : at + 4] = chance.choice([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1"])
        elif kind == 3 and chance.random() < 0.3:
            del data[at:]
        elif data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
    return bytes(data)


def handshake(chance: random.Random, path: Path, export: str, size: int) -> None:
    """Send a mutated conversation; the server answers what it likes and ends the connection once the client has."""
    data = mutated(chance, conversation(chance, export, size))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(str(path))
        try:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(1 << 16):
                pass
        except (ConnectionError, BrokenPipeError):
            pass  # it would hear no more of this
