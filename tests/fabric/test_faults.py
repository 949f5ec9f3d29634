"""Every single I/O call fails once; recovery twice gives the same state; damage is named and never read as data."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from innkeeper.fabric.pool import Pool
from innkeeper.fabric.space import Limits
from innkeeper.model.problems import Conflict, Corrupt, Invalid, NoSpace, NotFound, Problem, Refused
from innkeeper.system.files import Io
from innkeeper.system.simulation import EIO, ENOSPC, SHORT, SimulatedFiles, simulated_io

LIMITS = Limits(log_bytes=1 << 20, segment_bytes=256 << 10, group_bytes=384 << 10, headroom_bytes=0)
PAGE = 4096
SIZE = 1 << 20


def name(number: int) -> str:
    return str(UUID(int=number, version=4))


STORAGE, DISK, WRITER, SNAPSHOT, CLONE, OTHER, HOLD, READER = (name(number) for number in range(1, 9))


_GHOSTS: list[Pool] = []


@pytest.fixture(autouse=True)
def _no_ghosts() -> Iterator[None]:
    """Pools of processes that have ended give their handles back now, not when memory is tidied up."""
    yield
    release_ghosts()


def release_ghosts() -> None:
    while _GHOSTS:
        with suppress(Problem):
            _GHOSTS.pop()._release()


def opened(io: Io, files: SimulatedFiles, limits: Limits = LIMITS) -> Pool:
    release_ghosts()
    pool = Pool.open(replace(io, files=files.process()), "/pool", limits=limits, background=False)
    _GHOSTS.append(pool)
    return pool


def page(value: int) -> bytes:
    return bytes([value]) * 8 * (PAGE // 8)


def prepared() -> tuple[Io, SimulatedFiles, Pool]:
    io, files = simulated_io(5)
    pool = opened(io, files)
    pool.storage_create(STORAGE)
    pool.disk_create(DISK, SIZE, STORAGE)
    pool.attach(WRITER, disk_id=DISK)
    return io, files, pool


def workload(pool: Pool, acknowledged: dict[int, int], flushed: dict[int, int]) -> None:
    """Write pages, each with a value that counts up; note what was acknowledged and what was flushed."""
    volume = pool.volume(WRITER)
    value = 1
    for turn in range(4):
        for number in (turn, turn + 1, 40 + turn, *range(64, 80)):
            volume.stage_write(number * PAGE, page(value))
            pool.submit()
            acknowledged[number] = value
            value += 1
        if turn % 2:
            pool.sync_blocking(pool.submit())
            flushed.update(acknowledged)
        if turn == 2:
            pool.drain()
            pool.snapshot_create({SNAPSHOT: DISK})
            flushed.update(acknowledged)


def count_calls() -> int:
    _, files, pool = prepared()
    before = files.calls
    workload(pool, {}, {})
    return files.calls - before


CALLS = count_calls()


@pytest.mark.parametrize("fault", [EIO, ENOSPC, SHORT])
@pytest.mark.parametrize("power", [False, True], ids=["kill", "power"])
def test_every_call_fails_once(fault: str, power: bool) -> None:
    """After call n failed, for every n: nothing acknowledged is lost by a kill, nothing flushed by a power cut."""
    fired = 0
    for number in range(1, CALLS + 1):
        io, files, pool = prepared()
        files.faults[files.calls + number] = fault
        acknowledged: dict[int, int] = {}
        flushed: dict[int, int] = {}
        refused = None
        try:
            workload(pool, acknowledged, flushed)
        except Problem as problem:
            refused = problem
        fired += len(files.fired)
        assert fault != SHORT or refused is None, "a short write must be carried on"
        files.faults.clear()
        if power:
            files.cut_power()
        else:
            files.end_process()
        pool = opened(io, files)
        least = flushed if power else acknowledged
        volume = pool.catalog.disk(DISK).open.view
        for index, value in least.items():
            seen = pool.reader.page(volume, index)[0]
            top = acknowledged[index] if refused is None else 255
            assert value <= seen <= top, f"call {number} {files.fired}: page {index} has {seen}, not {value}..{top}"
        pool.close()
    assert fired >= CALLS * 0.9


def test_recovering_twice_gives_the_same_state() -> None:
    for seed in range(12):
        io, files = simulated_io(seed)
        pool = opened(io, files)
        pool.storage_create(STORAGE)
        pool.disk_create(DISK, SIZE, STORAGE)
        pool.attach(WRITER, disk_id=DISK)
        workload(pool, {}, {})
        volume = pool.volume(WRITER)
        for number in range(100, 140):
            volume.stage_write(number * PAGE, page(number))
            pool.submit()
        files.cut_power()
        seen = []
        for power in (False, True, True):
            pool = opened(io, files)
            view = pool.catalog.disk(DISK).open.view
            seen.append([pool.reader.page(view, number)[0] for number in range(SIZE // PAGE)])
            if power:
                files.cut_power()
            else:
                files.end_process()
        assert seen[0] == seen[1] == seen[2]


def test_a_flush_after_a_failed_sync_is_rescued_or_refused() -> None:
    for keep in (True, False):
        io, files, pool = prepared()
        volume = pool.volume(WRITER)
        volume.stage_write(0, page(7))
        sequence = pool.submit()
        files.lose_pages_on_failed_sync = not keep
        files.faults[files.calls + 1] = EIO
        if keep:
            pool.sync_blocking(sequence)
            files.cut_power()
            again = opened(io, files)
            assert again.reader.page(again.catalog.disk(DISK).open.view, 0) == page(7)
        else:
            with pytest.raises(Problem) as lost:
                pool.sync_blocking(sequence)
            assert lost.value.code == "log.lost"
            files.end_process()
            again = opened(io, files)
            with pytest.raises(Problem) as gone:
                again.volume(WRITER).read_blocking(0, PAGE)
            assert gone.value.code == "disk.lost"
            again.detach(WRITER)
            again.attach(READER, disk_id=DISK)
            assert again.volume(READER).read_blocking(0, PAGE) in (bytes(PAGE), page(7))


def opened_after(io: Io, files: SimulatedFiles) -> Pool:
    files.end_process()
    return opened(io, files)


def drained() -> tuple[Io, SimulatedFiles, Pool]:
    io, files, pool = prepared()
    volume = pool.volume(WRITER)
    volume.stage_write(0, bytes(range(256)) * 256)
    volume.stage_write(20 * PAGE, page(9))
    pool.submit()
    pool.drain()
    return io, files, pool


def group_file(files: SimulatedFiles) -> str:
    return next(path for path in files.paths() if path.endswith(".grp"))


def test_a_flipped_bit_in_a_group_is_named_and_never_read() -> None:
    _, files, pool = drained()
    path = group_file(files)
    content = files.peek(path)
    at = content.index(page(9)[:64])
    files.damage(path, at + 5, b"\xff")
    with pytest.raises(Corrupt) as named:
        pool.volume(WRITER).read_blocking(20 * PAGE, PAGE)
    assert path in named.value.detail
    assert pool.volume(WRITER).read_nowait(20 * PAGE, PAGE) is None
    assert pool.volume(WRITER).read_blocking(0, PAGE) == bytes(range(256)) * 16
    report = pool.check()
    assert report["problem_count"] == 1
    assert path in report["problems"][0]


def test_a_damaged_synced_page_of_the_log_refuses_only_its_disk() -> None:
    io, files, pool = prepared()
    pool.disk_create(OTHER, SIZE, STORAGE)
    pool.attach(READER, disk_id=OTHER)
    pool.volume(READER).stage_write(0, page(3))
    pool.submit()
    pool.volume(WRITER).stage_write(0, page(4))
    pool.sync_blocking(pool.submit())
    pool.volume(READER).stage_write(PAGE, page(3))
    pool.sync_blocking(pool.submit())
    path = next(each for each in files.paths() if each.endswith(".seg") and page(4) in files.peek(each))
    files.damage(path, files.peek(path).index(page(4)), b"\0")
    files.end_process()
    pool = opened(io, files)
    assert pool.volume(READER).read_blocking(0, 2 * PAGE) == page(3) * 2
    with pytest.raises(Corrupt) as refused:
        pool.volume(WRITER)
    assert refused.value.code == "disk.damaged"


def test_a_lost_synced_batch_makes_the_pool_read_only() -> None:
    io, files, pool = prepared()
    for value in (3, 4, 5):
        pool.volume(WRITER).stage_write(0, page(value))
        pool.sync_blocking(pool.submit())
    path = next(each for each in files.paths() if each.endswith(".seg") and page(4) in files.peek(each))
    files.damage(path, files.peek(path).index(page(4)) - PAGE, bytes(64))
    files.end_process()
    pool = opened(io, files)
    assert pool.read_only
    with pytest.raises(Problem) as refused:
        pool.disk_create(OTHER, SIZE, STORAGE)
    assert refused.value.code == "pool.read_only"


def test_meta_rolled_back_is_refused() -> None:
    io, files, pool = prepared()
    pool.close()
    old = files.peek("/pool/meta.db")
    pool = opened_after(io, files)
    pool.volume(WRITER).stage_write(0, page(1))
    pool.drain()
    pool.close()
    files.damage("/pool/meta.db", 0, old)
    pool = opened_after(io, files)
    assert pool.read_only is not None
    assert "rolled back" in pool.read_only


def test_a_full_pool_refuses_writes_and_still_trims() -> None:
    io, files, _ = prepared()
    limits = replace(LIMITS, capacity_bytes=6 << 20, headroom_bytes=1 << 20)
    files.end_process()
    pool = opened(io, files, limits)
    pool.disk_create(OTHER, 64 << 20, STORAGE)
    pool.attach(READER, disk_id=OTHER)
    volume = pool.volume(READER)

    def fill() -> None:
        for index in range(16 * 64):
            volume.stage_write(index * 65536, files.random.randbytes(65536))
            pool.submit()
            pool.drain()

    with pytest.raises(NoSpace) as full:
        fill()
    assert full.value.code == "pool.full"
    assert pool.used_bytes() > 4 << 20
    volume.stage_trim(0, 64 << 20)
    pool.submit()
    pool.drain()
    assert pool.sweep()["freed_bytes"] > 0
    volume.stage_write(0, page(1))
    pool.submit()
    assert volume.read_blocking(0, PAGE) == page(1)


def test_two_pools_on_one_directory(tmp_path: Path) -> None:
    pool = Pool.open(Io(), str(tmp_path / "p"), background=False)
    with pytest.raises(Conflict) as locked:
        Pool.open(Io(), str(tmp_path / "p"), background=False)
    assert locked.value.code == "pool.locked"
    pool.close()
    Pool.open(Io(), str(tmp_path / "p"), background=False).close()


def test_bad_requests() -> None:
    _, _, pool = prepared()
    with pytest.raises(Conflict) as second:
        pool.attach(READER, disk_id=DISK)
    assert second.value.code == "disk.attached"
    for size in (0, 100, -512, (64 << 40) + 512):
        with pytest.raises(Invalid):
            pool.disk_create(OTHER, size, STORAGE)
    with pytest.raises(NotFound):
        pool.disk_clone(CLONE, SNAPSHOT)
    with pytest.raises(Conflict):
        pool.disk_rm(DISK)
    volume = pool.volume(WRITER)
    with pytest.raises(Invalid):
        volume.stage_write(SIZE - PAGE, bytes(2 * PAGE))
    pool.snapshot_create({SNAPSHOT: DISK})
    pool.hold(HOLD, SNAPSHOT)
    with pytest.raises(Conflict):
        pool.snapshot_rm(SNAPSHOT)
    pool.release(HOLD)
    pool.detach(WRITER)
    with pytest.raises(Refused) as fenced:
        volume.stage_write(0, page(1))
    assert fenced.value.code == "attachment.fenced"
    pool.attach(READER, snapshot_id=SNAPSHOT, role="reader")
    with pytest.raises(Refused):
        pool.volume(READER).stage_write(0, page(1))


def test_restarts_do_not_lengthen_the_log() -> None:
    """Each opening begins a segment; it takes one that nobody needs, and what is needed stays readable."""
    io, files, pool = prepared()
    for value in range(1, 12):
        pool.volume(WRITER).stage_write(0, page(value))
        pool.submit()
        if value % 2:
            pool.drain()
        files.end_process()
        pool = opened(io, files)
        assert pool.volume(WRITER).read_blocking(0, PAGE) == page(value)
    assert len(pool.log.segments) <= 4
    pool.close()
