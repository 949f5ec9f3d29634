"""The task engine: sagas whose progress is stored.

A *kind* of task is an ordered list of steps. A step's ``do`` and ``undo`` must each be safe to repeat, because a crash
may have come after the act and before its record. The JSON ``context`` that the steps share is stored after every step.

    queued → running → succeeded
                  └──> undoing → failed | cancelled

At start, ``recover`` takes every task that is neither queued nor ended: one whose kind resumes goes on from its first
unfinished step, any other is undone and fails with ``task.interrupted``. A step or an undo that cannot be recorded for
want of room waits until it can.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from innkeeper.model.problems import Conflict, Failed, NoSpace, Problem
from innkeeper.model.resources import Task, TaskState, TaskStep, new_id, now
from innkeeper.state.store import Store

log = logging.getLogger(__name__)

_PROGRESS_INTERVAL_S = 0.2
_ROOM_INTERVAL_S = 1.0
"""How often a task that waits for room in the state looks again."""
KEPT_TASKS = 1000
"""Ended tasks kept for people to look at; older ones go at the daemon's next start."""
ENDED = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})


@dataclass(slots=True)
class Run:
    """What a step sees: the task's parameters (read only), the shared ``context``, and a way to report progress."""

    task_id: str
    parameters: Mapping[str, Any]
    context: dict[str, Any]
    result: dict[str, Any]
    _report: Callable[[float, str], None]
    _save: Callable[[], None]

    def progress(self, fraction: float, message: str = "") -> None:
        """Report how far the current step is (0..1); stored at most five times a second."""
        self._report(fraction, message)

    def save(self) -> None:
        """Store the context now, before an act that must be undone by what the context holds."""
        self._save()


StepFunction = Callable[[Run], Awaitable[None]]


