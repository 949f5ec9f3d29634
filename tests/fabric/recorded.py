"""Workloads recorded call by call, and every state that a power cut may leave compared with the model.

A workload is one operation or two in a row (ACE's enumeration: B3, Mohan et al., 2018). At each call the medium is
rebuilt with nothing, all, all but one, only one and chance's choice of what waits, with torn sectors and lost names;
the pool opens from it twice and must be the same each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product
from random import Random
from zlib import crc32

from operations import IMPOSSIBLE, OPERATIONS, use
from script import Model, Stage, new_stage

from innkeeper.model.problems import Problem
from innkeeper.system.recording import Fate, Medium, RecordedFiles, all_but, by_chance, kept, lost, only
from innkeeper.system.simulation import SimulatedFiles, Written

Workload = tuple[str, ...]


def workloads() -> list[Workload]:
    """Each operation, and each pair of operations; those that come first are the least alike."""
    names = sorted(OPERATIONS)
    possible = [pair for pair in product(names, names) if pair not in IMPOSSIBLE]
    pairs = sorted(possible, key=lambda pair: crc32(" ".join(pair).encode()))
    return [*((each,) for each in names), *pairs]


@dataclass
class Recording:
    """``steps``: how many events there were when it ended, and the model then. ``medium`` is at the start."""

    medium: Medium
    files: RecordedFiles
    steps: list[tuple[int, Model]] = field(default_factory=list)


def record(workload: Workload) -> Recording:
    """Run it to its end."""
    stage = new_stage(RecordedFiles)
    assert isinstance(stage.files, RecordedFiles)
    recording = Recording(Medium(stage.files), stage.files)
    events = recording.files.events
    recording.steps.append((0, stage.model.copy()))
    stage.open()
    recording.steps.append((len(events), stage.model.copy()))
    for name in workload:
        OPERATIONS[name].act(stage, stage.model)
        recording.steps.append((len(events), stage.model.copy()))
    stage.end(power=False)
    return recording


@dataclass(frozen=True)
class Choice:
    """What a power cut leaves: the fate of waiting writes, and how much of each directory's changes."""

    kind: str
    fate: Fate
    names: float
    everything: bool = False

    def names_kept(self, count: int) -> int:
        return round(self.names * count)


def choices(medium: Medium, random: Random, most: int) -> Iterator[Choice]:
    """The power cuts worth trying at this call; the end of the process first, which leaves all."""
    yield Choice("all kept", kept, 1.0, everything=True)
    waiting, names = medium.waiting, medium.waiting_names
    if not waiting and not names:
        return
    yield Choice("all lost", lost, 0.0)
    if names:
        yield Choice("names lost", kept, 0.0)
        yield Choice("bytes lost", lost, 1.0)
    single: list[Written] = random.sample(waiting, min(len(waiting), most))
    for write in single if len(waiting) > 1 else ():
        yield Choice("one lost", all_but(write), 1.0)
        yield Choice("one kept", only(write), random.choice((0.0, 0.5, 1.0)))
    for _ in range(min(most, 2 * len(waiting))):
        yield Choice("torn", by_chance(Random(random.getrandbits(32))), random.choice((0.0, 0.5, 1.0)))


def check_state(machine: SimulatedFiles, allowed: list[Model], *, power: bool, turn: int, whole: bool) -> str | None:
    """Open the pool twice; what is wrong with it, or None. ``whole``: it is used too."""
    stage = Stage(machine, allowed[0], turn=turn)
    try:
        pool = stage.open()
        if pool.read_only:
            return f"the pool is read-only: {pool.read_only}"
        wrong = [model.wrong_with(pool, power=power) for model in allowed]
        if all(wrong):
            return "; or else: ".join(each or "" for each in wrong)
        stage.model = allowed[wrong.index(None)].copy()
        stage.model.observed(pool)
        stage.model.flush()
        stage.end(power=bool(turn % 2))
        again = stage.open()
        changed = stage.model.wrong_with(again, power=True)
        if changed:
            return f"it is another after the second recovery: {changed}"
        if whole:
            use(stage)
    except Problem as problem:
        return f"{problem.code}: {problem}"
    finally:
        stage.end(power=False)
    return None


def explore(workload: Workload, *, most: int, every: int = 1) -> Counter[str]:
    """Compare the states that power cuts leave; what was tried, by kind. Fails with the first that is wrong."""
    recording = record(workload)
    random = Random(crc32(" ".join(workload).encode()))
    medium = recording.medium
    medium.note_directories(recording.files.directories)
    tried: Counter[str] = Counter()
    steps = recording.steps
    done = 0
    events = recording.files.events
    for index in range(len(events) + 1):
        if index:
            medium.follow(events[index - 1])
        while done + 1 < len(steps) and steps[done + 1][0] <= index:
            done += 1
        if index % every and index != steps[done][0]:
            continue
        allowed = [steps[done][1]]
        if done + 1 < len(steps):
            after = steps[done + 1][1]
            operation = OPERATIONS.get(workload[done - 1]) if done else None
            allowed.append(allowed[0].or_else(after) if operation and operation.data else after)
        for choice in choices(medium, random, most):
            machine = medium.machine(choice.fate, choice.names_kept)
            tried[choice.kind] += 1
            whole = tried.total() % 16 == 0
            wrong = check_state(
                machine, allowed, power=not choice.everything, turn=100 + tried.total() % 7, whole=whole
            )
            assert wrong is None, f"{' + '.join(workload)}, call {index} of {len(events)}, {choice.kind}: {wrong}"
    return tried
