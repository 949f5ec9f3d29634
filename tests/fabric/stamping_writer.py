"""Writes stamps to an NBD export and remembers what was acknowledged; run by Debian's Python, which has libnbd.

    stamping_writer.py URI SEED      then on standard input:
    write N         connect twice, say ``writing`` once N blocks were acknowledged, go on until the connection is lost,
                    say ``lost <acknowledged> <flushes>``
    check           after the death of the process: connect again, read everything, say ``good <blocks with a stamp>``
                    or what is wrong: each block has its last acknowledged value, or that of what was under way
    check power     after a power cut: each block has the value last flushed, or one that was sent since
    cut URI         read a snapshot that was asked for during the last ``write``, say ``good <batches in it>`` or what
                    is wrong: it is a cut through the order of acknowledgements

A block of 4 KiB holds its number and the number of the write, eight bytes each, 256 times; or zeros, after a trim or
a zero. Blocks are written in batches over two connections, of single blocks or of one stream without gaps; the next
batch begins when all of one was acknowledged.
"""

import random
import struct
import sys
import time

import nbd

BLOCK = 4096
DEPTH = 32
PER_READ = 256
STREAM = 16
STREAM_DEPTH = 48
"""Blocks of a request and requests of a stream: 3 MiB without a gap."""


def connected(uri):
    """A connection; the fabric may just be starting."""
    deadline = time.monotonic() + 120
    while True:
        handle = nbd.NBD()
        try:
            handle.connect_uri(uri)
            return handle
        except nbd.Error:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def stamps(uri):
    """The stamp of every block, 0 for zeros; a string when a block is torn."""
    handle = connected(uri)
    blocks = handle.get_size() // BLOCK
    found = {}
    for first in range(0, blocks, PER_READ):
        data = handle.pread(PER_READ * BLOCK, first * BLOCK)
        for block in range(first, first + PER_READ):
            content = bytes(data[(block - first) * BLOCK : (block - first + 1) * BLOCK])
            at, seen = struct.unpack_from(">QQ", content)
            if content != struct.pack(">QQ", at, seen) * (BLOCK // 16) or (seen and at != block):
                return f"torn block {block}"
            found[block] = seen
    handle.shutdown()
    return found


class Writer:
    def __init__(self, uri, seed):
        self.uri = uri
        self.chance = random.Random(seed)
        self.number = 0
        self.kept = {}
        """The value last acknowledged, by block."""
        self.sent = {}
        """The values of the batch under way."""
        self.flushed = {}
        self.since = {}
        """The values sent since the last flush, by block."""
        self.base = {}
        self.batches = []
        """What was there before the last ``write``, and what that sent."""

    def write(self, wanted):
        handles = [connected(self.uri), connected(self.uri)]
        blocks = handles[0].get_size() // BLOCK
        acknowledged = flushes = 0
        told = False
        self.base, self.batches = dict(self.kept), []
        try:
            while True:
                self.sent = {}
                self.batches.append(self.sent)
                pending = []
                for turn, extent in enumerate(self.extents(blocks)):
                    handle = handles[turn % 2 if len(extent) == 1 else 0]
                    pending.append((extent, handle, *self.begin(handle, extent)))
                while pending:
                    left = []
                    for extent, handle, cookie, fua in pending:
                        if handle.aio_command_completed(cookie):
                            acknowledged += len(extent)
                            for block in extent:
                                value = self.kept[block] = self.sent[block]
                                if fua:
                                    self.flushed[block], self.since[block] = value, []
                        else:
                            left.append((extent, handle, cookie, fua))
                    pending = left
                    if pending:
                        pending[0][1].poll(-1)
                if acknowledged >= wanted and not told:
                    told = True
                    print("writing", flush=True)
                if self.chance.random() < 0.15:
                    handles[0].flush()  # covers both connections
                    flushes += 1
                    self.flushed, self.since = dict(self.kept), {}
        except nbd.Error as failed:
            if failed.errno and all(handle.aio_is_ready() for handle in handles):
                return f"refused {failed}"
            return f"lost {acknowledged} {flushes}"

    def extents(self, blocks):
        """The ranges of a batch: single blocks anywhere, or (sometimes) a stream that the fabric takes past its log."""
        if self.chance.random() > 0.1:
            return [range(block, block + 1) for block in self.chance.sample(range(blocks), DEPTH)]
        first = self.chance.randrange(blocks // STREAM - STREAM_DEPTH) * STREAM
        return [range(first + at * STREAM, first + (at + 1) * STREAM) for at in range(STREAM_DEPTH)]

    def begin(self, handle, extent):
        """Send something for a range; (cookie, whether with FUA)."""
        draw = self.chance.random()
        fua = self.chance.random() < 0.03
        flags = nbd.CMD_FLAG_FUA if fua else 0
        written = draw < 0.85 or len(extent) > 1
        data = bytearray()
        for block in extent:
            self.number += 1
            value = self.number if written else 0
            self.sent[block] = value
            self.since.setdefault(block, []).append(value)
            data += struct.pack(">QQ", block, value) * (BLOCK // 16)
        if written:
            return handle.aio_pwrite(nbd.Buffer.from_bytearray(data), extent[0] * BLOCK, flags=flags), fua
        start = handle.aio_trim if draw < 0.93 else handle.aio_zero
        return start(BLOCK, extent[0] * BLOCK, flags=flags), fua

    def check(self, power):
        found = stamps(self.uri)
        if isinstance(found, str):
            return found
        for block, seen in found.items():
            if power:
                allowed = {self.flushed.get(block, 0), *self.since.get(block, ())}
            else:
                allowed = {self.kept.get(block, 0), self.sent.get(block, self.kept.get(block, 0))}
            if seen not in allowed:
                return f"block {block} has stamp {seen}, not one of {sorted(allowed)}"
        # what was seen after a recovery never changes without a write
        self.kept, self.flushed, self.sent, self.since = dict(found), dict(found), {}, {}
        return f"good {sum(1 for seen in found.values() if seen)}"

    def cut(self, uri):
        found = stamps(uri)
        if isinstance(found, str):
            return found
        latest = {value: at for at, batch in enumerate(self.batches) for value in batch.values() if value}
        last = max((latest[seen] for seen in found.values() if seen in latest), default=-1)
        state = dict(self.base)
        for batch in self.batches[: max(0, last)]:
            state.update(batch)
        # The batch of the latest stamp seen is the one under way; a later one if only its zeros had been staged.
        wrong = ""
        for at in range(max(0, last), len(self.batches) + 1):
            batch = self.batches[at] if at < len(self.batches) else {}
            odd = [each for each, seen in found.items() if seen not in (state.get(each, 0), batch.get(each, -1))]
            if not odd:
                return f"good {at}"
            wrong = wrong or f"block {odd[0]} has stamp {found[odd[0]]} while batch {last} was under way"
            state.update(batch)
        return wrong


def main():
    writer = Writer(sys.argv[1], int(sys.argv[2]))
    for line in sys.stdin:
        words = line.split()
        if words[0] == "write":
            answer = writer.write(int(words[1]))
        elif words[0] == "check":
            answer = writer.check(power=len(words) > 1)
        else:
            answer = writer.cut(words[1])
        print(answer, flush=True)


if __name__ == "__main__":
    main()
