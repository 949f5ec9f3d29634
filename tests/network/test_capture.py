"""Captures: filters, the pcap format, and frames of a real port."""

from __future__ import annotations

import asyncio
import shutil
import struct
import subprocess
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, strategies as st
from switch_lab import Guest, Lab
from switch_world import port_of

from innkeeper.model.problems import Invalid, NotFound
from innkeeper.network.capture import Limits, compile_filter, parse_program, pcap_header, pcap_record


def read(pcap: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(seconds, length on the wire, frame) of each record."""
    assert pcap[:24] == pcap_header()
    offset = 24
    while offset < len(pcap):
        seconds, _, held, length = struct.unpack_from("<IIII", pcap, offset)
        yield seconds, length, pcap[offset + 16 : offset + 16 + held]
        offset += 16 + held


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**9 - 1), st.binary(max_size=100))))
def test_what_is_written_is_read_back(frames: list[tuple[int, int, bytes]]) -> None:
    written = b"".join(pcap_record(seconds, nano, frame, len(frame) + 5) for seconds, nano, frame in frames)
    assert list(read(pcap_header() + written)) == [(seconds, len(frame) + 5, frame) for seconds, _, frame in frames]


def test_a_program_is_read() -> None:
    assert parse_program("2\n40 0 0 12\n6 0 0 262144\n") == [(40, 0, 0, 12), (6, 0, 0, 262144)]
    assert compile_filter("  ") == []


@pytest.mark.root
@pytest.mark.parametrize("text", ["tcp port", "bogus words", "port 80; reboot", "-w /tmp/file"])
def test_what_is_no_filter_is_refused_with_what_tcpdump_says(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        compile_filter(text)
    assert (refused.value.code, bool(refused.value.cause)) == ("capture.filter", True)


async def _all(lab: Lab, guest: Guest, text: str, limits: Limits, *sent: tuple[Guest, bytes]) -> bytes:
    capture = await lab.runner.capture(guest.port.tap, text, limits)
    pieces = []
    async for piece in capture:
        if not pieces:
            for sender, frame in sent:
                sender.send(frame)
        pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.root
def test_the_frames_of_a_filter_are_captured_in_both_directions(lab: Lab) -> None:
    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    frames = [(one, lab.honest(one, two, b"out")), (two, lab.honest(two, one, b"in"))]
    other = [(one, lab.honest(one, two, b"another port").replace(struct.pack("!H", 4000), struct.pack("!H", 4001), 1))]
    pcap = lab.do(_all(lab, one, "udp src port 4000", Limits(0.6, 1 << 20), *frames, *other))
    found = list(read(pcap))
    shown = [frame.rstrip(b"\0") for _, _, frame in found]  # what passed the bridge has lost its padding
    assert shown == [frame.rstrip(b"\0") for _, frame in frames]
    assert all(abs(seconds - time.time()) < 60 for seconds, _, _ in found)
    if shutil.which("tcpdump"):
        printed = subprocess.run(["tcpdump", "-nr", "-"], input=pcap, capture_output=True, check=True).stdout.decode()
        assert "10.66.0.11.4000 > 10.66.0.12.4000: UDP, length 3" in printed


@pytest.mark.root
def test_a_capture_ends_when_it_is_full_closed_or_its_port_goes(lab: Lab) -> None:
    one, two = lab.plug(port_of(1)), lab.plug(port_of(2))
    frame = lab.honest(one, two, bytes(400))
    full = lab.do(_all(lab, one, "udp", Limits(60.0, 1000), *[(one, frame)] * 20))
    assert 1000 <= len(full) - 24 < 1000 + 16 + len(frame)

    counted = lab.do(_all(lab, one, "udp", Limits(60.0, 1 << 20, 3), *[(one, frame)] * 20))
    assert len(list(read(counted))) == 3

    async def closed() -> int:
        capture = await lab.runner.capture(one.port.tap, "", Limits(60.0, 1 << 20))
        pieces = 0
        async for _ in capture:
            pieces += 1
            capture.close()
        return pieces

    async def gone() -> int:
        capture = await lab.runner.capture(two.port.tap, "udp", Limits(60.0, 1 << 20))
        pieces = 0
        async for _ in capture:
            pieces += 1
            await lab.runner.remove_port(two.port.tap)
            await asyncio.sleep(0)
        return pieces

    async def closed_while_it_waits() -> bool:
        capture = await lab.runner.capture(one.port.tap, "udp", Limits(60.0, 1 << 20))
        asyncio.get_running_loop().call_later(0.05, capture.close)
        pieces = [piece async for piece in capture]
        return capture.closed and pieces[1:] in ([], [b""])

    assert lab.do(closed()) == 1
    assert lab.do(closed_while_it_waits())
    assert lab.do(gone()) <= 2
    with pytest.raises(NotFound):
        lab.do(lab.runner.capture(two.port.tap, "", Limits(1.0, 1024)))