async def _nothing(_run: Run) -> None:
    """The undo of a step that changes nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    """``do`` acts, ``undo`` takes it back; both may run more than once. ``weight`` is its share of the progress bar."""

    name: str
    do: StepFunction
    undo: StepFunction = _nothing
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class TaskKind:
    """A registered kind. ``after_crash`` says what becomes of a task that a crash cut short."""

    name: str
    steps: Sequence[Step]
    after_crash: Literal["resume", "undo"] = "undo"
    cancellable: bool = True


@dataclass(slots=True)
class _Active:
    """A task that runs in this process."""

    runner: asyncio.Task[None]
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class Engine:
    """Starts, follows, cancels and recovers tasks. One per daemon."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kinds: dict[str, TaskKind] = {}
        self._active: dict[str, _Active] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._closing = False

    def register(self, kind: TaskKind) -> None:
        """Make a kind known; two kinds of one name are a programming error."""
        if kind.name in self._kinds:
            raise ValueError(f"task kind {kind.name} is registered twice")
        self._kinds[kind.name] = kind

    def start(
        self,
        kind_name: str,
        parameters: dict[str, Any],
        *,
        target_kind: str | None = None,
        target_id: str | None = None,
        target_name: str | None = None,
    ) -> Task:
        """Queue a task and begin it. Tasks with one target run one after the other, in order."""
        kind = self._kinds[kind_name]
        task_id = new_id()
        task = self._store.create(
            Task(
                id=task_id,
                name=f"{kind_name}-{task_id[:8]}",
                task_kind=kind_name,
                target_kind=target_kind,
                target_id=target_id,
                target_name=target_name,
                parameters=parameters,
                steps=[TaskStep(name=step.name) for step in kind.steps],
            )
        )
        self._launch(task)
        return task

    def _launch(self, task: Task) -> None:
        active = _Active(asyncio.create_task(self._drive(task.id), name=task.name))
        self._active[task.id] = active

        def over(_done: asyncio.Task[None]) -> None:
            active.ended.set()
            self._active.pop(task.id, None)

        active.runner.add_done_callback(over)

    async def wait(self, task_id: str, timeout_s: float | None = None) -> Task:
        """The task once it has ended, or as it stands after ``timeout_s``."""
        active = self._active.get(task_id)
        if active is not None:
            try:
                await asyncio.wait_for(active.ended.wait(), timeout_s)
            except TimeoutError:
                pass
        return self._store.get(Task, task_id)

    def cancel(self, task_id: str) -> Task:
        """Ask a task to stop and undo what it did.

        Raises ``Conflict`` (``task.ended``, ``task.not_cancellable``), ``NotFound`` (``task.not_found``).
        """
        task = self._store.get(Task, task_id)
        if task.state in ENDED or task.state == TaskState.UNDOING:
            raise Conflict("task.ended", f"task {task.name} is {task.state} already")
        if not self._kinds[task.task_kind].cancellable:
            raise Conflict("task.not_cancellable", f"a {task.task_kind} task cannot be cancelled", remedy="wait for it")
        task.cancel_requested = True
        task = self._store.update(task)
        active = self._active.get(task.id)
        if active is not None:
            active.runner.cancel()
        return task

    async def recover(self) -> list[Task]:
        """Finish or undo what a crash cut short; returns those tasks. Call once, after every kind is registered."""
        known = sorted(self._store.ls(Task), key=lambda task: task.revision)
        for old in [task for task in known if task.state in ENDED][:-KEPT_TASKS]:
            self._store.delete("task", old.id)
        unfinished = [task for task in known if task.state not in ENDED]
        for task in unfinished:
            log.warning("task %s was cut short; taking it up again", task.name)
            self._launch(task)
        return unfinished

    async def close(self) -> None:
        """Stop driving tasks; they stay unfinished in the state and are taken up at the next start."""
        self._closing = True
        runners = [active.runner for active in self._active.values()]
        for runner in runners:
            runner.cancel()
        await asyncio.gather(*runners, return_exceptions=True)

    async def _drive(self, task_id: str) -> None:
        task = self._store.get(Task, task_id)
        kind = self._kinds.get(task.task_kind)
        if kind is None:
            self._end(task_id, TaskState.FAILED, Failed("task.unknown_kind", f"no task kind {task.task_kind!r}"))
            return
        lock = self._locks.setdefault(task.target_id or task_id, asyncio.Lock())
        driver = _Driver(self._store, kind, task_id)
        try:
            async with lock:
                interrupted = task.state in (TaskState.RUNNING, TaskState.UNDOING)
                undo_after_crash = kind.after_crash == "undo" or task.state == TaskState.UNDOING
                if task.cancel_requested or (interrupted and undo_after_crash):
                    await driver.undo(self._interruption(task))
                else:
                    await driver.run()
        except asyncio.CancelledError:
            if self._closing or not self._store.get(Task, task_id).cancel_requested:
                raise
            await driver.undo(None)

    @staticmethod
    def _interruption(task: Task) -> Problem | None:
        if task.cancel_requested:
            return None
        return Failed(
            "task.interrupted",
            f"{task.task_kind} was cut short and has been undone",
            cause="the daemon ended while it ran",
            remedy="start it again",
        )

    def _end(self, task_id: str, state: TaskState, problem: Problem | None) -> None:
        task = self._store.get(Task, task_id)
        task.state, task.ended_at = state, now()
        task.problem = problem.as_dict() if problem else None
        self._store.update(task)


