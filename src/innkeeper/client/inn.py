"""``InnClient``: everything that the API does, typed and blocking. The CLI and the tests use it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from innkeeper.client import nouns
from innkeeper.client.connection import Connection
from innkeeper.model.problems import Failed, Problem, Unavailable, from_dict
from innkeeper.model.resources import Task, TaskState, VmState
from innkeeper.model.views import Event, VmDetail

ENDED = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED})
_POLL_S = 0.2
_RECONNECT_S = 30.0
"""How long ``wait`` looks for a daemon that went away while a task ran."""


class InnClient:
    """A client of the daemon at ``socket_path``. Every call raises the ``Problem`` that the daemon answers.

    Use it in a ``with`` block, or ``close`` it.
    """

    def __init__(self, socket_path: Path) -> None:
        self._connection = Connection(socket_path)
        self.vms = nouns.Vms(self._connection)
        self.checkpoints = nouns.Checkpoints(self._connection)
        self.images = nouns.Images(self._connection)
        self.disks = nouns.Disks(self._connection)
        self.storages = nouns.Storages(self._connection)
        self.qos = nouns.QosPolicies(self._connection)
        self.pools = nouns.Pools(self._connection)
        self.switches = nouns.Switches(self._connection)
        self.nics = nouns.Nics(self._connection)
        self.acls = nouns.Acls(self._connection)
        self.repositories = nouns.Repositories(self._connection)
        self.backups = nouns.Backups(self._connection)
        self.tasks = nouns.Tasks(self._connection)
        self.journal = nouns.Journal(self._connection)
        self.host = nouns.Host(self._connection)
        self.firewall = nouns.Firewall(self._connection)

    def __enter__(self) -> InnClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def events(self, since: int | None = None) -> Iterator[Event]:
        """Every change in the inn, from revision ``since`` or from now on."""
        query = {} if since is None else {"since": str(since)}
        for data in self._connection.events("/v1/events", query):
            yield Event.model_validate_json(data)

    def wait(self, task: Task, on_progress: Callable[[Task], None] = lambda _task: None) -> Task:
        """The task when it has succeeded; ``on_progress`` sees it after each change.

        A daemon that restarts meanwhile is waited for. Raises the problem of a task that failed, ``Failed``
        (``task.cancelled``), ``Unavailable`` (``daemon.lost``, ``daemon.unreachable``).
        """
        lost_at: float | None = None
        while True:
            try:
                for state in self.tasks.watch(task.id):
                    lost_at = None
                    on_progress(state)
                    if state.state in ENDED:
                        return _outcome(state)
            except Unavailable as away:
                if away.code not in ("daemon.lost", "daemon.unreachable"):
                    raise
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > _RECONNECT_S:
                    raise
            time.sleep(_POLL_S)

    def wait_vm(self, ref: str, until: Callable[[VmDetail], bool], *, what: str, timeout_s: float = 300.0) -> VmDetail:
        """The vm once ``until`` holds.

        Raises ``Failed`` (``vm.crashed``) when it crashes meanwhile, ``vm.wait_timeout`` when it takes too long.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            vm = self.vms.show(ref)
            if until(vm):
                return vm
            if vm.status.state == VmState.CRASHED:
                raise Failed(
                    "vm.crashed",
                    f"{vm.name} crashed while it was waited for",
                    cause=vm.status.reason or None,
                    remedy=f"see 'inn logs --vm {vm.name}'",
                )
            if time.monotonic() > deadline:
                raise Failed(
                    "vm.wait_timeout",
                    f"{vm.name} is not {what} after {timeout_s:.0f} s",
                    cause=f"it is {vm.status.state}; its agent {'answers' if vm.status.agent else 'does not answer'}",
                    remedy=f"see 'inn vm console {vm.name}', or wait longer",
                )
            time.sleep(_POLL_S)

    def wait_ready(self, ref: str, *, timeout_s: float = 300.0) -> VmDetail:
        """The vm once its agent answers. Raises as ``wait_vm`` does."""
        return self.wait_vm(ref, lambda vm: vm.status.agent, what="ready", timeout_s=timeout_s)


def _outcome(task: Task) -> Task:
    if task.state == TaskState.SUCCEEDED:
        return task
    if task.state == TaskState.CANCELLED:
        raise Failed("task.cancelled", f"task {task.name} was cancelled", remedy="start it again")
    problem: Problem = from_dict(task.problem or {"code": "task.failed", "detail": f"task {task.name} failed"})
    raise problem
