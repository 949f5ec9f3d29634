"""Streams past the log: what goes that way, and that it is as safe there as in the log."""

from __future__ import annotations

from contextlib import suppress
from random import Random
from uuid import UUID

import pytest
from hypothesis import given, strategies as st

from innkeeper.fabric.layers import Layer, find
from innkeeper.fabric.layout import BLOCK, PAGE
from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.fabric.streams import NEAR_BYTES, STREAM_BYTES, Stream
from innkeeper.fabric.upkeep import IDLE_DRAIN_S
from innkeeper.model.problems import Failed, Problem, Refused
from innkeeper.system.files import Io
from innkeeper.system.simulation import EIO, ENOSPC, SimulatedFiles, simulated_io

LIMITS = Limits(log_bytes=1 << 20, segment_bytes=256 << 10, group_bytes=384 << 10, headroom_bytes=0)
STORAGE, DISK, OTHER, WRITER, AGAIN, SNAPSHOT = (str(UUID(int=number, version=4)) for number in range(1, 7))
SIZE = 64 * BLOCK


def block(value: int) -> bytes:
    """A block that tells its value, which no other's equals and which does not compress."""
    return value.to_bytes(4, "big") + Random(value).randbytes(BLOCK - 4)


class World:
    """A pool on a simulated machine with one disk, which processes and power cuts come and go over."""

    def __init__(self) -> None:
        self.io, self.files = simulated_io(7)
        self.pool = self.opened()
        self.pool.storage_create(STORAGE)
        self.pool.disk_create(DISK, SIZE, STORAGE)
        self.pool.attach(WRITER, disk_id=DISK)

    def opened(self) -> Pool:
        return Pool.open(Io(self.files.process(), self.io.clock, self.io.random, self.io.scheduler), "/pool",
                         limits=LIMITS, background=False)  # fmt: skip

    def stream(self, first: int, *values: int, attachment: str = WRITER) -> None:
        volume = self.pool.volume(attachment)
        data = b"".join(block(value) for value in values)
        volume.stage_stored(first * BLOCK, data, volume.store_blocks(first * BLOCK, data))
        self.pool.submit()

    def flush(self) -> None:
        self.pool.sync_blocking(self.pool.submit())

    def reopen(self, *, power: bool) -> None:
        if power:
            self.files.cut_power()
        else:
            self.files.end_process()
        with suppress(Problem):  # its handles are of no use any more
            self.pool._release()
        self.pool = self.opened()

    def value(self, number: int, attachment: str = WRITER) -> int:
        data = self.pool.volume(attachment).read_blocking(number * BLOCK, BLOCK)
        value = int.from_bytes(data[:4], "big")
        assert data == (block(value) if value else bytes(BLOCK))
        return value

    def values(self, first: int, count: int) -> list[int]:
        return [self.value(number) for number in range(first, first + count)]


@pytest.fixture
def world() -> World:
    return World()


# -- which writes are a stream ---------------------------------------------------------------------------------------


def taken(*writes: tuple[int, int]) -> list[bool]:
    stream = Stream()
    return [stream.takes(offset, length) for offset, length in writes]


def test_a_run_of_long_writes_is_a_stream_from_one_and_a_half_mebibytes_on() -> None:
    step = BLOCK * 8
    assert taken(*((index * step, step) for index in range(6))) == [False] * 4 + [True] * 2
    assert 3 * step == STREAM_BYTES


def test_one_large_write_is_none_nor_are_scattered_or_repeated_ones() -> None:
    whole = 32 << 20
    assert taken((0, whole)) == [False]
    assert taken((0, whole), (2 * whole, whole), (0, whole)) == [False] * 3
    assert not any(taken(*((0, BLOCK) for _ in range(100))))
    assert not any(taken(*((index * 4096, 4096) for index in range(2000))))


def test_a_flush_ends_a_stream() -> None:
    stream = Stream()
    for index in range(400):
        assert not stream.takes(index * BLOCK, BLOCK)
        stream.flushed()


@given(st.permutations(range(12)))
def test_queues_may_come_out_of_order(order: list[int]) -> None:
    stream = Stream()
    step = NEAR_BYTES // 12
    assert stream.takes(0, STREAM_BYTES + BLOCK) is False
    base = STREAM_BYTES + BLOCK
    assert all(stream.takes(base + index * step, max(step, BLOCK)) for index in order)


# -- layers ----------------------------------------------------------------------------------------------------------


operations = st.lists(
    st.tuples(st.sampled_from(["put", "blocks", "zero"]), st.integers(0, 90), st.integers(1, 60)), max_size=30
)