class _Driver:
    """Runs or undoes the steps of one task and records each."""

    def __init__(self, store: Store, kind: TaskKind, task_id: str) -> None:
        self._store = store
        self._kind = kind
        self._task_id = task_id
        self._total = sum(step.weight for step in kind.steps) or 1.0
        self._done_weight = 0.0
        self._weight = 1.0
        self._reported_at = 0.0
        task = store.get(Task, task_id)
        self._run = Run(task_id, task.parameters, dict(task.context), dict(task.result), self._report, self._save)

    def _change(self, change: Callable[[Task], None]) -> None:
        task = self._store.get(Task, self._task_id)
        change(task)
        self._store.update(task)

    async def _record(self, change: Callable[[Task], None]) -> None:
        """Like ``_change``; with no room to record it, the task waits until there is."""
        warned = False
        while True:
            try:
                self._change(change)
                return
            except NoSpace as full:
                if not warned:
                    log.warning("task %s waits: %s", self._task_id, full)
                warned = True
                await asyncio.sleep(_ROOM_INTERVAL_S)

    def _save(self) -> None:
        def change(task: Task) -> None:
            task.context = dict(self._run.context)

        self._change(change)

    def _report(self, fraction: float, message: str) -> None:
        moment = time.monotonic()
        if moment - self._reported_at < _PROGRESS_INTERVAL_S and fraction < 1:
            return
        self._reported_at = moment

        def change(task: Task) -> None:
            task.progress = min(1.0, (self._done_weight + self._weight * min(max(fraction, 0.0), 1.0)) / self._total)
            task.message = message or task.message

        with suppress(NoSpace):  # the next report or step tells it
            self._change(change)

    async def _mark(
        self, index: int, state: Literal["running", "done", "undone", "failed"], duration_s: float = 0.0
    ) -> None:
        def change(task: Task) -> None:
            step = task.steps[index]
            step.state = state
            step.duration_s = duration_s or step.duration_s
            task.context = dict(self._run.context)
            task.result = dict(self._run.result)
            if state == "running":
                task.message = step.name
            if state == "done":
                task.progress = min(1.0, self._done_weight / self._total)

        await self._record(change)

    async def run(self) -> None:
        def begin(task: Task) -> None:
            task.state = TaskState.RUNNING
            task.started_at = task.started_at or now()

        await self._record(begin)
        for index, step in enumerate(self._kind.steps):
            self._weight = step.weight
            if self._store.get(Task, self._task_id).steps[index].state == "done":
                self._done_weight += step.weight
                continue
            await self._mark(index, "running")
            began = time.monotonic()
            try:
                await step.do(self._run)
            except Exception as error:  # noqa: BLE001 - the supervisor of all long work: any failure must be undone
                await self._mark(index, "failed", time.monotonic() - began)
                await self.undo(_as_problem(error, step.name))
                return
            self._done_weight += step.weight
            await self._mark(index, "done", time.monotonic() - began)
        await self._finish(TaskState.SUCCEEDED, None)

    async def undo(self, problem: Problem | None) -> None:
        """Take back, in reverse, every step that was begun; then end as failed, or as cancelled without a problem."""

        def begin(task: Task) -> None:
            task.state = TaskState.UNDOING
            task.problem = problem.as_dict() if problem else task.problem

        await self._record(begin)
        for index in reversed(range(len(self._kind.steps))):
            if self._store.get(Task, self._task_id).steps[index].state in ("pending", "undone"):
                continue
            step = self._kind.steps[index]
            try:
                await self._undo_step(step)
            except Exception as error:
                # The other steps must still be undone; the failure is reported with the task.
                log.exception("undoing step %r of task %s failed", step.name, self._task_id)
                problem = _undo_failed(problem, step.name, error)
                continue
            await self._mark(index, "undone")
        await self._finish(TaskState.FAILED if problem else TaskState.CANCELLED, problem)

    async def _undo_step(self, step: Step) -> None:
        while True:
            try:
                await step.undo(self._run)
                return
            except NoSpace as full:
                if full.code != "state.no_space":
                    raise
                log.warning("task %s waits: %s", self._task_id, full)
                await asyncio.sleep(_ROOM_INTERVAL_S)

    async def _finish(self, state: TaskState, problem: Problem | None) -> None:
        def change(task: Task) -> None:
            task.state, task.ended_at = state, now()
            task.problem = problem.as_dict() if problem else None
            task.context = dict(self._run.context)
            task.result = dict(self._run.result)
            if state == TaskState.SUCCEEDED:
                task.progress, task.message = 1.0, "done"

        await self._record(change)


def _as_problem(error: Exception, step_name: str) -> Problem:
    if isinstance(error, Problem):
        return error
    log.error("step %r failed unexpectedly", step_name, exc_info=error)
    return Failed(
        "task.step_failed",
        f"step {step_name!r} failed",
        cause=f"{type(error).__name__}: {error}",
        remedy="see 'inn logs'; this is a defect in Innkeeper, please report it",
    )


def _undo_failed(problem: Problem | None, step_name: str, error: Exception) -> Problem:
    first = f"{problem}; then " if problem else ""
    return Failed(
        "task.undo_failed",
        f"step {step_name!r} could not be undone",
        cause=f"{first}{type(error).__name__}: {error}",
        remedy="see 'inn logs', mend the cause and remove what is left by hand",
    )
