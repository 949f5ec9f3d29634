"""How a vm comes to be, whatever it is made from: recorded, its disks made, and only then shown as stopped.

Create, clone and restore each make a ``Blueprint`` and run the same steps; deletion is the same steps taken back.
"""

from __future__ import annotations

from pydantic import Field

from innkeeper.daemon.disks import Disks
from innkeeper.daemon.nics import Nics
from innkeeper.daemon.nvram import Nvram
from innkeeper.daemon.power import Power
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

    def __init__(self, rooms: Rooms, disks: Disks, nics: Nics, nvram: Nvram, power: Power) -> None:
        self._rooms = rooms
        self._disks = disks
        self._nics = nics
        self._nvram = nvram
        self._power = power

    def steps(self) -> tuple[Step, Step]:
        """Record the vm, make its disks and firmware variables; each undone by what deletes it."""
        return (
            Step("record the vm", self._record, self._forget),
            Step("make its disks", self._make_disks, self._unmake_disks),
        )

    def last_steps(self) -> tuple[Step, Step]:
        """The steps after which the vm exists for everybody, and runs if the parameter ``start`` says so."""
        return Step("finish", self._finish, weight=0.1), Step("start it", self._start_if_asked, self._end)

    async def _finish(self, run: Run) -> None:
        vm = self._vm(run)
        if vm.status.state == VmState.CREATING:
            vm.status.state = VmState.STOPPED
            self._rooms.store.update(vm)
        run.result.update(vm_id=vm.id, vm_name=vm.name)

    def _vm(self, run: Run) -> Vm:
        return self._rooms.store.get(Vm, Blueprint.model_validate(run.parameters["blueprint"]).vm.id)

    async def _start_if_asked(self, run: Run) -> None:
        if run.parameters["start"]:
            await self._power.start_now(self._vm(run), run)

    async def _end(self, run: Run) -> None:
        """A daemon may have died with the guest started: it is adopted by now, and must not outlive its document."""
        await self._power.poweroff_now(self._vm(run))

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
        self._power.forget(blueprint.vm)
        store.delete("vm", blueprint.vm.id)

    async def _make_disks(self, run: Run) -> None:
        blueprint = Blueprint.model_validate(run.parameters["blueprint"])
        for number, plan in enumerate(blueprint.disks):
            await self._disks.make(plan.disk, plan.snapshot_id)
            run.progress((number + 1) / len(blueprint.disks), f"disk {plan.disk.name}")
        if blueprint.vm.spec.nvram_disk_id is not None:
            await self._nvram.make(blueprint.vm, blueprint.nvram_snapshot_id)

    async def _unmake_disks(self, run: Run) -> None:
        blueprint = Blueprint.model_validate(run.parameters["blueprint"])
        for plan in blueprint.disks:
            await self._disks.unmake(plan.disk.id)
        if blueprint.vm.spec.nvram_disk_id is not None:
            await self._disks.unmake(blueprint.vm.spec.nvram_disk_id)
