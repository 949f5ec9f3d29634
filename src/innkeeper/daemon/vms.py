"""Guests as documents: create, clone, rename, set, remove. What runs them is in ``power``."""

from __future__ import annotations

from typing import Any

from innkeeper.compute import seed
from innkeeper.compute.inputs import check_room
from innkeeper.daemon.allocate import free_uid
from innkeeper.daemon.assembly import Assembly, Blueprint, DiskPlan
from innkeeper.daemon.checkpoints import Checkpoints
from innkeeper.daemon.disks import Disks
from innkeeper.daemon.husks import drop_husks_of_vm
from innkeeper.daemon.machines import check_memory
from innkeeper.daemon.nics import Nics, like
from innkeeper.daemon.power import Power
from innkeeper.daemon.quiesce import Quiescer
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.seeds import check_static
from innkeeper.daemon.tpm import put_tpm_back, restore_tpm, tpm_at_rest
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, Invalid, Refused
from innkeeper.model.resources import (
    Checkpoint,
    Disk,
    DiskLink,
    Firmware,
    Image,
    Nic,
    Switch,
    Task,
    Vm,
    VmSpec,
    VmState,
    VmStatus,
    new_id,
)
from innkeeper.model.sizes import format_size
from innkeeper.system.paths import VM_UIDS
from innkeeper.tasks.engine import Run, Step, TaskKind


def _check(vm: Vm) -> None:
    """Raises ``Invalid`` (``vm.secure_boot_needs_uefi``, ``vm.tpm_needs_uefi``, ``seed.*``) for what cannot start."""
    spec = vm.spec
    seed.seed_files(seed.seed_inputs(vm))
    if spec.firmware != Firmware.UEFI and spec.secure_boot:
        raise Invalid("vm.secure_boot_needs_uefi", "secure boot needs UEFI firmware", remedy="create it with UEFI")
    if spec.firmware != Firmware.UEFI and spec.tpm:
        raise Invalid("vm.tpm_needs_uefi", "a TPM needs UEFI firmware", remedy="create it with UEFI")


