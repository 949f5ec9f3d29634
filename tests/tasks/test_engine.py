"""The task engine: order, progress, undo, cancel, and recovery from a crash at every interruption point."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from innkeeper.model.problems import Conflict, NoSpace
from innkeeper.model.resources import Task, TaskState
from innkeeper.state.store import Store
from innkeeper.tasks.engine import Engine, Run, Step, TaskKind


class World:
    """What the steps of a test act upon; it outlives a 'crash' as a real machine would."""

    def __init__(self) -> None:
        self.made: set[str] = set()
        self.log: list[str] = []

    def step(self, name: str, *, fail: bool = False, hang: asyncio.Event | None = None) -> Step:
        async def do(run: Run) -> None:
            self.log.append(f"do {name}")
            self.made.add(name)
            run.context[name] = True
            run.progress(1.0, f"{name} half-way")
            if hang:
                hang.set()
                await asyncio.sleep(3600)
            if fail:
                raise NoSpace("pool.full", "the pool is full", remedy="add space")

        async def undo(_run: Run) -> None:
            self.log.append(f"undo {name}")
            self.made.discard(name)

        return Step(name, do, undo)


def drive(path: Path, scenario: Callable[[Store, Engine], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        store = Store(path)
        engine = Engine(store)
        try:
            await scenario(store, engine)
        finally:
            await engine.close()
            store.close()

    asyncio.run(main())


def test_steps_run_in_order_and_the_task_succeeds(tmp_path: Path) -> None:
    world = World()

    async def scenario(store: Store, engine: Engine) -> None:
        engine.register(TaskKind("make", [world.step("a"), world.step("b")]))
        started = engine.start("make", {"x": 1}, target_kind="vm", target_id="v", target_name="web")
        ended = await engine.wait(started.id)
        assert ended.state == TaskState.SUCCEEDED
        assert ended.progress == 1.0
        assert [step.state for step in ended.steps] == ["done", "done"]
        assert ended.context == {"a": True, "b": True}

    drive(tmp_path / "s.db", scenario)
    assert world.log == ["do a", "do b"]


def test_a_failed_step_undoes_all_before_it_and_keeps_its_cause(tmp_path: Path) -> None:
    world = World()

    async def scenario(store: Store, engine: Engine) -> None:
        engine.register(TaskKind("make", [world.step("a"), world.step("b", fail=True), world.step("c")]))
        ended = await engine.wait(engine.start("make", {}).id)
        assert ended.state == TaskState.FAILED
        assert ended.problem is not None
        assert ended.problem["code"] == "pool.full"
        assert [step.state for step in ended.steps] == ["undone", "undone", "pending"]

    drive(tmp_path / "s.db", scenario)
    assert world.log == ["do a", "do b", "undo b", "undo a"]
    assert world.made == set()


def test_cancel_undoes(tmp_path: Path) -> None:
    world = World()

    async def scenario(store: Store, engine: Engine) -> None:
        reached = asyncio.Event()
        engine.register(TaskKind("make", [world.step("a"), world.step("b", hang=reached)]))
        started = engine.start("make", {})
        await reached.wait()
        engine.cancel(started.id)
        ended = await engine.wait(started.id)
        assert ended.state == TaskState.CANCELLED
        with pytest.raises(Conflict) as refused:
            engine.cancel(started.id)
        assert refused.value.code == "task.ended"

    drive(tmp_path / "s.db", scenario)
    assert world.made == set()


def test_tasks_on_one_target_take_turns(tmp_path: Path) -> None:
    world = World()

    async def scenario(store: Store, engine: Engine) -> None:
        reached = asyncio.Event()
        engine.register(TaskKind("slow", [world.step("slow", hang=reached)]))
        engine.register(TaskKind("fast", [world.step("fast")]))
        slow = engine.start("slow", {}, target_id="vm-1")
        fast = engine.start("fast", {}, target_id="vm-1")
        other = engine.start("fast", {}, target_id="vm-2")
        await reached.wait()
        assert (await engine.wait(other.id)).state == TaskState.SUCCEEDED
        assert store.get(Task, fast.id).state == TaskState.QUEUED
        engine.cancel(slow.id)
        assert (await engine.wait(fast.id)).state == TaskState.SUCCEEDED

    drive(tmp_path / "s.db", scenario)


@pytest.mark.parametrize("cut_at", ["a", "b", "c"])
@pytest.mark.parametrize("after_crash", ["undo", "resume"])
def test_a_task_cut_short_at_any_step_is_finished_or_undone(tmp_path: Path, cut_at: str, after_crash: Any) -> None:
    world = World()

    async def crash(store: Store, engine: Engine) -> None:
        reached = asyncio.Event()
        steps = [world.step(name, hang=reached if name == cut_at else None) for name in "abc"]
        engine.register(TaskKind("make", steps, after_crash=after_crash))
        engine.start("make", {})
        await reached.wait()

    async def again(store: Store, engine: Engine) -> None:
        engine.register(TaskKind("make", [world.step(name) for name in "abc"], after_crash=after_crash))
        (task,) = await engine.recover()
        ended = await engine.wait(task.id)
        if after_crash == "resume":
            assert ended.state == TaskState.SUCCEEDED
            assert world.made == {"a", "b", "c"}
        else:
            assert ended.state == TaskState.FAILED
            assert ended.problem is not None
            assert ended.problem["code"] == "task.interrupted"
            assert world.made == set()

    drive(tmp_path / "s.db", crash)
    drive(tmp_path / "s.db", again)


def test_an_undo_that_fails_is_told_and_the_rest_is_undone(tmp_path: Path) -> None:
    world = World()

    async def broken(_run: Run) -> None:
        raise OSError("device busy")

    async def scenario(store: Store, engine: Engine) -> None:
        bad = Step("bad", world.step("bad").do, broken)
        engine.register(TaskKind("make", [world.step("a"), bad, world.step("c", fail=True)]))
        ended = await engine.wait(engine.start("make", {}).id)
        assert ended.state == TaskState.FAILED
        assert ended.problem is not None
        assert ended.problem["code"] == "task.undo_failed"
        assert "pool.full" in ended.problem["cause"]
        assert "device busy" in ended.problem["cause"]

    drive(tmp_path / "s.db", scenario)
    assert world.made == {"bad"}


@pytest.mark.parametrize("fails", [False, True])
def test_a_state_without_room_makes_tasks_wait_not_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    monkeypatch.setattr("innkeeper.tasks.engine._ROOM_INTERVAL_S", 0.01)
    world = World()
    full = NoSpace("state.no_space", "there is no room to record the change")

    async def scenario(store: Store, engine: Engine) -> None:
        sound, refusals = store.update, 0

        def update(resource: Any) -> Any:
            nonlocal refusals
            refusals += 1
            if refusals % 4:
                raise full
            return sound(resource)

        async def undo(run: Run) -> None:
            world.log.append("undo b")
            if world.log.count("undo b") < 3:
                raise full
            await world.step("b").undo(run)

        engine.register(TaskKind("make", [world.step("a"), Step("b", world.step("b", fail=fails).do, undo)]))
        started = engine.start("make", {})
        monkeypatch.setattr(store, "update", update)
        ended = await engine.wait(started.id, 20)
        assert ended.state == (TaskState.FAILED if fails else TaskState.SUCCEEDED)
        assert [step.state for step in ended.steps] == (["undone"] * 2 if fails else ["done"] * 2)
        assert refusals > 20

    drive(tmp_path / "s.db", scenario)
    assert world.made == (set() if fails else {"a", "b"})


def test_a_kind_that_is_gone_fails_clearly(tmp_path: Path) -> None:
    world = World()

    async def crash(store: Store, engine: Engine) -> None:
        reached = asyncio.Event()
        engine.register(TaskKind("make", [world.step("a", hang=reached)]))
        engine.start("make", {})
        await reached.wait()

    async def again(store: Store, engine: Engine) -> None:
        (task,) = await engine.recover()
        ended = await engine.wait(task.id)
        assert ended.problem is not None
        assert ended.problem["code"] == "task.unknown_kind"

    drive(tmp_path / "s.db", crash)
    drive(tmp_path / "s.db", again)
