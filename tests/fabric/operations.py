"""Operations by name to do with a ``script.Stage``, each with what it makes of the model.

The same ones are recorded and cut short at every call (``test_recorded``), and run with every call failing once
(``test_failing``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from script import (
    ANOTHER,
    BLOCK_PAGES,
    CLONE,
    DEVICE,
    DISK,
    FRESH,
    HELD,
    NEW,
    NEW_SECOND,
    OLD,
    OTHER_STORAGE,
    PAGE,
    SECOND,
    SIZE,
    STORAGE,
    ZERO,
    Content,
    Model,
    Stage,
    value,
)

from innkeeper.fabric.devices import HOME
from innkeeper.fabric.tiering import Move


@dataclass(frozen=True)
class Operation:
    """``act`` does it to the stage's pool; it is given the model to change, which counts when it has returned.

    ``data``: a request of a guest; one that fails may leave each page old or new, others happen as a whole or not.
    """

    name: str
    act: Callable[[Stage, Model], None]
    data: bool = False


def _write_page(stage: Stage, model: Model) -> None:
    stage.write(model, DISK, {3: stage.fresh_value()})
    stage.open_pool.submit()


def _write_block(stage: Stage, model: Model) -> None:
    data = [stage.fresh_value() for _ in range(BLOCK_PAGES)]
    stage.open_pool.volume(stage.writer(DISK)).stage_write(16 * PAGE, b"".join(data))
    stage.open_pool.submit()
    for index, each in enumerate(data):
        model.disks[DISK].put(16 + index, each)


def _write_equal(stage: Stage, model: Model) -> None:
    """What another disk has had for long."""
    data = [model.disks[SECOND].now(number) for number in range(BLOCK_PAGES)]
    stage.open_pool.volume(stage.writer(DISK)).stage_write(64 * PAGE, b"".join(data))
    stage.open_pool.submit()
    for index, each in enumerate(data):
        model.disks[DISK].put(64 + index, each)


def _write_many(stage: Stage, model: Model) -> None:
    """Requests to two disks in one batch."""
    stage.write(model, DISK, {number: stage.fresh_value() for number in (7, 60, 300)})
    stage.write(model, SECOND, {number: stage.fresh_value() for number in (1, 30)})
    stage.open_pool.submit()


def _write_part(stage: Stage, model: Model) -> None:
    """Two sectors within a page."""
    data = stage.fresh_value()[:1024]
    stage.open_pool.volume(stage.writer(DISK)).stage_write(5 * PAGE + 512, data)
    stage.open_pool.submit()
    old = model.disks[DISK].now(5)
    model.disks[DISK].put(5, old[:512] + data + old[1536:])


def _write_long(stage: Stage, model: Model) -> None:
    """More than a segment of the log holds."""
    data = [stage.fresh_value() for _ in range(40)]
    stage.open_pool.volume(stage.writer(SECOND)).stage_write(64 * PAGE, b"".join(data))
    stage.open_pool.submit()
    for index, each in enumerate(data):
        model.disks[SECOND].put(64 + index, each)


def _stream(stage: Stage, model: Model) -> None:
    """Blocks that go past the log, among them one that is stored already."""
    pages = [stage.fresh_value() for _ in range(2 * BLOCK_PAGES)]
    pages += [model.disks[SECOND].now(number) for number in range(BLOCK_PAGES)] if SECOND in model.disks else []
    data = b"".join(pages)
    first = 208 if model.disks[DISK].size >= 208 * PAGE + len(data) else 48
    volume = stage.open_pool.volume(stage.writer(DISK))
    volume.stage_stored(first * PAGE, data, volume.store_blocks(first * PAGE, data))
    stage.open_pool.submit()
    for index, each in enumerate(pages):
        model.disks[DISK].put(first + index, each)


def _zero(stage: Stage, model: Model) -> None:
    stage.open_pool.volume(stage.writer(DISK)).stage_zero(0, 20 * PAGE)
    stage.open_pool.submit()
    for number in range(20):
        model.disks[DISK].put(number, ZERO)


def _trim(stage: Stage, model: Model) -> None:
    stage.open_pool.volume(stage.writer(DISK)).stage_trim(8 * PAGE, 120 * PAGE)
    stage.open_pool.submit()
    for number in range(8, 128):
        if number in model.disks[DISK].pages:
            model.disks[DISK].put(number, ZERO)


def _flush(stage: Stage, model: Model) -> None:
    stage.open_pool.sync_blocking(stage.open_pool.submit())
    model.flush()


def _snapshot(stage: Stage, model: Model) -> None:
    wanted = {NEW: DISK, NEW_SECOND: SECOND}
    wanted = {each: disk for each, disk in wanted.items() if each not in model.snapshots and disk in model.disks}
    stage.open_pool.snapshot_create(wanted)
    model.flush()
    for each, disk in wanted.items():
        model.snapshots[each] = model.disks[disk].frozen()


def _clone(stage: Stage, model: Model) -> None:
    if OLD in model.snapshots and CLONE not in model.disks:
        stage.open_pool.disk_clone(CLONE, OLD)
        model.disks[CLONE] = model.snapshots[OLD].frozen()
        stage.attach_anew(CLONE)


def _revert(stage: Stage, model: Model) -> None:
    if OLD in model.snapshots:
        stage.detached(DISK, lambda: stage.open_pool.disk_revert(DISK, OLD))
        model.disks[DISK] = model.snapshots[OLD].frozen()


def _grow(stage: Stage, model: Model) -> None:
    stage.open_pool.disk_resize(DISK, SIZE + 65536)
    model.disks[DISK].size = SIZE + 65536
    model.flush()


def _shrink(stage: Stage, model: Model) -> None:
    size = 100 * PAGE + 512
    stage.detached(DISK, lambda: stage.open_pool.disk_resize(DISK, size))
    model.disks[DISK].cut(size)
    model.flush()


def _regrow(stage: Stage, model: Model) -> None:
    """What was cut off must not come back."""
    if model.disks[DISK].size < SIZE:
        stage.open_pool.disk_resize(DISK, SIZE)
        model.disks[DISK].size = SIZE
        model.flush()
    else:
        _shrink(stage, model)


def _create(stage: Stage, model: Model) -> None:
    if FRESH not in model.disks:
        stage.open_pool.disk_create(FRESH, SIZE, OTHER_STORAGE)
        model.disks[FRESH] = Content(SIZE)
        stage.attach_anew(FRESH)


def _remove_disk(stage: Stage, model: Model) -> None:
    if SECOND in model.disks:
        stage.open_pool.detach(stage.writer(SECOND))
        stage.open_pool.disk_rm(SECOND)
        del model.disks[SECOND]


def _remove_snapshot(stage: Stage, model: Model) -> None:
    stage.open_pool.release(HELD)
    stage.open_pool.snapshot_rm(OLD)
    model.snapshots.pop(OLD, None)


def _storage_set(stage: Stage, model: Model) -> None:
    stage.open_pool.storage_set(STORAGE, compression="zstd", level=1)
    model.storages[STORAGE] = "zstd"


def _curate(stage: Stage, model: Model) -> None:
    """A storage's policy changes, and what is stored follows."""
    _storage_set(stage, model)
    pool = stage.open_pool
    pool.writers.abandon()  # what is open is left alone
    pool.curate_plan()
    while pool._to_recode:
        pool.curate_next()