class Vms:
    """The ``vm`` noun."""

    def __init__(
        self,
        rooms: Rooms,
        disks: Disks,
        nics: Nics,
        power: Power,
        checkpoints: Checkpoints,
        assembly: Assembly,
        quiescer: Quiescer,
    ) -> None:
        self._rooms = rooms
        self._disks = disks
        self._nics = nics
        self._power = power
        self._checkpoints = checkpoints
        self._quiescer = quiescer
        rooms.engine.register(TaskKind("vm.create", [*assembly.steps(), *assembly.last_steps()]))
        rooms.engine.register(
            TaskKind(
                "vm.clone",
                [
                    Step("take a snapshot", self._snapshot_source, self._drop_snapshots, weight=0.2),
                    *assembly.steps(),
                    Step("copy its TPM", self._copy_tpm, weight=0.1),
                    Step("drop the snapshot", self._drop_snapshots, weight=0.2),
                    *assembly.last_steps(),
                ],
            )
        )
        rooms.engine.register(
            TaskKind("vm.rm", [Step("remove the vm", self._remove)], after_crash="resume", cancellable=False)
        )

    # --- create ---

    async def create(self, request: ask.VmCreate, *, dry_run: bool = False) -> Task | views.Plan:
        """Raises ``NotFound`` for an unknown image, switch, storage or disk; ``Invalid``; ``Conflict``."""
        self._rooms.check_name_free(Vm, request.name)
        blueprint = self._blueprint(request)
        if dry_run:
            return self._plan(request, blueprint)
        return self._rooms.engine.start(
            "vm.create",
            {"blueprint": blueprint.model_dump(mode="json"), "start": request.start},
            target_kind="vm",
            target_id=blueprint.vm.id,
            target_name=request.name,
        )

    def free_uid(self) -> int:
        """A uid of the inn's block that no vm has."""
        paths = self._rooms.paths
        return free_uid(paths.first_uid, VM_UIDS, (vm.status.uid for vm in self._rooms.store.ls(Vm)))

    def _blueprint(self, request: ask.VmCreate) -> Blueprint:
        plans, links = self._disk_plans(request)
        for wish in request.nics:
            self._nics.check_wish(wish)
        iso_id = None
        if request.iso is not None:
            iso_id = self._iso(request.iso).id
        spec = VmSpec(
            **request.model_dump(
                include={
                    "cpus",
                    "memory_bytes",
                    "firmware",
                    "secure_boot",
                    "tpm",
                    "iso_boot_first",
                    "cloud_init",
                    "protect",
                    "autostart",
                    "autostop",
                    "description",
                }
            ),
            iso_image_id=iso_id,
            disks=links,
            nvram_disk_id=new_id() if request.firmware == Firmware.UEFI else None,
        )
        vm = Vm(name=request.name, labels=request.labels, spec=spec, status=VmStatus(uid=self.free_uid()))
        _check(vm)
        if any(wish.static for wish in request.nics):
            check_static(vm)
        check_room(disks=len(links), nics=len(request.nics))
        if request.start:
            check_memory(vm)
        for plan in plans:
            plan.disk.vm_id = vm.id
        return Blueprint(vm=vm, disks=plans, nics=request.nics)

    def _iso(self, ref: str) -> Image:
        image = self._rooms.store.get(Image, ref)
        if image.image_kind != "iso":
            raise Invalid("image.not_iso", f"image {image.name!r} is not an ISO", remedy="import it with --iso")
        return image

    def _disk_plans(self, request: ask.VmCreate) -> tuple[list[DiskPlan], list[DiskLink]]:
        plans: list[DiskPlan] = []
        links: list[DiskLink] = []
        if request.image is not None or request.disk_bytes is not None:
            snapshot_id, size_bytes = None, request.disk_bytes or 0
            if request.image is not None:
                image = self._rooms.store.get(Image, request.image)
                snapshot_id, size_bytes = self._disks.of_image(image, request.disk_bytes)
            disk = self._disks.blank(f"{request.name}-disk", size_bytes, request.storage)
            plans.append(DiskPlan(disk=disk, snapshot_id=snapshot_id))
            links.append(DiskLink(disk_id=disk.id, boot_index=1))
        for number, wish in enumerate(request.disks, start=2):
            if wish.disk is not None:
                disk = self._rooms.store.get(Disk, wish.disk)
                self._disks.check_loose(disk)
            else:
                if wish.name is not None:
                    self._rooms.check_name_free(Disk, wish.name)
                name = wish.name or f"{request.name}-disk{number}"
                disk = self._disks.blank(name, wish.size_bytes or 0, request.storage)
                plans.append(DiskPlan(disk=disk))
            links.append(DiskLink(disk_id=disk.id, boot_index=None if links else 1))
        return plans, links

    @staticmethod
    def _plan(request: ask.VmCreate, blueprint: Blueprint) -> views.Plan:
        steps = []
        for plan in blueprint.disks:
            origin = f"clone of image {request.image}" if plan.snapshot_id else "empty"
            steps.append(f"make disk {plan.disk.name}: {format_size(plan.disk.size_bytes)}, {origin}")
        steps += [f"plug a card into switch {wish.switch}" for wish in blueprint.nics]
        if blueprint.vm.spec.nvram_disk_id:
            steps.append("make a disk for the UEFI variables")
        if request.start:
            steps.append("start it")
        size = format_size(request.memory_bytes)
        return views.Plan(summary=f"create vm {request.name}: {request.cpus} cpus, {size}", steps=steps)

    # --- clone ---

    async def clone(self, ref: str, request: ask.VmClone, *, dry_run: bool = False) -> Task | views.Plan:
        """Raises ``Conflict`` (``vm.name_taken``)."""
        source = self._rooms.store.get(Vm, ref)
        self._rooms.check_name_free(Vm, request.name)
        checkpoint = self._checkpoints.resolve(source, request.checkpoint) if request.checkpoint else None
        snapshots = {disk_id: new_id() for disk_id in self._disk_ids(source.spec)}
        if checkpoint is not None:
            snapshots = dict(checkpoint.snapshots)
        blueprint = self.copy_blueprint(
            source.model_copy(update={"spec": self._checkpoints.spec_of(source, checkpoint)}) if checkpoint else source,
            request.name,
            snapshots,
            labels=source.labels if request.labels is None else request.labels,
        )
        if dry_run:
            point = f"checkpoint {request.checkpoint}" if checkpoint else "this instant"
            return views.Plan(
                summary=f"clone vm {source.name} as {request.name}, as of {point}",
                steps=[f"clone disk {plan.disk.name}" for plan in blueprint.disks],
            )
        return self._rooms.engine.start(
            "vm.clone",
            {
                "blueprint": blueprint.model_dump(mode="json"),
                "source_id": source.id,
                "checkpoint_id": checkpoint.id if checkpoint else None,
                "temporary_snapshots": {} if checkpoint else snapshots,
                "start": request.start,
            },
            target_kind="vm",
            target_id=blueprint.vm.id,
            target_name=request.name,
        )

    @staticmethod
    def _disk_ids(spec: VmSpec) -> list[str]:
        nvram = [spec.nvram_disk_id] if spec.nvram_disk_id else []
        return [link.disk_id for link in spec.disks] + nvram

    def copy_blueprint(self, source: Vm, name: str, snapshots: dict[str, str], *, labels: dict[str, str]) -> Blueprint:
        """A new vm like ``source`` whose disks stand on ``snapshots`` (disk id -> fabric snapshot id)."""
        vm_id, plans, links = new_id(), [], []
        # A disk that is attached read-only belongs to no checkpoint of this vm.
        kept = [link for link in source.spec.disks if link.disk_id in snapshots]
        for number, link in enumerate(kept, start=1):
            disk = self._rooms.store.get(Disk, link.disk_id)
            copy = self._disks.blank(f"{name}-disk{number if number > 1 else ''}", disk.size_bytes, disk.storage_id)
            plans.append(DiskPlan(disk=copy.model_copy(update={"vm_id": vm_id}), snapshot_id=snapshots[link.disk_id]))
            links.append(link.model_copy(update={"disk_id": copy.id}))
        nvram_id = source.spec.nvram_disk_id
        spec = source.spec.model_copy(
            update={"disks": links, "nvram_disk_id": new_id() if nvram_id else None, "protect": False}
        )
        nics = sorted(self._rooms.store.find(Nic, vm_id=source.id), key=lambda nic: nic.index)
        return Blueprint(
            vm=Vm(id=vm_id, name=name, labels=labels, spec=spec, status=VmStatus(uid=self.free_uid())),
            disks=plans,
            nics=[like(nic, self._rooms.store.get(Switch, nic.switch_id)) for nic in nics],
            nvram_snapshot_id=snapshots[nvram_id] if nvram_id else None,
        )

    async def _snapshot_source(self, run: Run) -> None:
        wanted = run.parameters["temporary_snapshots"]
        if wanted:
            source = self._rooms.store.get(Vm, run.parameters["source_id"])
            frozen = await self._quiescer.snapshot(source, wanted, quiesce="auto")
            run.context["frozen"] = frozen

    async def _copy_tpm(self, run: Run) -> None:
        """The clone's TPM is the source's, of now or of the checkpoint; its removal is that of the vm's directory."""
        store = self._rooms.store
        copy = store.get(Vm, Blueprint.model_validate(run.parameters["blueprint"]).vm.id)
        if not copy.spec.tpm:
            return
        if run.parameters["checkpoint_id"]:
            put_tpm_back(self._power, copy, self._rooms.paths.checkpoint(run.parameters["checkpoint_id"]))
            return
        state = await tpm_at_rest(self._power, store.get(Vm, run.parameters["source_id"]))
        if state is not None:
            restore_tpm(self._power, copy, state)

    async def _drop_snapshots(self, run: Run) -> None:
        for snapshot_id in run.parameters["temporary_snapshots"].values():
            await self._rooms.fabric.snapshot_rm(snapshot_id)

    # --- show, set, rename ---

    async def ls(self) -> list[Vm]:
        return self._rooms.store.ls(Vm)

    async def show(self, ref: str) -> views.VmDetail:
        store, vm = self._rooms.store, self._rooms.store.get(Vm, ref)
        names = {disk.id: disk.name for disk in store.ls(Disk)}
        return views.VmDetail(
            **vm.model_dump(),
            nics=sorted(store.find(Nic, vm_id=vm.id), key=lambda nic: nic.index),
            disk_names={link.disk_id: names.get(link.disk_id, "?") for link in vm.spec.disks},
            iso_name=store.get(Image, vm.spec.iso_image_id).name if vm.spec.iso_image_id else None,
            sockets=self._power.sockets(vm),
        )

    async def set(self, ref: str, request: ask.VmSet, *, revision: int | None = None) -> Vm:
        """Raises ``NotFound``, ``Invalid`` (``vm.tpm_needs_uefi``, …), ``Conflict`` (``state.stale``)."""
        vm = self._rooms.store.get(Vm, ref)
        wanted: dict[str, Any] = {
            key: getattr(request, key) for key in request.model_fields_set if key not in ("labels", "iso", "boot_order")
        }
        spec = vm.spec.model_copy(update={k: v for k, v in wanted.items() if v is not None or k == "cloud_init"})
        if "iso" in request.model_fields_set:
            spec.iso_image_id = self._iso(request.iso).id if request.iso else None
        if request.boot_order is not None:
            spec.disks = self._ordered(vm, request.boot_order)
        _check(vm.model_copy(update={"spec": spec}))
        if spec.secure_boot != vm.spec.secure_boot:
            raise Invalid(
                "vm.secure_boot_fixed",
                f"secure boot of vm {vm.name!r} cannot be changed",
                cause="its UEFI variables were made with it, or without",
                remedy="make a new vm with its disks",
            )
        labels = vm.labels if request.labels is None else request.labels
        stored = self._rooms.change(vm, revision, spec=spec, labels=labels)
        if spec.iso_image_id != vm.spec.iso_image_id:
            await self._power.change_iso(stored, vm.spec.iso_image_id)
        return self._rooms.store.get(Vm, vm.id)

    def _ordered(self, vm: Vm, refs: list[str]) -> list[DiskLink]:
        order = {self._rooms.store.get(Disk, ref).id: number for number, ref in enumerate(refs, start=1)}
        strange = set(order) - {link.disk_id for link in vm.spec.disks}
        if strange:
            detail = f"vm {vm.name!r} does not have all those disks"
            raise Invalid("vm.not_its_disk", detail, remedy="attach them first")
        return [link.model_copy(update={"boot_index": order.get(link.disk_id)}) for link in vm.spec.disks]

    async def rename(self, ref: str, request: ask.VmRename) -> Vm:
        """The vm's cards, default disk names, checkpoints and DNS name follow."""
        store, vm = self._rooms.store, self._rooms.store.get(Vm, ref)
        old, renamed = vm.name, self._rooms.change(vm, None, name=request.name)
        for checkpoint in store.find(Checkpoint, vm_id=vm.id):
            self._rooms.change(checkpoint, None, name=f"{request.name}/{checkpoint.name.partition('/')[2]}")
        for disk in store.find(Disk, vm_id=vm.id):
            rest = disk.name.removeprefix(f"{old}-")
            wish = f"{request.name}-{rest}"
            if rest != disk.name and not any(other.name == wish for other in store.ls(Disk)):
                self._rooms.change(disk, None, name=wish)
        await self._nics.follow_rename(renamed)
        return renamed

    # --- remove ---

    async def rm(self, ref: str, *, with_disks: bool = False, force: bool = False) -> Task:
        """Raises ``Refused`` (``vm.protected``), ``Conflict`` (``vm.running``)."""
        vm = self._rooms.store.get(Vm, ref)
        if vm.spec.protect:
            raise Refused(
                "vm.protected", f"vm {vm.name!r} is protected", remedy=f"inn vm set {vm.name} --no-protect, then again"
            )
        if self._power.has_process(vm) and not force:
            raise Conflict("vm.running", f"vm {vm.name!r} runs", remedy="shut it down first, or say --force")
        if vm.status.state == VmState.CREATING:
            raise Conflict("vm.creating", f"vm {vm.name!r} is still being made", remedy="cancel its task instead")
        return self._rooms.engine.start(
            "vm.rm",
            {"vm_id": vm.id, "with_disks": with_disks},
            target_kind="vm",
            target_id=vm.id,
            target_name=vm.name,
        )

    async def _remove(self, run: Run) -> None:
        store, vm_id = self._rooms.store, run.parameters["vm_id"]
        if not any(vm.id == vm_id for vm in store.ls(Vm)):
            return
        vm = store.get(Vm, vm_id)
        await self._power.poweroff_now(vm)
        vm = store.get(Vm, vm_id)
        vm.status.state = VmState.DELETING
        vm = store.update(vm)
        for checkpoint in store.find(Checkpoint, vm_id=vm_id):
            await self._checkpoints.discard(checkpoint)
        for nic in store.find(Nic, vm_id=vm_id):
            await self._nics.remove(nic)
        await drop_husks_of_vm(self._rooms, vm_id)
        for disk in store.find(Disk, vm_id=vm_id):
            if run.parameters["with_disks"] or disk.role == "nvram":
                await self._disks.unmake(disk.id)
            else:
                self._rooms.change(disk, None, vm_id=None)
        self._power.forget(vm)
        store.delete("vm", vm_id)

    # --- what runs them ---

    async def start(self, ref: str) -> Task:
        return self._power.begin("vm.start", self._rooms.store.get(Vm, ref))

    async def shutdown(self, ref: str, request: ask.VmShutdown) -> Task:
        return self._power.begin("vm.shutdown", self._rooms.store.get(Vm, ref), **request.model_dump())

    async def poweroff(self, ref: str) -> Task:
        return self._power.begin("vm.poweroff", self._rooms.store.get(Vm, ref))

    async def pause(self, ref: str) -> Task:
        return self._power.begin("vm.pause", self._rooms.store.get(Vm, ref))

    async def resume(self, ref: str) -> Task:
        return self._power.begin("vm.resume", self._rooms.store.get(Vm, ref))

    async def reset(self, ref: str) -> Task:
        return self._power.begin("vm.reset", self._rooms.store.get(Vm, ref))

    async def save(self, ref: str) -> Task:
        return self._power.begin("vm.save", self._rooms.store.get(Vm, ref))

    async def exec(self, ref: str, request: ask.VmExec) -> views.ExecResult:
        return await self._power.exec(self._rooms.store.get(Vm, ref), request)
