"""Requests and replies: data, errors of the spec, limits, and mutated requests that harm nobody else."""

from __future__ import annotations

import errno
import gc
import random
import resource
import time

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from nbd_lab import MIB, NbdLab

from innkeeper.fabric.nbd import protocol as p
from innkeeper.fabric.space import Limits

SIZE = 4 * MIB
READ, WRITE, FLUSH, TRIM, ZEROES = (
    p.Command.READ,
    p.Command.WRITE,
    p.Command.FLUSH,
    p.Command.TRIM,
    p.Command.WRITE_ZEROES,
)


@pytest.mark.parametrize("structured", [True, False])
def test_what_is_written_is_read_by_every_connection(lab: NbdLab, structured: bool) -> None:
    export = lab.disk(SIZE)
    with lab.connect(export, structured=structured) as one, lab.connect(export, structured=structured) as other:
        for offset, length in ((0, 4096), (8192, 65536), (100, 300), (4095, 2), (MIB - 1, 700_000), (SIZE - 512, 512)):
            data = random.Random(offset).randbytes(length)
            assert one.ask(WRITE, offset, data=data).error == 0
            assert other.ask(READ, offset, length).data == data
        assert one.ask(FLUSH).error == 0
        assert other.ask(WRITE, 0, data=b"f" * 4096, flags=p.CommandFlag.FUA).error == 0


