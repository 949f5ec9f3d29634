"""Writes stamps to an NBD export and remembers what was acknowledged; run by Debian's Python, which has libnbd.

    stamping_writer.py URI SEED      then on standard input:
    write N     connect, say ``writing`` once N writes are acknowledged, go on until the connection is lost, say
                ``lost <acknowledged>``
    check       connect again, read everything, say ``good <blocks written so far>`` or what is wrong

A block of 4 KiB holds its number and the number of the write, eight bytes each, 256 times. A block seen must be of the
last write acknowledged or of a later one that was sent.
"""

import random
import struct
import sys
import time

import nbd

BLOCK = 4096
DEPTH = 32


def connected(uri: str) -> nbd.NBD:
    """A connection; the fabric may just be starting."""
    deadline = time.monotonic() + 60
    while True:
        handle = nbd.NBD()
        try:
            handle.connect_uri(uri)
            return handle
        except nbd.Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


class Writer:
    def __init__(self, uri: str, seed: int) -> None:
        self.uri = uri
        self.chance = random.Random(seed)
        self.number = 0
        self.sent: dict[int, int] = {}
        self.kept: dict[int, int] = {}

    def write(self, wanted: int) -> int:
        handle = connected(self.uri)
        blocks = handle.get_size() // BLOCK
        acknowledged = 0
        told = False
        try:
            while True:
                pending: list[tuple[int, int, int]] = []
                for block in self.chance.sample(range(blocks), DEPTH):
                    self.number += 1
                    data = struct.pack(">QQ", block, self.number) * (BLOCK // 16)
                    self.sent[block] = self.number
                    buffer = nbd.Buffer.from_bytearray(bytearray(data))
                    pending.append((block, self.number, handle.aio_pwrite(buffer, block * BLOCK)))
                while pending:
                    left = []
                    for block, number, cookie in pending:
                        if handle.aio_command_completed(cookie):
                            self.kept[block] = number
                            acknowledged += 1
                        else:
                            left.append((block, number, cookie))
                    pending = left
                    if acknowledged >= wanted and not told:
                        told = True
                        print("writing", flush=True)
                    if pending:
                        handle.poll(-1)
                if self.chance.random() < 0.1:
                    handle.flush()
        except nbd.Error:
            return acknowledged

    def check(self) -> str:
        handle = connected(self.uri)
        blocks = handle.get_size() // BLOCK
        per_read = 256
        for first in range(0, blocks, per_read):
            data = handle.pread(per_read * BLOCK, first * BLOCK)
            for block in range(first, first + per_read):
                content = bytes(data[(block - first) * BLOCK : (block - first + 1) * BLOCK])
                at, seen = struct.unpack_from(">QQ", content)
                if content != struct.pack(">QQ", at, seen) * (BLOCK // 16) or (at != block and seen):
                    return f"torn block {block}"
                low, high = self.kept.get(block, 0), self.sent.get(block, 0)
                if not low <= seen <= high:
                    return f"block {block} has stamp {seen}, not between {low} and {high}"
                # what was seen after a recovery never changes without a write
                self.kept[block] = self.sent[block] = seen
        handle.shutdown()
        return f"good {sum(1 for number in self.kept.values() if number)}"


def main() -> None:
    writer = Writer(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        words = line.split()
        print(f"lost {writer.write(int(words[1]))}" if words[0] == "write" else writer.check(), flush=True)


if __name__ == "__main__":
    main()
