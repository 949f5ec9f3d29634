"""The ``task`` noun: long work that can be listed, followed and cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator

from innkeeper.daemon.rooms import Rooms
from innkeeper.model.resources import Task
from innkeeper.tasks.engine import ENDED


class Tasks:
    """The ``task`` noun."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms

    async def ls(self) -> list[Task]:
        return sorted(self._rooms.store.ls(Task), key=lambda task: task.created_at)

    async def show(self, ref: str) -> Task:
        return self._rooms.store.get(Task, ref)

    async def cancel(self, ref: str) -> Task:
        task = self._rooms.store.get(Task, ref)
        return task if task.state in ENDED else self._rooms.engine.cancel(task.id)

    async def watch(self, ref: str) -> AsyncIterator[Task]:
        """The task now and after every change, until it has ended."""
        since = self._rooms.store.revision
        task = self._rooms.store.get(Task, ref)
        yield task
        if task.state in ENDED:
            return
        async for _revision, _action, changed in self._rooms.store.watch(since, ["task"]):
            if changed.id == task.id and isinstance(changed, Task):
                yield changed
                if changed.state in ENDED:
                    return