OPERATION = st.tuples(
    st.sampled_from([WRITE, TRIM, ZEROES, READ, FLUSH]),
    st.integers(0, SIZE // 512),
    st.integers(1, 300),
    st.sampled_from([0, 0, int(p.CommandFlag.FUA)]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(OPERATION, min_size=1, max_size=24), min_size=1, max_size=5), st.integers(0, 1 << 32))
def test_a_pipeline_of_requests_has_the_effect_of_one_after_the_other(
    lab: NbdLab, pipelines: list[list[tuple[int, int, int, int]]], seed: int
) -> None:
    """Writes, trims and zeros sent at once on one connection take effect in their order; all are answered once."""
    model = bytearray(SIZE)
    chance = random.Random(seed)
    with lab.connect(lab.disk(SIZE)) as client:
        for pipeline in pipelines:
            waiting: dict[int, int] = {}
            for command, sector, sectors, flags in pipeline:
                offset, length = sector * 512, sectors * 512
                inside = offset + length <= SIZE
                data = chance.randbytes(length) if command == WRITE else b""
                if command == FLUSH:
                    waiting[client.send(FLUSH, flags=flags)] = 0
                    continue
                expected = 0 if inside else errno.ENOSPC if command in (WRITE, ZEROES) else errno.EINVAL
                waiting[client.send(command, offset, length, data, flags)] = expected
                if inside and command == WRITE:
                    model[offset : offset + length] = data
                elif inside and command == ZEROES:
                    model[offset : offset + length] = bytes(length)
                elif inside and command == TRIM:
                    first, last = -(-offset // 4096) * 4096, (offset + length) // 4096 * 4096
                    if first < last:
                        model[first:last] = bytes(last - first)
            while waiting:
                found = client.answer()
                assert found.error == waiting.pop(found.cookie)
        assert client.ask(READ, 0, SIZE).data == model


@pytest.mark.parametrize(
    ("command", "offset", "length", "flags", "expected"),
    [
        (READ, SIZE, 1, 0, errno.EINVAL),
        (READ, SIZE - 1, 2, 0, errno.EINVAL),
        (READ, 2**64 - 1, 1, 0, errno.EINVAL),
        (READ, 2**63, 4096, 0, errno.EINVAL),
        (READ, 0, 0, 0, errno.EINVAL),
        (READ, 0, p.MAX_REQUEST_BYTES + 1, 0, errno.EINVAL),
        (READ, 0, 2**32 - 1, 0, errno.EINVAL),
        (READ, 0, 512, p.CommandFlag.NO_HOLE, errno.EINVAL),
        (READ, 0, 512, 1 << 15, errno.EINVAL),
        (FLUSH, 1, 0, 0, errno.EINVAL),
        (FLUSH, 0, 1, 0, errno.EINVAL),
        (TRIM, SIZE, 4096, 0, errno.EINVAL),
        (TRIM, 0, 2**32 - 1, 0, errno.EINVAL),
        (TRIM, 0, 4096, p.CommandFlag.DF, errno.EINVAL),
        (ZEROES, SIZE, 4096, 0, errno.ENOSPC),
        (ZEROES, 0, 2**32 - 1, 0, errno.ENOSPC),
        (ZEROES, 0, 4096, p.CommandFlag.REQ_ONE, errno.EINVAL),
        (p.Command.BLOCK_STATUS, SIZE, 1, 0, errno.EINVAL),
        (p.Command.BLOCK_STATUS, 0, 0, 0, errno.EINVAL),
        (5, 0, 4096, 0, errno.EINVAL),
        (8, 0, 0, 0, errno.EINVAL),
        (65535, 2**64 - 1, 2**32 - 1, 0xFFFF, errno.EINVAL),
    ],
)
def test_a_wrong_request_gets_the_errno_of_the_spec(
    lab: NbdLab, command: int, offset: int, length: int, flags: int, expected: int
) -> None:
    with lab.connect(lab.disk(SIZE)) as client:
        cookie = client.send(command, offset, length, flags=flags)
        found = client.answer()
        assert (found.error, found.cookie) == (expected, cookie)
        assert client.ask(READ, 0, 4096).data == bytes(4096)


@pytest.mark.parametrize("length", [4096, 700_000])
def test_a_refused_write_is_taken_off_the_wire(lab: NbdLab, length: int) -> None:
    with lab.connect(lab.disk(SIZE)) as client:
        assert client.ask(WRITE, SIZE - 512, data=b"x" * length).error == errno.ENOSPC
        assert client.ask(WRITE, 2**63, data=b"x" * length).error == errno.ENOSPC
        assert client.ask(WRITE, 0, data=b"x" * length, flags=p.CommandFlag.DF).error == errno.EINVAL
        assert client.ask(READ, SIZE - 512, 512).data == bytes(512)


def test_a_write_beyond_the_maximum_ends_the_connection(lab: NbdLab) -> None:
    with lab.connect(lab.disk(64 * MIB)) as client:
        client.send(WRITE, 0, p.MAX_REQUEST_BYTES + 1)
        assert client.closed()


def test_the_longest_write_and_read(lab: NbdLab) -> None:
    data = random.Random(1).randbytes(MIB) * 32
    with lab.connect(lab.disk(33 * MIB)) as client:
        assert client.ask(WRITE, 5, data=data).error == 0
        assert client.ask(READ, 5, len(data)).data == data


def test_disc_ends_in_good_order(lab: NbdLab) -> None:
    export = lab.disk(SIZE)
    with lab.connect(export) as client:
        client.send(WRITE, 0, 4096, b"d" * 4096)
        client.send(p.Command.DISC)
        assert client.answer().error == 0
        assert client.closed()
    with lab.connect(export) as client:
        assert client.ask(READ, 0, 4096).data == b"d" * 4096


def test_block_status_tells_holes_from_data(lab: NbdLab) -> None:
    with lab.connect(lab.disk(SIZE)) as client:
        client.ask(WRITE, 65536, data=b"x" * 65536)
        found = client.ask(p.Command.BLOCK_STATUS, 0, SIZE).extents
        assert found == ((65536, 3), (65536, 0), (SIZE - 131072, 3))
        assert client.ask(p.Command.BLOCK_STATUS, 65536 + 4096, 8192).extents == ((8192, 0),)
        assert client.ask(p.Command.BLOCK_STATUS, 0, SIZE, flags=p.CommandFlag.REQ_ONE).extents == ((65536, 3),)
        lab.pool.drain()
        assert client.ask(p.Command.BLOCK_STATUS, 0, SIZE).extents == found


def test_a_full_pool_answers_enospc_and_still_trims(tmp_path_factory: pytest.TempPathFactory) -> None:
    small = {"log_bytes": 8 * MIB, "segment_bytes": 2 * MIB, "group_bytes": 4 * MIB}
    limits = Limits(**small, capacity_bytes=64 * MIB, headroom_bytes=8 * MIB)
    lab = NbdLab(tmp_path_factory.mktemp("full"), limits)
    chance = random.Random(2)
    try:
        with lab.connect(lab.disk(256 * MIB)) as client:
            written = 0
            while (found := client.ask(WRITE, written, data=chance.randbytes(MIB))).error == 0:
                written += MIB
                assert written <= 64 * MIB
            assert found.error == errno.ENOSPC
            assert written >= 8 * MIB
            assert client.ask(TRIM, 0, MIB).error == 0
            assert client.ask(FLUSH).error == 0
            assert client.ask(READ, 0, MIB).data == bytes(MIB)
            assert len(client.ask(READ, MIB, MIB).data) == MIB
    finally:
        lab.close()


def test_a_client_that_takes_no_answers_costs_a_bounded_amount_of_memory(lab: NbdLab) -> None:
    """Thousands of long reads asked for and not taken: the server stops listening to that client, serves the others."""
    export = lab.disk(64 * MIB)
    with lab.connect(export) as greedy, lab.connect(export) as modest:
        modest.ask(WRITE, 0, data=b"m" * MIB)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        greedy.sock.settimeout(0.5)
        request = b"".join(
            p.REQUEST.pack(p.REQUEST_MAGIC, 0, READ, cookie, 0, length)
            for cookie in range(9000)
            for length in (MIB, 32 * MIB)
        )
        with pytest.raises(TimeoutError):
            greedy.sock.sendall(request * 4)
        assert modest.ask(READ, 0, MIB).data == b"m" * MIB
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10) - before
        assert grown < 300, f"{grown} MiB more"


def test_an_answer_that_waits_is_whole_when_it_is_taken(lab: NbdLab) -> None:
    data = random.Random(3).randbytes(MIB)
    with lab.connect(lab.disk(64 * MIB)) as client:
        client.ask(WRITE, 0, data=data)
        # In one piece: a small message each would fill the socket's buffer, where the kernel counts its overhead.
        asked = (p.REQUEST.pack(p.REQUEST_MAGIC, 0, READ, at, at, 60_000) for at in range(250))
        client.sock.sendall(b"".join(asked))
        waiting = set(range(250))
        for _ in range(250):
            found = client.answer()
            assert found.data == data[found.cookie :][:60_000]
            waiting.remove(found.cookie)


def part_of_an_extent(view: memoryview) -> bool:
    try:
        return type(view.obj) is bytes and view.nbytes < len(view.obj) == 65536
    except ValueError:
        return False  # released


def test_short_answers_that_wait_are_whole_and_keep_no_long_extents(lab: NbdLab) -> None:
    """What a client does not take is kept by itself: 4 KiB of an extent must not keep its 64 KiB in memory."""
    chance = random.Random(4)
    data = b"".join(chance.randbytes(64) * 64 + bytes(60 << 10) for _ in range(16))
    with lab.connect(lab.disk(64 * MIB)) as client:
        client.ask(WRITE, 0, data=data)
        lab.pool.drain()
        for offset in range(0, MIB, 4096):
            assert client.ask(READ, offset, 4096).data == data[offset : offset + 4096]
        offsets = [chance.randrange(256) * 4096 for _ in range(1500)]
        asked = (p.REQUEST.pack(p.REQUEST_MAGIC, 0, READ, at, at, 4096) for at in offsets)
        client.sock.sendall(b"".join(asked))
        reads = -1
        while (now := sum(meter["reads"] for meter in lab.facts()["meters"].values())) > reads:
            reads = now
            time.sleep(0.3)
        assert 256 < reads < 256 + len(offsets), "some answers wait, and the server waits with the rest"
        assert not any(part_of_an_extent(each) for each in gc.get_objects() if type(each) is memoryview)
        for offset in offsets:
            found = client.answer()
            assert (found.cookie, found.data) == (offset, data[offset : offset + 4096])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.booleans())
def test_any_bytes_are_answered_or_end_the_connection(lab: NbdLab, noise: bytes, in_transmission: bool) -> None:
    export = lab.disk(MIB)
    with lab.connect(export if in_transmission else None) as client:
        client.sock.sendall(noise)
    with lab.connect(export) as other:
        assert other.ask(READ, 0, 4096).error == 0
