"""The fake house's guests and what is kept of them: checkpoints, repositories, backups."""

from __future__ import annotations

from typing import Any

from fake_shelf import Service

from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, NotFound, Unavailable
from innkeeper.model.resources import (
    Backup,
    Checkpoint,
    Nic,
    Repository,
    Task,
    Vm,
    VmSpec,
    VmState,
    VmStatus,
    new_id,
    now,
)


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
                card.vlan = nic.vlan
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
            raise Unavailable(
                "agent.absent", f"the agent of {vm.name} does not answer", remedy="wait until it has booted"
            )
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

    async def set(  # type: ignore[override]
        self, vm_ref: str, ref: str, request: ask.ResourceSet, *, revision: int | None = None
    ) -> Checkpoint:
        point = self._find(vm_ref, ref)
        if request.name is not None:
            request = request.model_copy(update={"name": f"{point.name.partition('/')[0]}/{request.name}"})
        return self.shelf.set(point.id, request, revision)

    async def apply(self, vm_ref: str, ref: str) -> Task:
        point = self._find(vm_ref, ref)
        return self.house.run("checkpoint.apply", self.house.vms.shelf.get(vm_ref), lambda: point)

    async def rm(self, vm_ref: str, ref: str) -> Task:
        point = self._find(vm_ref, ref)
        return self.house.run("checkpoint.rm", point, lambda: self.shelf.drop(point.id))


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
