"""Sequential streams over the wire: past the log, answered when they are safe, and gone when their client goes."""

from __future__ import annotations

import os
import time

from nbd_lab import MIB, NbdLab, RawClient

from innkeeper.fabric.nbd import protocol as p

READ, WRITE, FLUSH, DISC = p.Command.READ, p.Command.WRITE, p.Command.FLUSH, p.Command.DISC
COUNT = 24


def streamed(client: RawClient, data: bytes, *, flags: int = 0) -> None:
    """Write ``data`` from the disk's start, several requests under way at once."""
    waiting = set()
    for offset in range(0, len(data), MIB):
        waiting.add(client.send(WRITE, offset, MIB, data[offset : offset + MIB], flags))
        while len(waiting) > 4:
            answer = client.answer()
            assert answer.error == 0
            waiting.remove(answer.cookie)
    while waiting:
        answer = client.answer()
        assert answer.error == 0
        waiting.remove(answer.cookie)


def test_a_stream_goes_past_the_log_and_reads_back(lab: NbdLab) -> None:
    data = os.urandom(COUNT * MIB)
    with lab.connect(lab.disk(64 * MIB)) as client:
        logged = lab.pool.log.used_bytes
        streamed(client, data)
        assert client.ask(FLUSH).error == 0
        assert lab.pool.log.used_bytes - logged < 4 * MIB
        assert lab.pool.bypass.in_flight() == []
        for drained in (False, True):
            if drained:
                lab.pool.drain()
            for offset in range(0, len(data), MIB):
                assert client.ask(READ, offset, MIB).data == data[offset : offset + MIB]
        part = os.urandom(4096)
        assert client.ask(WRITE, 5 * MIB + 4096, data=part).error == 0
        assert client.ask(READ, 5 * MIB, 3 * 4096).data == data[5 * MIB :][:4096] + part + data[5 * MIB + 8192 :][:4096]


def test_a_write_of_a_stream_with_fua_is_on_the_medium_when_it_is_answered(lab: NbdLab) -> None:
    with lab.connect(lab.disk(64 * MIB)) as client:
        streamed(client, os.urandom(6 * MIB))
        assert client.ask(WRITE, 6 * MIB, data=os.urandom(MIB), flags=p.CommandFlag.FUA).error == 0
        assert lab.pool.log.synced_upto == lab.pool.log.sequence
        assert not lab.pool.bypass._dirty


def test_a_client_that_goes_in_the_middle_leaves_nothing_in_flight(lab: NbdLab) -> None:
    with lab.connect(lab.disk(64 * MIB)) as client:
        for offset in range(0, COUNT * MIB, MIB):
            client.send(WRITE, offset, MIB, os.urandom(64 << 10) * 16)
    deadline = time.monotonic() + 20
    while (lab.facts() and lab.pool.bypass.in_flight()) and time.monotonic() < deadline:
        time.sleep(0.05)
    lab.pool.submit()
    assert lab.pool.bypass.in_flight() == []
    lab.pool.drain()
    assert lab.pool.check()["problems"] == []