def _disk_set(stage: Stage, model: Model) -> None:
    stage.open_pool.disk_set(DISK, OTHER_STORAGE, tier="slow")


def _sweep(stage: Stage, model: Model) -> None:
    stage.open_pool.writers.abandon()
    stage.open_pool.sweep(1.0)


def _sweep_meanwhile(stage: Stage, model: Model) -> None:
    """What is dead is written again while a sweep is at work."""
    pool = stage.open_pool
    pool.writers.abandon()
    rests = iter((True,))

    def rest(_: float) -> None:
        if next(rests, False):
            first = 128 if model.disks[DISK].size >= 192 * PAGE else 32
            stage.write(model, DISK, {number: value(1003 + number) for number in range(first, first + 64)})
            pool.submit()
            pool.drain()

    stage.clock.sleep = rest  # type: ignore[method-assign]
    try:
        pool.sweep(1.0, gentle=True)
    finally:
        del stage.clock.sleep


def _scrub(stage: Stage, model: Model) -> None:
    stage.open_pool.scrub()


def _check(stage: Stage, model: Model) -> None:
    stage.open_pool.check(repair=True)


def _device_add(stage: Stage, model: Model) -> None:
    stage.open_pool.device_add(ANOTHER, "/devices/two", "slow")


def _device_rm(stage: Stage, model: Model) -> None:
    if DEVICE in stage.open_pool.devices.all:
        stage.open_pool.device_rm(DEVICE)
        stage.open_pool.tier()


