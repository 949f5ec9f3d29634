"""An in-memory House: the API's, the client's and the CLI's tests run without QEMU, fabric or root.

It keeps the Protocols' promises (references by id or name, conflicts, plans, tasks that go through their states)
and does nothing to the machine. The daemon's own services are tested with the real rooms.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from innkeeper.model import requests as ask
from innkeeper.model import views
from innkeeper.model.problems import Conflict, Failed, Invalid, NotFound, Problem
from innkeeper.model.resources import (
    Backup,
    Checkpoint,
    Disk,
    Image,
    Nic,
    Repository,
    Resource,
    Storage,
    Switch,
    Task,
    TaskState,
    TaskStep,
    Vm,
    VmSpec,
    VmState,
    VmStatus,
    new_id,
    now,
)

R = TypeVar("R", bound=Resource)
ENDED = (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED)


class Shelf(Generic[R]):
    """The resources of one kind."""

    def __init__(self, house: FakeHouse, kind: type[R]) -> None:
        self.house, self.kind = house, kind
        self.all: dict[str, R] = {}

    def add(self, resource: R) -> R:
        if any(one.name == resource.name for one in self.all.values()):
            raise Conflict(
                f"{self.kind.kind}.name_taken", f"there is a {self.kind.kind} named {resource.name!r} already"
            )
        self.all[resource.id] = resource
        self.house.note("created", resource)
        return resource

    def get(self, ref: str) -> R:
        for one in self.all.values():
            if ref in (one.id, one.name):
                return one
        raise NotFound(f"{self.kind.kind}.not_found", f"there is no {self.kind.kind} {ref!r}", remedy="see ls")

    def drop(self, ref: str) -> R:
        gone = self.all.pop(self.get(ref).id)
        self.house.note("deleted", gone)
        return gone

    def change(self, ref: str, revision: int | None = None, **fields: Any) -> R:
        found = self.get(ref)
        if revision is not None and revision != found.revision:
            raise Conflict("state.stale", f"{found.name} has changed since", remedy="read it again")
        name = fields.get("name")
        if name not in (None, found.name) and any(one.name == name for one in self.all.values()):
            raise Conflict(f"{self.kind.kind}.name_taken", f"there is a {self.kind.kind} named {name!r} already")
        for field, value in fields.items():
            setattr(found, field, value)
        self.house.note("updated", found)
        return found

    def set(self, ref: str, request: ask.Part, revision: int | None) -> R:
        wanted = {name: value for name, value in request.model_dump(exclude_unset=True).items() if value is not None}
        return self.change(ref, revision, **wanted)


class Service(Generic[R]):
    """What most nouns do."""

    def __init__(self, house: FakeHouse, kind: type[R]) -> None:
        self.house, self.shelf = house, Shelf(house, kind)

    async def ls(self) -> list[R]:
        return list(self.shelf.all.values())

    async def show(self, ref: str) -> Any:
        return self.shelf.get(ref)

    async def set(self, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> R:
        return self.shelf.set(ref, request, revision)

    async def rm(self, ref: str) -> R:
        return self.shelf.drop(ref)

    def plan(self, what: str) -> views.Plan:
        return views.Plan(summary=f"would {what}", steps=["first this", "then that"])


class Vms(Service[Vm]):
    async def create(self, request: ask.VmCreate, *, dry_run: bool = False) -> Any:
        if request.image is not None:
            self.house.images.shelf.get(request.image)
        switches = [self.house.switches.shelf.get(nic.switch) for nic in request.nics]
        if any(one.name == request.name for one in self.shelf.all.values()):
            raise Conflict("vm.name_taken", f"there is a vm named {request.name!r} already", remedy="choose another")
        if dry_run:
            return self.plan(f"create {request.name}")
        spec = VmSpec(cpus=request.cpus, memory_bytes=request.memory_bytes, protect=request.protect)
        vm = Vm(name=request.name, labels=request.labels, spec=spec)

        def finish() -> None:
            vm.status = VmStatus(state=VmState.RUNNING if request.start else VmState.STOPPED, agent=request.start)
            self.shelf.add(vm)
            for number, (nic, switch) in enumerate(zip(request.nics, switches, strict=True)):
                mac = nic.mac or f"52:54:00:00:00:{len(self.house.nics.shelf.all) + 1:02x}"
                card = Nic(name=f"{vm.name}-{number}", vm_id=vm.id, switch_id=switch.id, mac=mac, address="10.0.0.2")
                self.house.nics.shelf.add(card)

        return self.house.run("vm.create", vm, finish)

    async def show(self, ref: str) -> views.VmDetail:
        vm = self.shelf.get(ref)
        nics = [nic for nic in self.house.nics.shelf.all.values() if nic.vm_id == vm.id]
        return views.VmDetail(**{name: getattr(vm, name) for name in Vm.model_fields}, nics=nics)

    async def set(self, ref: str, request: ask.VmSet, *, revision: int | None = None) -> Vm:
        vm = self.shelf.get(ref)
        named = request.model_dump(exclude_unset=True)
        for name in ("cpus", "memory_bytes", "protect", "autostart", "autostop", "description"):
            if named.get(name) is not None:
                setattr(vm.spec, name, named[name])
        if "iso" in named:
            vm.spec.iso_image_id = self.house.images.shelf.get(named["iso"]).id if named["iso"] else None
        return self.shelf.change(ref, revision, **({"labels": request.labels} if request.labels is not None else {}))

    async def rm(self, ref: str, *, with_disks: bool = False, force: bool = False) -> Task:
        vm = self.shelf.get(ref)
        if vm.status.state == VmState.RUNNING and not force:
            raise Conflict("vm.running", f"{vm.name} runs", remedy="shut it down, or use --force")
        return self.house.run("vm.rm", vm, lambda: self.shelf.drop(vm.id))

    def _to(self, ref: str, kind: str, state: VmState) -> Task:
        vm = self.shelf.get(ref)

        def finish() -> None:
            vm.status.state = state
            vm.status.agent = state == VmState.RUNNING
            self.house.note("updated", vm)

        return self.house.run(kind, vm, finish)

    async def start(self, ref: str) -> Task:
        return self._to(ref, "vm.start", VmState.RUNNING)

    async def shutdown(self, ref: str, request: ask.VmShutdown) -> Task:
        return self._to(ref, "vm.shutdown", VmState.STOPPED)

    async def poweroff(self, ref: str) -> Task:
        return self._to(ref, "vm.poweroff", VmState.STOPPED)

    async def pause(self, ref: str) -> Task:
        return self._to(ref, "vm.pause", VmState.PAUSED)

    async def resume(self, ref: str) -> Task:
        return self._to(ref, "vm.resume", VmState.RUNNING)

    async def reset(self, ref: str) -> Task:
        return self._to(ref, "vm.reset", VmState.RUNNING)

    async def save(self, ref: str) -> Task:
        return self._to(ref, "vm.save", VmState.SAVED)

    async def clone(self, ref: str, request: ask.VmClone, *, dry_run: bool = False) -> Any:
        vm = self.shelf.get(ref)
        if dry_run:
            return self.plan(f"clone {vm.name}")
        copy = Vm(name=request.name, spec=vm.spec.model_copy())
        copy.status.state = VmState.STOPPED
        return self.house.run("vm.clone", copy, lambda: self.shelf.add(copy))

    async def rename(self, ref: str, request: ask.VmRename) -> Vm:
        return self.shelf.change(ref, name=request.name)

    async def exec(self, ref: str, request: ask.VmExec) -> views.ExecResult:
        vm = self.shelf.get(ref)
        if not vm.status.agent:
            raise Failed("agent.absent", f"the agent of {vm.name} does not answer", remedy="wait until it has booted")
        output = " ".join(request.argv).encode() + b"\n" + (request.stdin or b"")
        return views.ExecResult(
            exit_code=3 if request.argv[0] == "false" else 0, stdout=output, stderr=b"\xff\n" if request.stdin else b""
        )


class Checkpoints(Service[Checkpoint]):
    def _find(self, vm_ref: str, ref: str) -> Checkpoint:
        vm = self.house.vms.shelf.get(vm_ref)
        for one in self.shelf.all.values():
            if one.vm_id == vm.id and ref in (one.id, one.name.rpartition("/")[2]):
                return one
        raise NotFound("checkpoint.not_found", f"{vm.name} has no checkpoint {ref!r}")

    async def create(self, vm_ref: str, request: ask.CheckpointCreate, *, dry_run: bool = False) -> Any:
        vm = self.house.vms.shelf.get(vm_ref)
        if dry_run:
            return self.plan(f"checkpoint {vm.name}")
        point = Checkpoint(name=f"{vm.name}/{request.name}", vm_id=vm.id, checkpoint_kind=request.kind)
        return self.house.run("checkpoint.create", vm, lambda: self.shelf.add(point))

    async def ls(self, vm_ref: str | None = None) -> list[Checkpoint]:
        if vm_ref is None:
            return list(self.shelf.all.values())
        vm = self.house.vms.shelf.get(vm_ref)
        return [one for one in self.shelf.all.values() if one.vm_id == vm.id]

    async def show(self, vm_ref: str, ref: str) -> Checkpoint:
        return self._find(vm_ref, ref)

    async def apply(self, vm_ref: str, ref: str) -> Task:
        point = self._find(vm_ref, ref)
        return self.house.run("checkpoint.apply", self.house.vms.shelf.get(vm_ref), lambda: point)

    async def rm(self, vm_ref: str, ref: str) -> Task:
        point = self._find(vm_ref, ref)
        return self.house.run("checkpoint.rm", point, lambda: self.shelf.drop(point.id))


class Images(Service[Image]):
    async def build(self, request: ask.ImageBuild, *, dry_run: bool = False) -> Any:
        if request.name not in ("probe", "debian/12"):
            raise NotFound("image.unknown", f"no recipe for {request.name!r}", remedy="build probe or debian/12")
        if dry_run:
            return self.plan(f"build {request.name}")
        image = Image(name=request.name, size_bytes=2**29, source="packages", ready=True)
        return self.house.run("image.build", image, lambda: self.shelf.add(image))

    async def import_(self, request: ask.ImageImport, *, dry_run: bool = False) -> Any:
        if dry_run:
            return self.plan(f"import {request.name}")
        image = Image(name=request.name, image_kind=request.image_kind, source=request.path, ready=True)
        return self.house.run("image.import", image, lambda: self.shelf.add(image))


class Disks(Service[Disk]):
    def __init__(self, house: FakeHouse) -> None:
        super().__init__(house, Disk)
        self.exports: dict[str, ask.DiskExport] = {}
        self.nbd_socket = "/nowhere/nbd.sock"

    async def create(self, request: ask.DiskCreate, *, dry_run: bool = False) -> Any:
        storage = self.house.storages.shelf.get(request.storage or "default")
        if dry_run:
            return self.plan(f"create disk {request.name}")
        size = request.size_bytes or self.house.images.shelf.get(request.image or "").size_bytes
        return self.shelf.add(Disk(name=request.name, labels=request.labels, size_bytes=size, storage_id=storage.id))

    async def resize(self, ref: str, request: ask.DiskResize) -> Disk:
        if request.size_bytes < self.shelf.get(ref).size_bytes and not request.shrink:
            raise Invalid("disk.shrink", "that is smaller", remedy="use --shrink")
        return self.shelf.change(ref, size_bytes=request.size_bytes)

    async def snapshot(self, ref: str, request: ask.DiskSnapshot) -> Disk:
        disk = self.shelf.get(ref)
        return self.shelf.change(ref, snapshots={**disk.snapshots, request.name: new_id()})

    async def snapshot_rm(self, ref: str, snapshot: str) -> Disk:
        kept = dict(self.shelf.get(ref).snapshots)
        if kept.pop(snapshot, None) is None:
            raise NotFound("snapshot.not_found", f"there is no snapshot {snapshot!r}")
        return self.shelf.change(ref, snapshots=kept)

    async def clone(self, ref: str, request: ask.DiskClone, *, dry_run: bool = False) -> Any:
        disk = self.shelf.get(ref)
        if dry_run:
            return self.plan(f"clone {disk.name}")
        return self.shelf.add(Disk(name=request.name, size_bytes=disk.size_bytes, storage_id=disk.storage_id))

    async def diff(self, ref: str, *, base: str | None = None, snapshot: str | None = None) -> views.DiskDiff:
        found = views.DiskRange(offset_bytes=65536, length_bytes=131072)
        return views.DiskDiff(disk_id=self.shelf.get(ref).id, base=base, changed_bytes=131072, ranges=[found])

    async def attach(self, ref: str, request: ask.DiskAttach) -> Disk:
        return self.shelf.change(ref, vm_id=self.house.vms.shelf.get(request.vm).id)

    async def detach(self, ref: str) -> Disk:
        return self.shelf.change(ref, vm_id=None)

    async def export_open(self, ref: str, request: ask.DiskExport) -> views.OpenExport:
        disk, attachment = self.shelf.get(ref), new_id()
        self.exports[attachment] = request
        return views.OpenExport(
            attachment_id=attachment,
            export=attachment,
            socket=self.nbd_socket,
            size_bytes=disk.size_bytes,
            read_only=not request.writable,
        )

    async def export_close(self, ref: str, attachment_id: str) -> Disk:
        if self.exports.pop(attachment_id, None) is None:
            raise NotFound("export.not_found", "there is no such export")
        return self.shelf.get(ref)


class Storages(Service[Storage]):
    async def create(self, request: ask.StorageCreate, *, dry_run: bool = False) -> Any:
        if "storages.create" in self.house.broken:
            raise self.house.broken.pop("storages.create")
        made = Storage(name=request.name, compression=request.compression, dedup=request.dedup, labels=request.labels)
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)


class Switches(Service[Switch]):
    async def create(self, request: ask.SwitchCreate, *, dry_run: bool = False) -> Any:
        subnet = request.subnet or "10.0.0.0/24"
        made = Switch(name=request.name, switch_kind=request.kind, subnet=subnet, labels=request.labels)
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def show(self, ref: str) -> views.SwitchDetail:
        switch = self.shelf.get(ref)
        return views.SwitchDetail(**{name: getattr(switch, name) for name in Switch.model_fields}, bridge="inbr-1")

    async def set(self, ref: str, request: Any, *, revision: int | None = None, dry_run: bool = False) -> Any:
        if dry_run:
            return views.Plan(summary=f"would change {self.shelf.get(ref).name}", diff="-old\n+new\n")
        named = request.model_dump(exclude_unset=True, include={"name", "labels", "dhcp", "dns_domain", "mtu"})
        return self.shelf.change(ref, revision, **{name: value for name, value in named.items() if value is not None})

    async def rm(self, ref: str, *, dry_run: bool = False) -> Any:
        return self.plan(f"remove {self.shelf.get(ref).name}") if dry_run else self.shelf.drop(ref)


class Nics(Service[Nic]):
    async def create(self, request: ask.NicCreate, *, dry_run: bool = False) -> Any:
        vm, switch = self.house.vms.shelf.get(request.vm), self.house.switches.shelf.get(request.switch)
        count = len(self.shelf.all)
        mac = request.mac or f"52:54:00:00:01:{count % 256:02x}"
        made = Nic(name=f"{vm.name}-{count}", vm_id=vm.id, switch_id=switch.id, mac=mac, address=request.address)
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def show(self, ref: str) -> views.NicDetail:
        nic = self.shelf.get(ref)
        members = {name: getattr(nic, name) for name in Nic.model_fields}
        return views.NicDetail(**members, dropped_packets={"arp": 7}, tap="intp-1")

    async def set(self, ref: str, request: Any, *, revision: int | None = None, dry_run: bool = False) -> Any:
        if dry_run:
            return self.plan(f"change {self.shelf.get(ref).name}")
        nic = self.shelf.get(ref)
        if request.guards is not None:
            nic.guards = nic.guards.model_copy(update=request.guards.model_dump(exclude_none=True))
        return self.shelf.change(ref, revision, **({"address": request.address} if request.address else {}))

    async def rm(self, ref: str, *, dry_run: bool = False) -> Any:
        return self.plan(f"remove {self.shelf.get(ref).name}") if dry_run else self.shelf.drop(ref)


class Repositories(Service[Repository]):
    async def create(self, request: ask.RepositoryCreate, *, dry_run: bool = False) -> Any:
        made = Repository(name=request.name, path=request.path, labels=request.labels)
        return self.plan(f"create {made.name}") if dry_run else self.shelf.add(made)

    async def verify(self, ref: str) -> Task:
        return self.house.run("repository.verify", self.shelf.get(ref), lambda: {"extents": 12})

    async def prune(self, ref: str, request: ask.RepositoryPrune, *, dry_run: bool = False) -> Any:
        repository = self.shelf.get(ref)
        if dry_run:
            entry = {"id": new_id(), "name": "web@1", "reason": "older than 3 days"}
            return views.PrunePlan(summary="would remove 1", remove=[entry])
        return self.house.run("repository.prune", repository, lambda: {"removed": 1})


class Backups(Service[Backup]):
    async def create(self, request: ask.BackupCreate, *, dry_run: bool = False) -> Any:
        repository = self.house.repositories.shelf.get(request.repository)
        guests = [self.house.vms.shelf.get(ref) for ref in request.vms]
        if dry_run:
            return self.plan("back up")

        def finish() -> dict[str, Any]:
            made = []
            for vm in guests:
                name = f"{vm.name}@{len(self.shelf.all)}"
                point = Backup(name=name, repository_id=repository.id, vm_id=vm.id, vm_name=vm.name, taken_at=now())
                made.append(self.shelf.add(point))
            return {"backups": [{"id": one.id, "name": one.name, "vm_name": one.vm_name} for one in made]}

        return self.house.run("backup.create", guests[0], finish)

    async def rm(self, ref: str) -> Task:  # type: ignore[override]
        point = self.shelf.get(ref)
        return self.house.run("backup.rm", point, lambda: self.shelf.drop(point.id))

    async def verify(self, ref: str) -> Task:
        return self.house.run("backup.verify", self.shelf.get(ref), lambda: {"extents": 3})

    async def restore(self, ref: str, request: ask.BackupRestore, *, dry_run: bool = False) -> Any:
        point = self.shelf.get(ref)
        if dry_run:
            return self.plan(f"restore {point.name}")
        vm = Vm(name=request.as_name)
        vm.status.state = VmState.STOPPED
        return self.house.run("backup.restore", vm, lambda: self.house.vms.shelf.add(vm))


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
            task = self.shelf.get(ref)
            if task.revision > seen:
                seen = task.revision
                yield task.model_copy(deep=True)
            if task.state in ENDED:
                return
            await asyncio.sleep(0.005)


class Host:
    def __init__(self, house: FakeHouse) -> None:
        self.house = house
        self.started_at = datetime.now(UTC)

    async def show(self) -> views.HostView:
        return views.HostView(
            inn_id="test",
            inn_uuid=new_id(),
            version="0",
            state_dir="/nowhere",
            daemon_pid=os.getpid(),
            started_at=self.started_at,
            vms={"running": len(self.house.vms.shelf.all)},
        )

    async def health(self) -> views.Health:
        return views.Health(inn_id="test", version="0", daemon_pid=os.getpid(), fabric=True)

    async def doctor(self) -> list[views.Check]:
        return [
            views.Check(name="root", state="ok", detail="runs as root", essential=True),
            views.Check(name="kvm", state="warning", detail="emulated", cause="no /dev/kvm", remedy="enable it"),
        ]

    async def stop(self, request: ask.HostStop) -> Task:
        return self.house.run("host.stop", None, lambda: None)


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
        self.switches = Switches(self, Switch)
        self.nics = Nics(self, Nic)
        self.repositories = Repositories(self, Repository)
        self.backups = Backups(self, Backup)
        self.tasks = Tasks(self)
        self.host = Host(self)
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