@given(operations)
def test_a_layer_says_of_each_page_what_was_written_last(steps: list[tuple[str, int, int]]) -> None:
    layer, model = Layer(1, 0, None), {}
    for number, (kind, page, count) in enumerate(steps, 1):
        if kind == "put":
            layer.put(page, number << 10, [7] * count)
            model.update({page + index: ((number << 10) + index) << 32 | 7 for index in range(count)})
        elif kind == "zero":
            layer.zero(page, count)
            model.update(dict.fromkeys(range(page, page + count), 0))
        else:
            first, blocks = page // 16, 1 + count // 16
            layer.put_blocks(first, [number] * blocks, [number])
            model.update(dict.fromkeys(range(first * 16, (first + blocks) * 16), -number))
    assert {page: find((layer,), page) for page in range(200) if find((layer,), page) is not None} == model


# -- safety ----------------------------------------------------------------------------------------------------------


def test_what_was_accepted_survives_the_process_and_what_was_flushed_a_power_cut(world: World) -> None:
    logged = world.pool.log.used_bytes
    world.stream(0, 1, 2, 3)
    assert world.pool.log.used_bytes - logged == PAGE
    world.reopen(power=False)
    assert world.values(0, 4) == [1, 2, 3, 0]
    world.stream(3, 4)
    world.flush()
    world.reopen(power=True)
    assert world.values(0, 5) == [1, 2, 3, 4, 0]
    world.pool.drain()
    world.reopen(power=True)
    assert world.values(0, 5) == [1, 2, 3, 4, 0]
    assert world.pool.check()["problems"] == []


def test_a_write_with_edges_and_zeros_is_whole(world: World) -> None:
    volume = world.pool.volume(WRITER)
    volume.stage_write(0, block(9) * 6)
    world.pool.submit()
    data = block(1)[512:] + block(2) + bytes(BLOCK) + block(3)[: PAGE + 512]
    volume.stage_stored(512, data, volume.store_blocks(512, data))
    world.pool.submit()
    wanted = bytearray(block(9) * 6)
    wanted[512 : 512 + len(data)] = data
    for power in (False, True):
        assert volume.read_blocking(0, len(wanted)) == bytes(wanted)
        world.flush()
        world.reopen(power=power)
        volume = world.pool.volume(WRITER)
    world.pool.drain()
    assert volume.read_blocking(0, len(wanted)) == bytes(wanted)


def test_newer_writes_win_over_a_stream_and_a_snapshot_keeps_it(world: World) -> None:
    world.stream(0, 1, 2, 3, 4)
    world.pool.snapshot_create({SNAPSHOT: DISK})
    volume = world.pool.volume(WRITER)
    volume.stage_write(PAGE, b"n" * PAGE)
    volume.stage_trim(BLOCK, 2 * BLOCK)
    world.pool.submit()
    world.stream(3, 5)
    world.pool.attach(AGAIN, snapshot_id=SNAPSHOT, role="reader")
    for step in ("as it is", "reopened", "drained"):
        if step == "reopened":
            world.reopen(power=False)
        elif step == "drained":
            world.pool.drain()
        assert world.pool.volume(WRITER).read_blocking(0, 4 * BLOCK) == b"".join(
            (block(1)[:PAGE], b"n" * PAGE, block(1)[2 * PAGE :], bytes(2 * BLOCK), block(5))
        )
        assert [world.value(number, AGAIN) for number in range(4)] == [1, 2, 3, 4]
        changed = world.pool.changed_blocks(SNAPSHOT)
        assert [entry[:2] for entry in changed["blocks"]] == [[number, "extent"] for number in range(4)]


def test_a_group_whose_sync_fails_is_written_anew(world: World) -> None:
    world.stream(0, 1, 2, 3)
    fail_next(world.files, "fdatasync /pool/groups/")
    world.flush()
    assert world.files.fired[-1][1] == EIO
    world.reopen(power=True)
    assert world.values(0, 3) == [1, 2, 3]


def test_where_that_fails_too_no_flush_is_acknowledged(world: World) -> None:
    world.stream(0, 1, 2, 3)
    world.files.lose_pages_on_failed_sync = True
    fail_next(world.files, "fdatasync /pool/groups/")
    with pytest.raises(Failed) as lost:
        world.flush()
    assert lost.value.code == "log.lost"
    with pytest.raises(Failed):
        world.flush()
    world.reopen(power=False)
    with pytest.raises(Failed) as gone:
        world.pool.volume(WRITER).read_blocking(0, PAGE)
    assert gone.value.code == "disk.lost"


def fail_next(files: SimulatedFiles, what: str) -> None:
    """The next call that is named so fails."""
    count = files.count

    def counted(name: str) -> str | None:
        if name.startswith(what):
            files.faults[files.calls + 1] = EIO
            files.count = count  # type: ignore[method-assign]
        return count(name)

    files.count = counted  # type: ignore[method-assign]


def test_where_groups_have_no_room_the_log_takes_it(world: World) -> None:
    volume = world.pool.volume(WRITER)
    world.files.faults[world.files.calls + 1] = ENOSPC
    data = block(1) + block(2)
    stored = volume.store_blocks(0, data)
    assert world.files.fired
    assert stored is None
    volume.stage_stored(0, data, stored)
    world.pool.submit()
    world.reopen(power=False)
    assert world.values(0, 2) == [1, 2]