def _shuffle(stage: Stage, model: Model) -> None:
    """Every group goes to the other device."""
    pool = stage.open_pool
    for number, row in sorted(pool.store.rows.items()):
        device = DEVICE if row.device == HOME and DEVICE in pool.devices.all else HOME
        pool.writers.leave(row.device)
        pool._moves = [Move(number, device)]
        pool._move_next()


def _hold(stage: Stage, model: Model) -> None:
    if OLD in model.snapshots:
        stage.open_pool.hold(HELD, OLD)


def _reopen(stage: Stage, model: Model) -> None:
    """An end in order."""
    stage.open_pool.close()
    model.flush()
    stage.files.end_process()
    stage.open()


def _restart(stage: Stage, model: Model) -> None:
    """The process is killed and comes back."""
    stage.end(power=False)
    stage.open()


OPERATIONS = {
    each.name: each
    for each in (
        Operation("write_page", _write_page, True),
        Operation("write_block", _write_block, True),
        Operation("write_equal", _write_equal, True),
        Operation("write_many", _write_many, True),
        Operation("write_part", _write_part, True),
        Operation("write_long", _write_long, True),
        Operation("stream", _stream, True),
        Operation("zero", _zero, True),
        Operation("trim", _trim, True),
        Operation("flush", _flush),
        Operation("snapshot", _snapshot),
        Operation("clone", _clone),
        Operation("revert", _revert),
        Operation("grow", _grow),
        Operation("shrink", _shrink),
        Operation("regrow", _regrow),
        Operation("create", _create),
        Operation("remove_disk", _remove_disk),
        Operation("remove_snapshot", _remove_snapshot),
        Operation("storage_set", _storage_set),
        Operation("curate", _curate),
        Operation("disk_set", _disk_set),
        Operation("drain", lambda stage, model: stage.open_pool.drain() and None),
        Operation("drain_oldest", lambda stage, model: stage.open_pool.drain_oldest() and None),
        Operation("sweep", _sweep),
        Operation("sweep_meanwhile", _sweep_meanwhile, True),
        Operation("scrub", _scrub),
        Operation("check", _check),
        Operation("device_add", _device_add),
        Operation("device_rm", _device_rm),
        Operation("shuffle", _shuffle),
        Operation("hold", _hold),
        Operation("reopen", _reopen),
        Operation("restart", _restart),
    )
}


IMPOSSIBLE = {
    *((cut, each) for cut in ("shrink", "regrow") for each in ("stream", "sweep_meanwhile", "trim", "write_many")),
    *(("remove_disk", each) for each in ("write_equal", "write_long", "write_many")),
}
"""Pairs of which the second reaches where a disk that was cut ends no more, or a disk that is gone."""


def use(stage: Stage) -> None:
    """The pool is of use: it takes, stores, sweeps, verifies and gives back what is written."""
    pool, model = stage.open_pool, stage.model
    for disk_id in sorted(model.disks):
        stage.attach_anew(disk_id)
    stage.write(model, DISK, {number: stage.fresh_value() for number in (2, 55)})
    _flush(stage, model)
    pool.drain()
    pool.sweep(1.0)
    problems = pool.check(repair=True)["problems"]
    assert not problems, problems
    wrong = model.wrong_with(pool, power=False)
    assert wrong is None, wrong
