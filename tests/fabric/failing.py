"""Scenarios in which one I/O call fails, or all from one on, at every call in turn.

The operation that meets the failure may be refused. What holds afterwards: nothing that was answered is lost; a flush
that is answered after it holds through a power cut; the pool opens again, is as before the operation or as after it,
and is of use. "lost pages": a failed fdatasync throws away what it could not write.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

from operations import OPERATIONS, use
from script import Model, Stage, new_stage

from innkeeper.model.problems import Problem
from innkeeper.system.simulation import EIO, ENOSPC, SHORT

LOST_PAGES = "eio, lost pages"
ALL_FAIL = "eio from then on"
FULL = "enospc from then on"
KINDS = (EIO, ENOSPC, SHORT, LOST_PAGES, ALL_FAIL, FULL)
SCENARIOS: tuple[tuple[str, ...], ...] = (
    *((name,) for name in OPERATIONS),
    ("write_page", "flush"),
    ("write_long", "flush"),
    ("stream", "flush"),
    ("stream", "drain"),
    ("stream", "sweep"),
    ("write_many", "drain"),
    ("write_block", "drain_oldest"),
    ("write_equal", "drain"),
    ("zero", "drain"),
    ("trim", "drain"),
    ("trim", "sweep"),
    ("drain", "sweep"),
    ("drain", "shuffle"),
    ("write_page", "snapshot"),
    ("snapshot", "drain"),
    ("snapshot", "clone"),
    ("snapshot", "remove_disk"),
    ("snapshot", "revert"),
    ("write_page", "restart"),
    ("snapshot", "restart"),
    ("write_long", "reopen"),
    ("regrow", "regrow"),
    ("grow", "drain"),
    ("clone", "drain"),
    ("remove_snapshot", "sweep"),
    ("device_add", "device_rm"),
    ("shuffle", "device_rm"),
    ("drain", "curate"),
    ("disk_set", "curate"),
    ("curate", "shuffle"),
    ("hold", "sweep"),
    ("create", "restart"),
)


@dataclass
class Outcome:
    fired: int
    flushes: int
    """Flushes that were answered after the failure."""
    refused: int


def calls_of(scenario: tuple[str, ...]) -> int:
    """How many calls can fail in it."""
    stage = new_stage()
    stage.open()
    before = stage.files.calls
    for name in scenario:
        OPERATIONS[name].act(stage, stage.model)
    calls = stage.files.calls - before
    stage.end(power=False)
    return calls


def _arm(stage: Stage, number: int, kind: str) -> None:
    files = stage.files
    at = files.calls + number
    if kind == ALL_FAIL:
        files.failing_from = at, EIO
    elif kind == FULL:
        files.failing_from = at, ENOSPC
    else:
        files.faults[at] = EIO if kind == LOST_PAGES else kind
    files.lose_pages_on_failed_sync = kind in (LOST_PAGES, ALL_FAIL)


def _run(stage: Stage, scenario: tuple[str, ...]) -> tuple[list[Model], bool]:
    """(what the pool may be like, whether something was refused)."""
    for index, name in enumerate(scenario):
        before, after = stage.model.copy(), stage.model.copy()
        operation = OPERATIONS[name]
        try:
            operation.act(stage, after)
        except Problem:
            if operation.data:
                return [before.or_else(_meant(scenario, index))], True
            return [before, _meant(scenario, index).copy()], True
        stage.model = after
    return [stage.model], False


@cache
def _meant(scenario: tuple[str, ...], index: int) -> Model:
    """What the operation that failed was to make of the model: as on a stage where nothing fails."""
    stage = new_stage()
    stage.open()
    for name in scenario[: index + 1]:
        OPERATIONS[name].act(stage, stage.model)
    stage.end(power=False)
    return stage.model


def inject(scenario: tuple[str, ...], number: int, kind: str, *, power: bool) -> Outcome:
    """Let call ``number`` of the scenario fail. Fails where something is lost."""
    stage = new_stage(seed=number)
    stage.open()
    _arm(stage, number, kind)
    allowed, refused = _run(stage, scenario)
    told = f"{' + '.join(scenario)}, call {number} ({stage.files.fired[:1]}) {kind}, {'power' if power else 'kill'}"
    if kind == SHORT:
        assert not refused, f"{told}: a short write is to be carried on"
    fired = len(stage.files.fired)
    flushed = False
    pool = stage.pool
    lasting = stage.files.failing_from is not None
    if pool is not None and not pool._closed and not (lasting and kind == ALL_FAIL):
        allowed = _seen(stage, allowed, told)
        try:
            pool.sync_blocking(pool.submit())
            flushed = True
        except Problem:
            pass
    if flushed:
        for model in allowed:
            model.flush()
    broken = pool is not None and pool.log.broken is not None
    stage.end(power=power)
    stage.files.lose_pages_on_failed_sync = False
    again = stage.open()
    assert again.read_only is None, f"{told}: {again.read_only}"
    wrong = [model.wrong_with(again, power=power or broken) for model in allowed]
    assert None in wrong, f"{told}: {wrong}"
    assert not (flushed and broken), f"{told}: a flush was answered by a broken log"
    stage.model = allowed[wrong.index(None)].copy()
    stage.model.observed(again)
    use(stage)
    stage.end(power=False)
    return Outcome(fired, flushed, refused)


def _seen(stage: Stage, allowed: list[Model], told: str) -> list[Model]:
    """Narrow what the pool may be like down to what is read while it lives."""
    pool = stage.open_pool
    if pool.log.broken is not None:
        return allowed
    wrong = [model.wrong_with(pool, power=False) for model in allowed]
    assert None in wrong, f"{told}: it reads {wrong}"
    if len(allowed) == 1 or wrong.count(None) == 1:
        allowed = [allowed[wrong.index(None)]]
    for model, lacks in zip(allowed, wrong, strict=False):
        if lacks is None:
            model.observed(pool)
    return allowed


def explore(
    scenario: tuple[str, ...], kinds: tuple[str, ...] = KINDS, *, ends: int = 0
) -> tuple[Counter[str], int, int]:
    """(failures that happened, by kind; flushes answered after one; refusals). ``ends`` 0 or 1: kills and power cuts
    take turns, beginning with one or the other."""
    fired: Counter[str] = Counter()
    flushes = refusals = 0
    for number in range(1, calls_of(scenario) + 1):
        for index, kind in enumerate(kinds):
            outcome = inject(scenario, number, kind, power=bool((number + index + ends) % 2))
            fired[kind] += bool(outcome.fired)
            flushes += outcome.flushes
            refusals += outcome.refused
    return fired, flushes, refusals