def test_a_younger_writer_ends_a_stream(world: World) -> None:
    volume = world.pool.volume(WRITER)
    stored = volume.store_blocks(0, block(1))
    world.pool.detach(WRITER)
    world.pool.attach(AGAIN, disk_id=DISK)
    with pytest.raises(Refused) as fenced:
        volume.stage_stored(0, block(1), stored)
    assert fenced.value.code == "attachment.fenced"
    assert world.pool.bypass.in_flight() == []
    assert world.value(0, AGAIN) == 0


# -- space -----------------------------------------------------------------------------------------------------------


def test_equal_blocks_are_stored_once_and_no_sweep_takes_what_is_in_flight(world: World) -> None:
    world.stream(0, *range(1, 17))
    world.pool.drain()
    world.stream(0, *([99] * 16))
    world.pool.drain()  # 1 to 16 are dead now, and still to be found
    volume = world.pool.volume(WRITER)
    data = block(3) + block(5)
    stored = volume.store_blocks(20 * BLOCK, data)
    assert world.pool.sweep(compact_below=1.0)["groups_compacted"] > 0
    volume.stage_stored(20 * BLOCK, data, stored)
    world.pool.submit()
    assert world.values(20, 2) == [3, 5]
    world.reopen(power=False)
    assert world.values(20, 2) == [3, 5]
    world.pool.drain()
    assert world.values(20, 2) == [3, 5]
    assert world.pool.figures()["distinct_bytes"] == 3 * BLOCK


def test_what_no_write_names_is_swept(world: World) -> None:
    volume = world.pool.volume(WRITER)
    volume.give_up(volume.store_blocks(0, b"".join(block(value) for value in range(1, 9))))
    world.stream(0, 50)
    world.pool.drain()
    world.pool.sweep(compact_below=1.0)
    world.pool.drain()
    assert world.pool.figures()["distinct_bytes"] == BLOCK
    assert world.pool.bypass.in_flight() == []


def test_a_group_that_only_overwritten_records_name_stays_while_a_recovery_needs_them(world: World) -> None:
    world.pool.disk_create(OTHER, SIZE, STORAGE)
    world.pool.attach(AGAIN, disk_id=OTHER)
    world.stream(0, *range(1, 40))
    world.stream(0, *range(41, 80))
    world.stream(0, *([7] * 39), attachment=AGAIN)
    world.pool.drain([OTHER])  # meta knows all groups now; those with 1 to 39 are dead
    world.pool.sweep(compact_below=1.0)
    assert not world.pool.sweep_is_due(), "there is nothing to be had before something is drained"
    world.reopen(power=False)
    assert world.values(0, 39) == list(range(41, 80))
    world.pool.sweep(compact_below=1.0)
    world.pool.drain()
    world.io.clock.sleep(IDLE_DRAIN_S + 1)
    assert world.pool.sweep_is_due()
    assert world.pool.sweep(compact_below=1.0)["groups_removed"] > 0
    assert not world.pool.sweep_is_due()


@pytest.mark.parametrize("restarted", [False, True])
def test_what_a_stream_left_is_swept_though_nothing_is_drained_any_more(world: World, restarted: bool) -> None:
    world.stream(0, *range(1, 40))
    world.flush()
    if restarted:
        world.reopen(power=False)
    world.pool.detach(WRITER)
    world.pool.disk_rm(DISK)
    assert world.pool.sweep()["groups_removed"] > 3
    world.reopen(power=True)
    assert world.pool.figures()["distinct_bytes"] == 0


@pytest.mark.parametrize("begins", [False, True])
def test_a_sweep_ends_for_who_begins_to_hold_and_is_followed_by_another(
    world: World, begins: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.pool.snapshot_create({SNAPSHOT: DISK})
    if not begins:
        world.pool.hold(AGAIN, SNAPSHOT)
    world.stream(0, *range(1, 40))
    world.stream(0, *range(41, 80))
    world.pool.drain()
    with monkeypatch.context() as patched:
        change = world.pool.hold if begins else lambda hold_id, _: world.pool.release(hold_id)
        patched.setattr(world.pool, "sync_blocking", lambda _: change(AGAIN, SNAPSHOT))
        assert bool(world.pool.sweep()["groups_removed"]) is not begins
    assert world.pool.sweep_is_due() is begins
    assert bool(world.pool.sweep()["groups_removed"]) is begins


def test_what_was_held_is_swept_once_it_is_released(world: World) -> None:
    world.stream(0, *range(1, 40))
    world.pool.snapshot_create({SNAPSHOT: DISK})
    world.pool.drain()
    world.pool.hold(AGAIN, SNAPSHOT)
    world.stream(0, *range(41, 80))
    world.pool.drain()
    assert world.pool.sweep()["groups_removed"] == 0
    world.pool.release(AGAIN)
    world.pool.snapshot_rm(SNAPSHOT)
    assert world.pool.sweep_is_due()
    assert world.pool.sweep()["groups_removed"] > 0
