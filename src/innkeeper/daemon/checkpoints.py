"""Checkpoints: points that a vm can be put back to.

production: its disks, frozen by the agent where it answers; applying one restarts the guest. standard: its memory and
its disks of one instant; applying one goes on from that instant.
"""

from __future__ import annotations

import shutil

from innkeeper.compute.memory import MemoryImage
from innkeeper.daemon.power import Power
from innkeeper.daemon.quiesce import Quiescer
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.tpm import keep_tpm, put_tpm_back
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, NotFound, Unavailable
from innkeeper.model.resources import (
    Checkpoint,
    CheckpointKind,
    Disk,
    Image,
    Task,
    Vm,
    VmSpec,
    VmState,
    new_id,
)
from innkeeper.tasks.engine import Run, Step, TaskKind

MAX_CHECKPOINTS = 50


def disk_ids(spec: VmSpec) -> list[str]:
    """All disks that belong to the vm's state: those attached and the one with the UEFI variables."""
    nvram = [spec.nvram_disk_id] if spec.nvram_disk_id else []
    return [link.disk_id for link in spec.disks if not link.read_only] + nvram


class Checkpoints:
    """The ``checkpoint`` noun."""

    def __init__(self, rooms: Rooms, power: Power, quiescer: Quiescer) -> None:
        self._rooms = rooms
        self._power = power
        self._quiescer = quiescer
        rooms.engine.register(
            TaskKind(
                "checkpoint.create",
                [
                    Step("record it", self._record, self._forget, weight=0.1),
                    Step("take the snapshots", self._take, self._untake),
                    Step("finish", self._finish, weight=0.1),
                ],
            )
        )
        rooms.engine.register(
            TaskKind(
                "checkpoint.apply",
                # One step, for it must be repeated as a whole: memory may only meet the disks of its instant.
                [Step("put it back", self._apply)],
                after_crash="resume",
                cancellable=False,
            )
        )
        rooms.engine.register(
            TaskKind("checkpoint.rm", [Step("remove it", self._remove)], after_crash="resume", cancellable=False)
        )

    # --- for other services ---

    def resolve(self, vm: Vm, ref: str) -> Checkpoint:
        """The vm's checkpoint with that id or name.

        Raises ``NotFound`` (``checkpoint.not_found``).
        """
        for checkpoint in self._rooms.store.find(Checkpoint, vm_id=vm.id):
            if ref in (checkpoint.id, checkpoint.name, checkpoint.name.partition("/")[2]):
                return checkpoint
        raise NotFound(
            "checkpoint.not_found",
            f"vm {vm.name!r} has no checkpoint {ref!r}",
            remedy=f"'inn checkpoint ls {vm.name}' lists them",
        )

    def spec_of(self, vm: Vm, checkpoint: Checkpoint) -> VmSpec:
        """What the vm was then, without what it can no longer have: read-only disks given away, an ISO removed."""
        spec, store = checkpoint.spec_then, self._rooms.store
        own = {disk.id for disk in store.find(Disk, vm_id=vm.id)} | set(checkpoint.snapshots)
        iso_gone = spec.iso_image_id is not None and not store.find(Image, id=spec.iso_image_id)
        return spec.model_copy(
            update={
                "disks": [link for link in spec.disks if link.disk_id in own],
                "iso_image_id": None if iso_gone else spec.iso_image_id,
            }
        )

    async def discard(self, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint, its snapshots and its memory; its children become its parent's."""
        store = self._rooms.store
        for child in store.find(Checkpoint, parent_id=checkpoint.id):
            self._rooms.change(child, None, parent_id=checkpoint.parent_id)
        for vm in store.ls(Vm):
            if vm.status.checkpoint_id == checkpoint.id:
                vm.status.checkpoint_id = checkpoint.parent_id
                store.update(vm)
        for snapshot_id in checkpoint.snapshots.values():
            await self._rooms.fabric.snapshot_rm(snapshot_id)
        shutil.rmtree(self._rooms.paths.checkpoint(checkpoint.id), ignore_errors=True)
        store.delete("checkpoint", checkpoint.id)

    # --- create ---

    async def create(self, vm_ref: str, request: ask.CheckpointCreate, *, dry_run: bool = False) -> Task | views.Plan:
        """Raises ``Conflict`` (``checkpoint.name_taken``, ``checkpoint.too_many``, ``vm.not_running``)."""
        vm = self._rooms.store.get(Vm, vm_ref)
        name = f"{vm.name}/{request.name}"
        self._rooms.check_name_free(Checkpoint, name)
        if len(self._rooms.store.find(Checkpoint, vm_id=vm.id)) >= MAX_CHECKPOINTS:
            raise Conflict(
                "checkpoint.too_many",
                f"vm {vm.name!r} has {MAX_CHECKPOINTS} checkpoints",
                remedy="remove some that are no longer needed",
            )
        if request.kind == CheckpointKind.STANDARD and vm.status.state not in (VmState.RUNNING, VmState.PAUSED):
            raise Conflict(
                "vm.not_running",
                f"vm {vm.name!r} is {vm.status.state}: it has no memory to keep",
                remedy="start it, or make a production checkpoint",
            )
        checkpoint = Checkpoint(
            name=name,
            labels=request.labels,
            vm_id=vm.id,
            parent_id=vm.status.checkpoint_id,
            checkpoint_kind=request.kind,
            snapshots={disk_id: new_id() for disk_id in disk_ids(vm.spec)},
            spec_then=vm.spec,
        )
        if dry_run:
            names = [self._rooms.store.get(Disk, disk_id).name for disk_id in checkpoint.snapshots]
            return views.Plan(
                summary=f"create {request.kind} checkpoint {request.name} of vm {vm.name}",
                steps=[f"snapshot disk {name}" for name in names],
            )
        return self._rooms.engine.start(
            "checkpoint.create",
            {"checkpoint": checkpoint.model_dump(mode="json"), "require_frozen": request.frozen},
            target_kind="vm",
            target_id=vm.id,
            target_name=vm.name,
        )

    @staticmethod
    def _wanted(run: Run) -> Checkpoint:
        return Checkpoint.model_validate(run.parameters["checkpoint"])

    async def _record(self, run: Run) -> None:
        wanted = self._wanted(run)
        if not self._rooms.store.find(Checkpoint, id=wanted.id):
            self._rooms.store.create(wanted)

    async def _forget(self, run: Run) -> None:
        self._rooms.store.delete("checkpoint", self._wanted(run).id)

    async def _take(self, run: Run) -> None:
        checkpoint = self._wanted(run)
        vm = self._rooms.store.get(Vm, checkpoint.vm_id)
        if checkpoint.checkpoint_kind == CheckpointKind.PRODUCTION:
            run.context["frozen"] = await self._quiescer.snapshot(
                vm, checkpoint.snapshots, quiesce="require" if run.parameters["require_frozen"] else "auto"
            )
            await keep_tpm(self._power, vm, self._rooms.paths.checkpoint(checkpoint.id))
            return
        wanted = {snapshot_id: disk_id for disk_id, snapshot_id in checkpoint.snapshots.items()}

        async def at_that_instant() -> None:
            await self._rooms.fabric.snapshot_create(wanted)
            await keep_tpm(self._power, vm, directory)

        directory = self._rooms.paths.checkpoint(checkpoint.id)
        image = MemoryImage(directory)
        await self._power.keep_memory(vm, image, at_that_instant, run.progress)
        run.context["memory_bytes"] = image.size_bytes

    async def _untake(self, run: Run) -> None:
        checkpoint = self._wanted(run)
        for snapshot_id in checkpoint.snapshots.values():
            await self._rooms.fabric.snapshot_rm(snapshot_id)
        shutil.rmtree(self._rooms.paths.checkpoint(checkpoint.id), ignore_errors=True)

    async def _finish(self, run: Run) -> None:
        checkpoint = self._rooms.store.get(Checkpoint, self._wanted(run).id)
        self._rooms.change(
            checkpoint,
            None,
            ready=True,
            frozen=bool(run.context.get("frozen")),
            memory_bytes=int(run.context.get("memory_bytes", 0)),
            has_tpm_state=checkpoint.spec_then.tpm,
        )
        vm = self._rooms.store.get(Vm, checkpoint.vm_id)
        vm.status.checkpoint_id = checkpoint.id
        self._rooms.store.update(vm)
        run.result["checkpoint_id"] = checkpoint.id

    # --- list and apply ---

    async def ls(self, vm_ref: str | None = None) -> list[Checkpoint]:
        if vm_ref is None:
            return self._rooms.store.ls(Checkpoint)
        vm = self._rooms.store.get(Vm, vm_ref)
        return sorted(self._rooms.store.find(Checkpoint, vm_id=vm.id), key=lambda point: point.created_at)

    async def show(self, vm_ref: str, ref: str) -> Checkpoint:
        return self.resolve(self._rooms.store.get(Vm, vm_ref), ref)

    async def set(self, vm_ref: str, ref: str, request: ask.ResourceSet, *, revision: int | None = None) -> Checkpoint:
        """Raises ``Conflict`` (``checkpoint.name_taken``, ``state.stale``)."""
        vm = self._rooms.store.get(Vm, vm_ref)
        if request.name is not None:
            request = request.model_copy(update={"name": f"{vm.name}/{request.name}"})
        return self._rooms.apply_set(self.resolve(vm, ref), request, revision)

    async def apply(self, vm_ref: str, ref: str) -> Task:
        """Raises ``Conflict`` (``checkpoint.not_ready``)."""
        vm = self._rooms.store.get(Vm, vm_ref)
        checkpoint = self.resolve(vm, ref)
        if not checkpoint.ready:
            detail = f"checkpoint {ref!r} is still being made"
            raise Conflict("checkpoint.not_ready", detail, remedy="wait for its task")
        for disk_id in checkpoint.snapshots:
            disk = self._rooms.store.get(Disk, disk_id)
            if disk.vm_id not in (None, vm.id):
                self._raise_elsewhere(disk)
        return self._rooms.engine.start(
            "checkpoint.apply",
            {"vm_id": vm.id, "checkpoint_id": checkpoint.id, "was_running": self._power.has_process(vm)},
            target_kind="vm",
            target_id=vm.id,
            target_name=vm.name,
        )

    def _raise_elsewhere(self, disk: Disk) -> None:
        raise Conflict(
            "disk.attached",
            f"disk {disk.name!r} of the checkpoint now belongs to another vm",
            remedy=f"detach it first: inn disk detach {disk.name}",
        )

    def _subject(self, run: Run) -> tuple[Vm, Checkpoint]:
        store = self._rooms.store
        return store.get(Vm, run.parameters["vm_id"]), store.get(Checkpoint, run.parameters["checkpoint_id"])

    async def _apply(self, run: Run) -> None:
        vm, checkpoint = self._subject(run)
        run.progress(0.0, "ending the guest")
        await self._power.poweroff_now(vm)
        run.progress(0.2, "putting the disks back")
        await self._put_back(vm, checkpoint)
        await self._start_again(run)

    async def _put_back(self, vm: Vm, checkpoint: Checkpoint) -> None:
        store = self._rooms.store
        for disk_id, snapshot_id in checkpoint.snapshots.items():
            await self._rooms.fabric.disk_revert(disk_id, snapshot_id)
            size_bytes = int((await self._rooms.fabric.disk_show(disk_id))["size_bytes"])
            self._rooms.change(store.get(Disk, disk_id), None, vm_id=vm.id, size_bytes=size_bytes)
        spec = self.spec_of(vm, checkpoint)
        then = {link.disk_id for link in spec.disks}
        for disk in store.find(Disk, vm_id=vm.id):
            if disk.id not in then and disk.role == "data":
                self._rooms.change(disk, None, vm_id=None)
        put_tpm_back(self._power, vm, self._rooms.paths.checkpoint(checkpoint.id))
        vm = store.get(Vm, vm.id)
        vm.spec = spec.model_copy(update={"protect": vm.spec.protect})
        vm.status.checkpoint_id = checkpoint.id
        vm.status.generation_id = new_id()
        store.update(vm)

    async def _start_again(self, run: Run) -> None:
        vm, checkpoint = self._subject(run)
        if checkpoint.checkpoint_kind == CheckpointKind.STANDARD:
            image = MemoryImage(self._rooms.paths.checkpoint(checkpoint.id))
            if not image.exists():
                raise Unavailable(
                    "checkpoint.memory_gone",
                    f"the memory of checkpoint {checkpoint.name!r} is gone",
                    cause=f"there is none in {image.directory}",
                    remedy=f"its disks are back; start the vm: inn vm start {vm.name}",
                )
            await self._power.start_now(vm, run, memory=image)
        elif run.parameters["was_running"]:
            await self._power.start_now(vm, run)

    async def rm(self, vm_ref: str, ref: str) -> Task:
        vm = self._rooms.store.get(Vm, vm_ref)
        checkpoint = self.resolve(vm, ref)
        return self._rooms.engine.start(
            "checkpoint.rm",
            {"checkpoint_id": checkpoint.id},
            target_kind="vm",
            target_id=vm.id,
            target_name=vm.name,
        )

    async def _remove(self, run: Run) -> None:
        for checkpoint in self._rooms.store.find(Checkpoint, id=run.parameters["checkpoint_id"]):
            await self.discard(checkpoint)
