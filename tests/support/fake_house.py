"""An in-memory House: the API's, the client's and the CLI's tests run without QEMU, fabric or root.

It keeps the Protocols' promises (references by id or name, conflicts, plans, tasks that go through their states)
and does nothing to the machine. The daemon's own services are tested with the real rooms.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fake_devices import Acls, Disks, Images, Nics, Pools, QosPolicies, Storages, Switches
from fake_guests import Backups, Checkpoints, Repositories, Vms
from fake_shelf import Shelf

from innkeeper.daemon.journal import Journal, JournalService
from innkeeper.model import requests as ask, views
from innkeeper.model.host_firewall import HostFirewall
from innkeeper.model.problems import Problem
from innkeeper.model.resources import (
    Acl,
    Backup,
    Checkpoint,
    Image,
    Nic,
    Pool,
    Qos,
    Repository,
    Resource,
    Storage,
    Switch,
    Task,
    TaskState,
    TaskStep,
    Vm,
    new_id,
    now,
)

ENDED = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)


class Tasks:
    def __init__(self, house: FakeHouse) -> None:
        self.house, self.shelf = house, Shelf(house, Task)
        self.runners: dict[str, asyncio.Task[None]] = {}

    async def ls(self) -> list[Task]:
        return list(self.shelf.all.values())

    async def show(self, ref: str) -> Task:
        return self.shelf.get(ref)

    async def cancel(self, ref: str) -> Task:
        task = self.shelf.get(ref)
        if task.state not in ENDED:
            task.cancel_requested = True
            self.house.note("updated", task)
        return task

    async def watch(self, ref: str) -> AsyncIterator[Task]:
        seen = -1
        while True:
            task = self.shelf.get(ref).model_copy(deep=True)  # it goes on while the caller looks at it
            if task.revision > seen:
                seen = task.revision
                yield task
            if task.state in ENDED:
                return
            await asyncio.sleep(0.005)


class Host:
    def __init__(self, house: FakeHouse) -> None:
        self.house = house
        self.started_at = datetime.now(UTC)
        self.allow_docker = False

    async def set(self, request: ask.HostSet) -> views.HostView:
        if request.allow_docker is not None:
            self.allow_docker = request.allow_docker
        return await self.show()

    async def show(self) -> views.HostView:
        return views.HostView(
            inn_id="test",
            inn_uuid=new_id(),
            version="0",
            state_dir="/nowhere",
            daemon_pid=os.getpid(),
            started_at=self.started_at,
            allow_docker=self.allow_docker,
            vms={"running": len(self.house.vms.shelf.all)},
        )

    async def health(self) -> views.Health:
        return views.Health(inn_id="test", version="0", daemon_pid=os.getpid(), fabric=True)

    async def metrics(self) -> str:
        return "# TYPE innkeeper_pool_disks gauge\ninnkeeper_pool_disks 2.0\n"

    async def doctor(self) -> list[views.Check]:
        return [
            views.Check(name="root", state="ok", detail="runs as root", essential=True),
            views.Check(name="kvm", state="warning", detail="emulated", cause="no /dev/kvm", remedy="enable it"),
        ]

    async def stop(self, request: ask.HostStop) -> Task:
        return self.house.run("host.stop", None, lambda: None)


class Firewall:
    """Its changes wait to be confirmed where it is enabled; named ``eth9`` has gone."""

    def __init__(self) -> None:
        self.held, self.trial = HostFirewall(), HostFirewall()

    async def show(self) -> views.FirewallView:
        waits = self.trial != self.held
        return views.FirewallView(
            **self.held.model_dump(),
            trial=self.trial if waits else None,
            confirm_by=now() if waits else None,
            dropped_packets=7,
            findings=["there is no eth9"] if "eth9" in self.trial.management else [],
        )

    async def set(self, request: ask.HostFirewallSet, *, dry_run: bool = False) -> Any:
        wish = request.applied_to(self.trial, lambda place: place)
        if dry_run:
            return views.Plan(summary="change the host's firewall", diff="-old\n+new\n")
        self.trial = wish
        if not wish.enabled:
            self.held = wish
        return await self.show()

    async def confirm(self) -> views.FirewallView:
        self.held = self.trial
        return await self.show()


class FakeHouse:
    """All of them. ``failing`` maps a task kind to the problem that its next task ends with."""

    def __init__(self) -> None:
        self.revision = 0
        self.changes: list[views.Event] = []
        self.failing: dict[str, Problem] = {}
        self.broken: dict[str, Exception] = {}
        self.held: dict[str, asyncio.Event] = {}
        self.vms = Vms(self, Vm)
        self.checkpoints = Checkpoints(self, Checkpoint)
        self.images = Images(self, Image)
        self.disks = Disks(self)
        self.storages = Storages(self, Storage)
        self.qos = QosPolicies(self, Qos)
        self.pools = Pools(self)
        self.switches = Switches(self, Switch)
        self.nics = Nics(self, Nic)
        self.acls = Acls(self, Acl)
        self.repositories = Repositories(self, Repository)
        self.backups = Backups(self, Backup)
        self.tasks = Tasks(self)
        self.events_journal = Journal(Path(":memory:"))
        self.journal = JournalService(self.events_journal, lambda ref: self.vms.shelf.get(ref).id)
        self.host = Host(self)
        self.firewall = Firewall()
        self.pools.shelf.add(Pool(name="default", path="/var/lib/innkeeper/fabric"))
        self.storages.shelf.add(Storage(name="default"))

    def note(self, action: Any, resource: Resource) -> None:
        self.revision += 1
        resource.revision = self.revision
        body = None if action == "deleted" else resource.model_dump(mode="json")
        self.changes.append(
            views.Event(
                revision=self.revision,
                action=action,
                kind=resource.kind,
                id=resource.id,
                name=resource.name,
                resource=body,
            )
        )

    async def events(self, since: int | None = None) -> AsyncIterator[views.Event]:
        seen = self.revision if since is None else since
        while True:
            for event in [one for one in self.changes if one.revision > seen]:
                seen = event.revision
                yield event
            await asyncio.sleep(0.005)

    def run(self, kind: str, target: Resource | None, finish: Callable[[], Any]) -> Task:
        """A task that takes two steps and then calls ``finish``; held back while ``held`` has its kind."""
        identity = new_id()
        task = Task(
            id=identity,
            name=f"{kind}-{identity[:8]}",
            task_kind=kind,
            target_kind=target.kind if target else None,
            target_id=target.id if target else None,
            target_name=target.name if target else None,
            steps=[TaskStep(name="prepare"), TaskStep(name="finish")],
        )
        self.tasks.shelf.add(task)
        runner = asyncio.create_task(self._drive(task, finish))
        self.tasks.runners[identity] = runner
        return task.model_copy(deep=True)

    async def _drive(self, task: Task, finish: Callable[[], Any]) -> None:
        task.state, task.started_at = TaskState.RUNNING, now()
        try:
            for number, step in enumerate(task.steps):
                step.state = "running"
                task.progress = number / len(task.steps)
                self.note("updated", task)
                await self._held(task)
                step.state = "done"
            if task.task_kind in self.failing:
                raise self.failing.pop(task.task_kind)
            result = finish()
            task.result = result if isinstance(result, dict) else {}
            task.state, task.progress = TaskState.SUCCEEDED, 1.0
        except Problem as problem:
            task.state, task.problem = TaskState.FAILED, problem.as_dict()
        except asyncio.CancelledError:
            task.state = TaskState.CANCELLED
        task.ended_at = now()
        self.note("updated", task)

    async def _held(self, task: Task) -> None:
        await asyncio.sleep(0.005)
        gate = self.held.get(task.task_kind)
        while gate is not None and not gate.is_set():
            if task.cancel_requested:
                raise asyncio.CancelledError
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End what still runs."""
        for runner in self.tasks.runners.values():
            runner.cancel()
        await asyncio.gather(*self.tasks.runners.values(), return_exceptions=True)
