"""What a guest needs before its QEMU can start, and what is given back when it has ended.

Its disks are attached on the fabric under its uid, its cards get their taps, its cloud-init seed is written. Everything
is recorded in the vm's document before it is done, so that whoever comes after a crash can give it back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from innkeeper.compute import firmware, launcher, qemu, seed
from innkeeper.compute.inputs import (
    NIC_PORTS,
    Accelerator,
    MachineInputs,
    NbdExport,
    NicInput,
    free_port,
    machine_for,
)
from innkeeper.compute.launcher import GuestPlace
from innkeeper.compute.memory import Layout
from innkeeper.daemon.ports import card_mtu
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.seeds import seed_of
from innkeeper.daemon.switches import Switches
from innkeeper.model.problems import Failed, NoSpace
from innkeeper.model.resources import DiskLink, Firmware, Image, Nic, Switch, Vm, new_id
from innkeeper.model.sizes import format_size


def check_memory(vm: Vm) -> None:
    """Raises ``NoSpace`` (``vm.no_memory``) for more memory than this host has."""
    total_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if vm.spec.memory_bytes > total_bytes:
        raise NoSpace(
            "vm.no_memory",
            f"vm {vm.name!r} wants {format_size(vm.spec.memory_bytes)} of memory",
            cause=f"this host has {format_size(total_bytes)}",
            remedy="give it less with --memory",
        )


class Machines:
    """Prepares and clears what guests stand on."""

    def __init__(self, rooms: Rooms, switches: Switches) -> None:
        self._rooms = rooms
        self._switches = switches

    def place(self, vm: Vm) -> GuestPlace:
        """Where the vm lives on this host. Raises ``Failed`` (``vm.no_uid``)."""
        if vm.status.uid is None:
            raise Failed("vm.no_uid", f"vm {vm.name!r} has no uid", remedy="remove it and make it again")
        return GuestPlace.of(self._rooms.paths, vm.id, vm.status.uid)

    def nics(self, vm: Vm) -> list[Nic]:
        return sorted(self._rooms.store.find(Nic, vm_id=vm.id), key=lambda nic: nic.index)

    async def prepare(self, vm: Vm, accelerator: Accelerator, layout: Layout | None = None) -> MachineInputs:
        """Attach, plug and write all that the vm needs; ``layout`` is that of the memory image it goes on from.

        Such a vm has the processors and the memory of the image: what was changed since takes effect when it boots.
        Raises what the fabric and the switches raise; ``clear`` gives back what was got so far.
        """
        check_memory(vm)
        exports = {link.disk_id: await self.attach(vm, link) for link in vm.spec.disks}
        if vm.spec.nvram_disk_id is not None:
            exports[vm.spec.nvram_disk_id] = await self.attach(vm, DiskLink(disk_id=vm.spec.nvram_disk_id))
        iso = await self.attach_iso(vm)
        nics = self.nics(vm)
        for nic in nics:
            await self._switches.port_up(nic)
        uefi = None
        if vm.spec.firmware == Firmware.UEFI:
            uefi = firmware.find_uefi(secure_boot=vm.spec.secure_boot).code
        pinned = self._pin(vm)
        if layout is not None:
            as_it_ran = {"cpus": layout.cpus, "memory_bytes": layout.memory_bytes}
            pinned = pinned.model_copy(update={"spec": pinned.spec.model_copy(update=as_it_ran)})
        return machine_for(
            pinned,
            machine=qemu.installed().machine,
            accelerator=accelerator,
            exports=exports,
            nics=self._nic_inputs(nics, layout),
            ovmf_code=uefi,
            iso=iso,
            seed=self._write_seed(pinned, nics, wanted=layout.seed if layout else None),
            ports=layout.disks if layout else None,
            restoring=layout is not None,
        )

    def _pin(self, vm: Vm) -> Vm:
        """The vm with its machine type pinned at its first start, so that an update of QEMU does not change it."""
        vm = self._rooms.store.get(Vm, vm.id)
        if vm.spec.machine is not None:
            return vm
        return self._rooms.change(vm, None, spec=vm.spec.model_copy(update={"machine": qemu.installed().machine}))

    def _nic_inputs(self, nics: Sequence[Nic], layout: Layout | None) -> list[NicInput]:
        """Each card at the port that the memory image remembers, else at its index: so a guest knows it again."""
        ports = dict(layout.nics) if layout else {}
        inputs = []
        for nic in nics:
            if nic.id not in ports:
                own = NIC_PORTS[nic.index] if nic.index < len(NIC_PORTS) else None
                taken = list(ports.values())
                ports[nic.id] = own if own and own not in taken else free_port(taken, NIC_PORTS, "nic")
            mtu = card_mtu(self._rooms.store.get(Switch, nic.switch_id), nic)
            inputs.append(NicInput(nic.id, nic.mac, self._rooms.paths.tap(nic.number), ports[nic.id], mtu))
        return inputs

    def _write_seed(self, vm: Vm, nics: Sequence[Nic], *, wanted: bool | None) -> Path | None:
        """The NoCloud ISO, made anew at every start from what the documents say; ``wanted`` as for ``seed_of``."""
        inputs = seed_of(vm, nics, {one.id: one for one in self._rooms.store.ls(Switch)}, wanted=wanted)
        if inputs is None:
            return None
        path = self.place(vm).state_dir / "seed.iso"
        path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        path.write_bytes(seed.seed_image(inputs))
        path.chmod(0o600)
        return path

    def remove_files(self, vm: Vm) -> None:
        """Remove what a vm that is no more leaves on this host."""
        shutil.rmtree(self._rooms.paths.vm_state(vm.id), ignore_errors=True)
        launcher.clear(self.place(vm))

    # --- disks ---

    async def attach(self, vm: Vm, link: DiskLink) -> NbdExport:
        """Open the disk for the vm's process; recorded first, may be repeated."""
        attachment_id = self._record_attachment(vm, link.disk_id)
        opened = await self._rooms.fabric.attach(
            attachment_id,
            disk_id=link.disk_id,
            role="reader" if link.read_only else "writer",
            uid=self.place(vm).uid,
        )
        return NbdExport(self._rooms.paths.nbd_socket, opened["export"])

    async def attach_iso(self, vm: Vm) -> NbdExport | None:
        """Open the vm's ISO image, if it has one."""
        if vm.spec.iso_image_id is None:
            return None
        image = self._rooms.store.get(Image, vm.spec.iso_image_id)
        attachment_id = self._record_attachment(vm, image.id)
        opened = await self._rooms.fabric.attach(
            attachment_id, snapshot_id=image.snapshot_id, role="reader", uid=self.place(vm).uid
        )
        return NbdExport(self._rooms.paths.nbd_socket, opened["export"])

    def _record_attachment(self, vm: Vm, what_id: str) -> str:
        """The id of the attachment of that disk or image in the vm's document, made when there is none."""
        vm = self._rooms.store.get(Vm, vm.id)
        if what_id not in vm.status.attachments:
            vm.status.attachments[what_id] = new_id()
            vm = self._rooms.store.update(vm)
        return vm.status.attachments[what_id]

    async def detach(self, vm: Vm, what_id: str) -> None:
        """Close what ``attach`` or ``attach_iso`` opened; may be repeated."""
        vm = self._rooms.store.get(Vm, vm.id)
        attachment_id = vm.status.attachments.get(what_id)
        if attachment_id is None:
            return
        await self._rooms.fabric.detach(attachment_id)
        vm = self._rooms.store.get(Vm, vm.id)
        vm.status.attachments.pop(what_id, None)
        self._rooms.store.update(vm)

    async def clear(self, vm: Vm) -> None:
        """Give back everything that ``prepare`` got, once the process has ended; may be repeated."""
        for what_id in list(self._rooms.store.get(Vm, vm.id).status.attachments):
            await self.detach(vm, what_id)
        for nic in self.nics(vm):
            await self._switches.guarding.unplug(nic)
            await self._switches.port_down(nic)
