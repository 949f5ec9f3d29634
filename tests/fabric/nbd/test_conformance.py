"""Programme 5, first half: every command with every flag at every kind of range, however the export was chosen.

What is expected is the protocol's text as a function of its own (``faults``), not the server's code.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nbd_lab import MIB, NbdLab, RawClient
from programme import report

from innkeeper.fabric.nbd import protocol as p

C, F = p.Command, p.CommandFlag
WRITES = (C.WRITE, C.TRIM, C.WRITE_ZEROES)
COMMANDS = (C.READ, C.WRITE, C.FLUSH, C.TRIM, 5, C.WRITE_ZEROES, C.BLOCK_STATUS, 8, 77, 65535)
FLAGS = (0, F.FUA, F.NO_HOLE, F.DF, F.REQ_ONE, F.FAST_ZERO, F.FUA | F.NO_HOLE, F.FUA | F.DF, 1 << 5, 1 << 15, 0xFFFF)


@dataclass(frozen=True)
class Variant:
    """How a client comes to its export, and what export that is."""

    size: int
    old: bool = False
    structured: bool = True
    context: bool = True
    reader: bool = False

    @contextmanager
    def connect(self, lab: NbdLab) -> Iterator[RawClient]:
        export = lab.disk(self.size, role="reader" if self.reader else "writer")
        with lab.connect() as client:
            if self.old:
                client.prepare(export, structured=self.structured, context=self.context)
                client.export_name(export)
            else:
                client.go(export, structured=self.structured, context=self.context)
            yield client


VARIANTS = [
    Variant(4 * MIB),
    Variant(4 * MIB, context=False),
    Variant(4 * MIB, structured=False, context=False),
    Variant(4 * MIB, old=True),
    Variant(4 * MIB, old=True, structured=False, context=False),
    Variant(4 * MIB, reader=True),
    Variant(4 * MIB, reader=True, structured=False, context=False),
    Variant(4 * MIB + 512),
]


def ranges(size: int) -> list[tuple[int, int]]:
    """Inside the export: aligned, odd, at the end, all; across and beyond the end; wrapping; empty; too long."""
    return [
        *((0, 4096), (65536, 65536), (8192 + 512, 1024), (12345, 6789), (size - 512, 512), (0, size)),
        *((size - 512, 1024), (size, 512), (2**63, 4096), (2**64 - 512, 1024), (2**64 - 1, 1)),
        *((0, 0), (size, 0), (4096, 2**32 - 1)),
    ]


def faults(variant: Variant, command: int, flags: int, offset: int, length: int) -> set[int]:
    """The errors that the protocol allows for a request; it has to be done when there is none."""
    if command not in set(C):
        return {errno.EINVAL}
    found = set()
    allowed = {
        C.READ: F.DF if variant.structured else 0,
        C.WRITE_ZEROES: F.NO_HOLE | (0 if variant.reader else F.FAST_ZERO),
        C.BLOCK_STATUS: F.REQ_ONE,
    }.get(C(command), 0)
    if flags & ~int(allowed | F.FUA):
        found.add(errno.EINVAL)
    if command in WRITES and variant.reader:
        found.add(errno.EPERM)
    if command == C.FLUSH:
        return found | ({errno.EINVAL} if offset or length else set())
    if offset + length > variant.size:
        found.add(errno.ENOSPC if command in (C.WRITE, C.WRITE_ZEROES) else errno.EINVAL)
    if command == C.READ and length > p.MAX_REQUEST_BYTES:
        found |= {errno.EINVAL, errno.EOVERFLOW}
    if command == C.BLOCK_STATUS and not variant.context:
        found.add(errno.EINVAL)
    return found


def apply(model: bytearray, command: int, offset: int, data: bytes, length: int) -> None:
    """What a successful request does."""
    if command == C.WRITE:
        model[offset : offset + length] = data
    elif command == C.WRITE_ZEROES:
        model[offset : offset + length] = bytes(length)
    elif command == C.TRIM:  # whole pages and what is left at the end, as this server does; it could do less
        first, end = -(-offset // 4096) * 4096, offset + length
        last = end if end == len(model) else end // 4096 * 4096
        if first < last:
            model[first:last] = bytes(last - first)


def check_answer(variant: Variant, client: RawClient, request: tuple[int, int, int, int], model: bytearray) -> None:
    command, flags, offset, length = request
    data = random.Random(repr(request)).randbytes(length) if command == C.WRITE else b""
    cookie = client.send(command, offset, length, data, int(flags))
    found = client.answer(length if command == C.READ else 0)
    wrong = faults(variant, command, int(flags), offset, length)
    case = f"{variant}, command {command}, flags {int(flags):#x}, {offset}+{length}: {found.error}"
    assert found.cookie == cookie, case
    if length == 0 and command != C.FLUSH:
        assert found.error in {0, errno.EINVAL, *wrong}, case  # unspecified, but the connection goes on
    else:
        assert found.error in (wrong or {0}), case
    if variant.structured and command == C.READ:
        assert found.structured, case
    if found.error:
        return
    apply(model, command, offset, data, length)
    if command == C.READ:
        assert found.data == model[offset : offset + length], case
    elif command == C.BLOCK_STATUS and length:
        told = [run for run, _ in found.extents]
        assert all(told) and (sum(told) <= length if flags & F.REQ_ONE else sum(told) >= length), case
        assert len(told) == 1 or not flags & F.REQ_ONE, case


def test_every_request_gets_the_answer_of_the_protocol(lab: NbdLab) -> None:
    cases = 0
    for variant in VARIANTS:
        model = bytearray(variant.size)
        with variant.connect(lab) as client:
            assert client.size_bytes == variant.size
            can = p.TransmissionFlag(client.flags)
            assert (p.TransmissionFlag.SEND_DF in can) == variant.structured
            assert (p.TransmissionFlag.READ_ONLY in can) == variant.reader
            assert (p.TransmissionFlag.SEND_FAST_ZERO in can) != variant.reader
            for command in COMMANDS:
                for flags in FLAGS:
                    for offset, length in ranges(variant.size):
                        if command == C.WRITE and length > p.MAX_REQUEST_BYTES:
                            continue  # its body cannot be taken off the wire
                        check_answer(variant, client, (command, flags, offset, length), model)
                        cases += 1
                assert client.ask(C.READ, 0, variant.size).data == model
    counts, least = {"cases": cases, "negotiations": len(VARIANTS)}, {"cases": 10_000}
    report(5, "NBD conformance", seeds="none", trials="cases", counts=counts, least=least)
