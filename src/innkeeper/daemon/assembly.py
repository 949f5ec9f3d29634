"""How a vm comes to be, whatever it is made from: recorded, its disks made, and only then shown as stopped.

Create, clone and restore each make a ``Blueprint`` and run the same steps; deletion is the same steps taken back.
"""

from __future__ import annotations

from pydantic import Field

from innkeeper.daemon.disks import Disks
from innkeeper.daemon.nics import Nics
from innkeeper.daemon.nvram import Nvram
from innkeeper.daemon.rooms import Rooms
from innkeeper.model import requests as ask
from innkeeper.model.problems import NotFound
from innkeeper.model.resources import Disk, Nic, Part, Uuid, Vm, VmState
from innkeeper.tasks.engine import Run, Step


class DiskPlan(Part):
    """A disk to make: empty, or standing on the fabric snapshot ``snapshot_id``."""

    disk: Disk
    snapshot_id: Uuid | None = None


class Blueprint(Part):
    """A vm to be. ``spec.disks`` names existing disks and those in ``disks``; ``nics`` get their macs when made."""

    vm: Vm
    disks: list[DiskPlan] = Field(default_factory=list)
    nics: list[ask.VmNic] = Field(default_factory=list)
    nvram_snapshot_id: Uuid | None = None
    """Where the UEFI variables come from; None with a ``nvram_disk_id``: the firmware's own template."""


class Assembly:
    """The steps that turn a blueprint (the task's parameter ``blueprint``) into a vm."""

    def __init__(self, rooms: Rooms, disks: Disks, nics: Nics, nvram: Nvram) -> None:
        self._rooms = rooms
        self._disks = disks
        self._nics = nics
        self._nvram = nvram

    def steps(self) -> list[Step]:
        """Record, make the disks, make the firmware variables; each undone by what deletes it."""
        return [
            Step("record the vm", self._record, self._forget),
            Step("make its disks", self._make_disks, self._unmake_disks),
            Step("make its firmware variables", self._make_nvram, self._unmake_nvram, weight=0.2),
        ]

    @staticmethod
    def finish_step(rooms: Rooms) -> Step:
        """The step after which the vm exists for everybody."""

        async def finish(run: Run) -> None:
            blueprint = Blueprint.model_validate(run.parameters["blueprint"])
            vm = rooms.store.get(Vm, blueprint.vm.id)
            if vm.status.state == VmState.CREATING:
                vm.status.state = VmState.STOPPED
                rooms.store.update(vm)
            run.result.update(vm_id=vm.id, vm_name=vm.name)

        return Step("finish", finish, weight=0.1)

    async def _record(self, run: Run) -> None:
        blueprint, store = Blueprint.model_validate(run.parameters["blueprint"]), self._rooms.store
        try:
            vm = store.get(Vm, blueprint.vm.id)
        except NotFound:
            vm = store.create(blueprint.vm)
        new = {plan.disk.id for plan in blueprint.disks}
        for link in vm.spec.disks:
            if link.disk_id in new:
                continue
            disk = store.get(Disk, link.disk_id)
            if disk.vm_id != vm.id:
                self._disks.check_loose(disk)
                self._rooms.change(disk, None, vm_id=vm.id)
        made = len(store.find(Nic, vm_id=vm.id))
        for wish in blueprint.nics[made:]:
            self._nics.allocate(vm, wish)

    async def _forget(self, run: Run) -> None:
        blueprint, store = Blueprint.model_validate(run.parameters["blueprint"]), self._rooms.store
        for nic in store.find(Nic, vm_id=blueprint.vm.id):
            store.delete("nic", nic.id)
        for disk in store.find(Disk, vm_id=blueprint.vm.id):
            self._rooms.change(disk, None, vm_id=None)
        store.delete("vm", blueprint.vm.id)

    async def _make_disks(self, run: Run) -> None:
        blueprint = Blueprint.model_validate(run.parameters["blueprint"])
        for number, plan in enumerate(blueprint.disks):
            await self._disks.make(plan.disk, plan.snapshot_id)
            run.progress((number + 1) / len(blueprint.disks), f"disk {plan.disk.name}")

    async def _unmake_disks(self, run: Run) -> None:
        for plan in Blueprint.model_validate(run.parameters["blueprint"]).disks:
            await self._disks.unmake(plan.disk.id)

    async def _make_nvram(self, run: Run) -> None:
        blueprint = Blueprint.model_validate(run.parameters["blueprint"])
        if blueprint.vm.spec.nvram_disk_id is not None:
            await self._nvram.make(blueprint.vm, blueprint.nvram_snapshot_id)

    async def _unmake_nvram(self, run: Run) -> None:
        nvram_disk_id = Blueprint.model_validate(run.parameters["blueprint"]).vm.spec.nvram_disk_id
        if nvram_disk_id is not None:
            await self._disks.unmake(nvram_disk_id)
