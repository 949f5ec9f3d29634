"""Guests that run: started, ended, paused, saved, adopted. The only place that holds ``Guest`` objects.

A vm's document follows its guest: whatever happens to the process is written there, and what the guest stood on is
given back once it has ended, however it ended.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from innkeeper.compute import accelerator
from innkeeper.compute.adoption import ProcessIdentity
from innkeeper.compute.guest import Guest, GuestChange, fence_process
from innkeeper.compute.inputs import Accelerator, check_room
from innkeeper.compute.launcher import GuestPlace
from innkeeper.compute.memory import MemoryImage
from innkeeper.daemon.disks import Disks
from innkeeper.daemon.link_state import link_down, link_up
from innkeeper.daemon.machines import Machines
from innkeeper.daemon.ports import card_mtu
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.strays import fence_strays
from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Conflict, NoSpace, NotFound, Problem, Unavailable
from innkeeper.model.resources import Disk, DiskLink, Nic, Switch, Task, Vm, VmState, now
from innkeeper.tasks.engine import Run, Step, TaskKind

log = logging.getLogger(__name__)

_ADOPT_AGAIN_S = 5.0
_TELL_AGAIN_S = 2.0
_ENDED = (VmState.STOPPED, VmState.SAVED, VmState.CRASHED)
_STARTABLE = (VmState.STOPPED, VmState.SAVED, VmState.CRASHED)
_ALLOWED: dict[str, tuple[VmState, ...]] = {
    "vm.start": _STARTABLE,
    "vm.shutdown": (VmState.RUNNING, VmState.PAUSED),
    "vm.pause": (VmState.RUNNING,),
    "vm.resume": (VmState.PAUSED,),
    "vm.reset": (VmState.RUNNING, VmState.PAUSED, VmState.CRASHED),
    "vm.save": (VmState.RUNNING, VmState.PAUSED),
}


class Power:
    """Starts and ends guests and keeps their documents true."""

    def __init__(self, rooms: Rooms, disks: Disks, switches: Switches) -> None:
        self._rooms = rooms
        self._disks = disks
        self._switches = switches
        self._machines = Machines(rooms, switches)
        self._guests: dict[str, Guest] = {}
        self._clearing: dict[str, asyncio.Lock] = {}
        self._chores: set[asyncio.Task[None]] = set()
        self._untold: dict[str, GuestChange] = {}
        self.accelerator: Accelerator = "tcg"
        start = Step("start it", self._do_start, self._undo_start)
        rooms.engine.register(TaskKind("vm.start", [start]))
        for name, act in {
            "vm.shutdown": self._do_shutdown,
            "vm.poweroff": self._do_poweroff,
            "vm.pause": self._do_pause,
            "vm.resume": self._do_resume,
            "vm.reset": self._do_reset,
            "vm.save": self._do_save,
        }.items():
            rooms.engine.register(TaskKind(name, [Step(name.partition(".")[2], act)]))

    # --- what others ask ---

    def guest(self, vm: Vm) -> Guest | None:
        """The vm's running guest, if it has a process."""
        return self._guests.get(vm.id)

    def place(self, vm: Vm) -> GuestPlace:
        """Where the vm lives on this host. Raises ``Failed`` (``vm.no_uid``)."""
        return self._machines.place(vm)

    def has_process(self, vm: Vm) -> bool:
        return vm.id in self._guests

    def sockets(self, vm: Vm) -> dict[str, str]:
        """The sockets of a vm that has a process: ``serial``, ``vnc``, ``qmp``."""
        if vm.id not in self._guests:
            return {}
        place = self._machines.place(vm)
        return {
            "serial": str(place.serial_socket),
            "vnc": str(place.vnc_socket),
            "qmp": str(place.monitor_socket),
        }

    def begin(self, task_kind: str, vm: Vm, **parameters: Any) -> Task:
        """Start a task of the life cycle.

        Raises ``Conflict`` (``vm.state``) in a state that does not allow it.
        """
        allowed = _ALLOWED.get(task_kind)
        operation = task_kind.partition(".")[2]
        if allowed is not None and vm.status.state not in allowed:
            raise Conflict(
                "vm.state",
                f"vm {vm.name!r} is {vm.status.state}: it is not possible to {operation} it",
                cause=f"the vm must be {' or '.join(allowed)}",
                remedy=f"'inn vm show {vm.name}' tells its state; start, resume or shut it down first",
            )
        return self._rooms.engine.start(
            task_kind, {"vm_id": vm.id, **parameters}, target_kind="vm", target_id=vm.id, target_name=vm.name
        )

    def _vm(self, run: Run) -> Vm:
        return self._rooms.store.get(Vm, run.parameters["vm_id"])

    def _running(self, vm: Vm) -> Guest:
        guest = self._guests.get(vm.id)
        if guest is None:
            raise Conflict(
                "vm.state", f"vm {vm.name!r} is {vm.status.state}", remedy=f"start it first: inn vm start {vm.name}"
            )
        return guest

    def _status(self, vm_id: str, **fields: Any) -> Vm:
        """Change the vm's status without a pause between reading and writing."""
        vm = self._rooms.store.get(Vm, vm_id)
        if all(getattr(vm.status, key) == value for key, value in fields.items()):
            return vm
        return self._rooms.change(vm, None, status=vm.status.model_copy(update=fields))

    # --- starting ---

    def saved_image(self, vm: Vm) -> MemoryImage:
        """Where ``save`` leaves the vm's memory."""
        return MemoryImage(self._rooms.paths.vm_state(vm.id) / "saved")

    async def start_now(self, vm: Vm, run: Run | None = None, *, memory: MemoryImage | None = None) -> None:
        """Start the vm: from ``memory``, else from what ``save`` left, else by booting. Leaves nothing on failure.

        Raises what preparing, QEMU and the memory image raise.
        """
        saved = self.saved_image(vm)
        image = memory or (saved if saved.exists() else None)
        self._status(vm.id, state=VmState.STARTING, reason="", agent=False, start_again=False)
        try:
            if run is not None:
                run.progress(0.2, "attaching disks and cards")
            layout = image.layout() if image else None
            machine = await self._machines.prepare(vm, self.accelerator, layout)
            if run is not None:
                run.progress(0.5, "starting QEMU")
            place = self._machines.place(vm)
            if image is None:
                guest = await Guest.start(machine, place, self._changed)
            else:
                guest = await Guest.restore(machine, place, image, self._changed)
        except (Problem, OSError, asyncio.CancelledError) as failure:
            await asyncio.shield(self._machines.clear(vm))
            still_saved = memory is None and image is not None
            self._status(vm.id, state=VmState.SAVED if still_saved else VmState.STOPPED, reason=str(failure), pid=None)
            raise
        self._hold(vm, guest, image is not None and memory is None)
        if image is not None:
            self._chore(link_up(guest, self._machines.nics(vm)))

    def _hold(self, vm: Vm, guest: Guest, from_saved: bool) -> None:
        self._guests[vm.id] = guest
        self._status(
            vm.id,
            state=guest.state,
            pid=guest.identity.pid,
            process_start=guest.identity.start_ticks,
            accelerator=self.accelerator,
            started_at=now(),
            agent=guest.agent.present,
        )
        if from_saved:
            self.saved_image(vm).discard()

    async def _do_start(self, run: Run) -> None:
        vm = self._vm(run)
        if vm.id not in self._guests:
            await self.start_now(vm, run)

    async def _undo_start(self, run: Run) -> None:
        """Nothing runs; memory that was saved stays, for the next attempt."""
        vm = self._vm(run)
        guest = self._guests.get(vm.id)
        if guest is not None:
            await guest.poweroff()
        await self._clear(vm.id)
        saved = self.saved_image(vm).exists()
        self._status(vm.id, state=VmState.SAVED if saved else VmState.STOPPED)

    # --- following the guest ---

    def _changed(self, change: GuestChange) -> None:
        """A guest says what became of it; called from within the event loop."""
        if change.vm_id not in self._guests:
            return  # it is still being started; whoever starts it records the rest
        self._untold.pop(change.vm_id, None)
        try:
            self._status(change.vm_id, state=change.state, reason=change.reason, agent=change.agent)
        except NoSpace as full:
            log.warning("guest %s is %s: %s", change.vm_id, change.state, full)
            self._untold[change.vm_id] = change
            self._chore(self._tell_later(change))
            return
        except NotFound:
            log.info("guest %s changed, but its document is gone", change.vm_id)
            return
        if change.state in _ENDED and not (change.state == VmState.CRASHED and change.reason == "panic"):
            self._chore(self._clear(change.vm_id))
        elif change.agent:
            self._chore(self._learn_addresses(change.vm_id))

    async def _tell_later(self, change: GuestChange) -> None:
        """The state had no room for what a guest said; it is told again unless the guest has said more since."""
        await asyncio.sleep(_TELL_AGAIN_S)
        if self._untold.get(change.vm_id) is change:
            self._changed(change)

    def _chore(self, work: Awaitable[None]) -> None:
        async def supervised() -> None:
            try:
                await work
            except Problem as failed:
                log.warning("following a guest: %s", failed)

        task = asyncio.create_task(supervised())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)

    async def _clear(self, vm_id: str) -> None:
        """Give back what an ended guest stood on; whoever comes second waits and finds nothing to do."""
        async with self._clearing.setdefault(vm_id, asyncio.Lock()):
            guest = self._guests.get(vm_id)
            if guest is not None:
                await guest.wait_ended()
                self._guests.pop(vm_id, None)
            vm = self._rooms.store.get(Vm, vm_id)
            await self._machines.clear(vm)
            self._status(vm_id, pid=None, process_start=None, agent=False, addresses=[])

    async def _learn_addresses(self, vm_id: str) -> None:
        """Note the addresses that the guest's agent tells; they are the guest's word and are only shown."""
        guest = self._guests.get(vm_id)
        if guest is None:
            return
        interfaces = await guest.agent.interfaces()
        found = [address for interface in interfaces for address in interface.addresses]
        self._status(vm_id, addresses=[one for one in found if not one.startswith(("127.", "::1", "fe80"))][:32])

    # --- ending ---

    async def poweroff_now(self, vm: Vm) -> None:
        """End the vm's process at once, and discard saved memory; may be repeated."""
        guest = self._guests.get(vm.id)
        if guest is not None:
            await guest.poweroff()
        await self._clear(vm.id)
        self.saved_image(vm).discard()
        self._status(vm.id, state=VmState.STOPPED, reason="")

    async def _do_poweroff(self, run: Run) -> None:
        await self.poweroff_now(self._vm(run))

    async def _do_shutdown(self, run: Run) -> None:
        vm = self._vm(run)
        guest = self._running(vm)
        if guest.state == VmState.PAUSED:
            await guest.resume()
        try:
            await guest.shutdown(float(run.parameters["timeout_s"]))
        except Problem as ignored:
            if not run.parameters["force"] or ignored.code != "vm.shutdown_ignored":
                raise
            await guest.poweroff()
        await self._clear(vm.id)

    async def _do_pause(self, run: Run) -> None:
        await self._running(self._vm(run)).pause()

    async def _do_resume(self, run: Run) -> None:
        await self._running(self._vm(run)).resume()

    async def _do_reset(self, run: Run) -> None:
        await self._running(self._vm(run)).reset()

    async def _do_save(self, run: Run) -> None:
        vm = self._vm(run)
        await self._running(vm).save(self.saved_image(vm), lambda fraction: run.progress(fraction, "writing memory"))
        await self._clear(vm.id)

    async def end_all(self, *, force: bool, progress: Callable[[float, str], None]) -> None:
        """End every guest, each as its ``autostop`` says (``force`` powers them off), all at once.

        Raises the first problem, once all others have ended.
        """
        vms = [vm for vm in self._rooms.store.ls(Vm) if vm.id in self._guests]
        done = 0

        async def end(vm: Vm) -> None:
            nonlocal done
            self._status(vm.id, start_again=True)
            guest = self._guests.get(vm.id)
            if guest is not None:
                await self._end_one(vm, guest, "poweroff" if force else vm.spec.autostop)
            await self._clear(vm.id)
            done += 1
            progress(done / len(vms), f"{vm.name} has ended")

        results = await asyncio.gather(*(end(vm) for vm in vms), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _end_one(self, vm: Vm, guest: Guest, how: str) -> None:
        if how == "poweroff" or guest.state == VmState.CRASHED:
            await guest.poweroff()
        elif how == "save":
            await guest.save(self.saved_image(vm))
        else:
            if guest.state == VmState.PAUSED:
                await guest.resume()
            try:
                await guest.shutdown()
            except Problem as ignored:
                raise Unavailable(
                    ignored.code, ignored.detail, cause=ignored.cause, remedy="shut it down from within"
                ) from ignored

    # --- adopting ---

    async def adopt_all(self) -> None:
        """Take over the guests that run, and clear up after those that ended while nobody watched."""
        found = await asyncio.to_thread(accelerator.probe, self._rooms.paths.cache / "accelerator.json")
        self.accelerator = found.accelerator
        log.info("guests run on %s: %s", found.accelerator, found.reason)
        for vm in self._rooms.store.ls(Vm):
            if vm.status.pid is not None and vm.status.process_start is not None:
                await self._adopt(vm, ProcessIdentity(vm.status.pid, vm.status.process_start))
            elif vm.status.attachments or vm.status.state in (VmState.STARTING, VmState.STOPPING):
                await self._lost(vm, VmState.STOPPED, "")

    async def _adopt(self, vm: Vm, identity: ProcessIdentity) -> None:
        place = self._machines.place(vm)
        try:
            guest = await Guest.adopt(vm.id, vm.name, place, identity, self._changed)
        except Unavailable as hung:
            log.warning("vm %s cannot be adopted yet: %s", vm.name, hung)
            self._chore(self._adopt_later(vm, identity))
        except Problem as gone:
            log.warning("vm %s ended while no daemon watched: %s", vm.name, gone)
            ended = VmState.STOPPED if vm.status.state == VmState.STOPPING else VmState.CRASHED
            await fence_process(identity, place)
            await self._lost(vm, ended, "its process ended while the daemon was away")
        else:
            self._guests[vm.id] = guest
            self._status(vm.id, state=guest.state, reason=guest.reason, agent=guest.agent.present)
            self._chore(link_up(guest, self._machines.nics(vm)))
            log.info("vm %s adopted: process %s, %s", vm.name, identity.pid, guest.state)

    async def _adopt_later(self, vm: Vm, identity: ProcessIdentity) -> None:
        await asyncio.sleep(_ADOPT_AGAIN_S)
        await self._adopt(vm, identity)

    async def _lost(self, vm: Vm, state: VmState, reason: str) -> None:
        """Clear up after a process that nobody saw end, or that a daemon died while starting."""
        await fence_strays(self._machines.place(vm))
        if self.saved_image(vm).exists():
            state, reason = VmState.SAVED, ""
        started_by_host = vm.status.state in (VmState.RUNNING, VmState.PAUSED) and state == VmState.CRASHED
        await self._clear(vm.id)
        self._status(vm.id, state=state, reason=reason, start_again=started_by_host)

    async def autostart(self) -> None:
        """Start what shall start with the inn: ``always``, and ``last`` where the inn or the host had ended it."""
        for vm in self._rooms.store.ls(Vm):
            wanted = vm.spec.autostart == "always" or (vm.spec.autostart == "last" and vm.status.start_again)
            if wanted and vm.status.state in _STARTABLE:
                self.begin("vm.start", vm)

    async def let_go(self) -> None:
        """The daemon ends; the guests run on."""
        for chore in tuple(self._chores):
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        for guest in self._guests.values():
            await guest.release()
        self._guests.clear()

    def forget(self, vm: Vm) -> None:
        """The vm is removed: its directory goes."""
        self._clearing.pop(vm.id, None)
        self._machines.remove_files(vm)

    # --- while it runs ---

    async def exec(self, vm: Vm, request: ask.VmExec) -> views.ExecResult:
        """Run a command in the guest. Raises ``Unavailable`` (``agent.absent``, ``agent.timeout``), ``Failed``."""
        ended = await self._running(vm).agent.exec(
            request.argv, stdin=request.stdin or b"", environment=request.env, timeout_s=request.timeout_s
        )
        by_signal = ended.status > 128
        return views.ExecResult(
            exit_code=None if by_signal else ended.status,
            signal=ended.status - 128 if by_signal else None,
            stdout=ended.stdout,
            stderr=ended.stderr,
            truncated=ended.truncated,
        )

    async def plug_disk(self, vm: Vm, link: DiskLink) -> None:
        """Give the vm a disk; a running guest gets it at once."""
        guest = self._guests.get(vm.id)
        check_room(disks=len(vm.spec.disks) + 1)
        if guest is not None:
            export = await self._machines.attach(vm, link)
            try:
                await guest.attach_disk(link.disk_id, export, boot_index=link.boot_index, read_only=link.read_only)
            except (Problem, asyncio.CancelledError):
                await asyncio.shield(self._machines.detach(vm, link.disk_id))
                raise
        vm = self._rooms.store.get(Vm, vm.id)
        self._rooms.change(vm, None, spec=vm.spec.model_copy(update={"disks": [*vm.spec.disks, link]}))
        self._rooms.change(self._rooms.store.get(Disk, link.disk_id), None, vm_id=vm.id)

    async def unplug_disk(self, vm: Vm, disk_id: str) -> None:
        """Take a disk from the vm, with the consent of a guest that runs."""
        guest = self._guests.get(vm.id)
        if guest is not None:
            await guest.detach_disk(disk_id)
            await self._machines.detach(vm, disk_id)
        vm = self._rooms.store.get(Vm, vm.id)
        rest = [link for link in vm.spec.disks if link.disk_id != disk_id]
        self._rooms.change(vm, None, spec=vm.spec.model_copy(update={"disks": rest}))
        self._rooms.change(self._rooms.store.get(Disk, disk_id), None, vm_id=None)

    async def disk_grown(self, vm: Vm, disk_id: str, size_bytes: int) -> None:
        """Let a running guest see a disk's new size."""
        guest = self._guests.get(vm.id)
        if guest is not None:
            await guest.resize_disk(disk_id, size_bytes)

    async def plug_nic(self, vm: Vm, nic: Nic) -> None:
        """Give a running guest a new card."""
        guest = self._guests.get(vm.id)
        if guest is None:
            return
        await self._switches.port_up(nic)
        mtu = card_mtu(self._rooms.store.get(Switch, nic.switch_id), nic)
        await guest.attach_nic(nic.id, nic.mac, self._rooms.paths.tap(nic.number), mtu)

    async def unplug_nic(self, vm: Vm, nic: Nic) -> None:
        """Take a card from a running guest, with its consent."""
        guest = self._guests.get(vm.id)
        if guest is not None:
            await guest.detach_nic(nic.id)
            await self._switches.guarding.unplug(nic)
            await self._switches.port_down(nic)

    def link_down(self, vm: Vm, nic: Nic) -> AbstractAsyncContextManager[None]:
        """The card has no link for the time of the block, if a guest has it."""
        return link_down(self._guests.get(vm.id), nic.id)

    async def change_iso(self, vm: Vm, old_image_id: str | None) -> None:
        """Follow a change of the vm's ISO in a guest that runs."""
        guest = self._guests.get(vm.id)
        if guest is None:
            return
        await guest.change_media(await self._machines.attach_iso(vm))
        if old_image_id is not None and old_image_id != vm.spec.iso_image_id:
            await self._machines.detach(vm, old_image_id)

    # --- memory for checkpoints ---

    async def keep_memory(
        self,
        vm: Vm,
        image: MemoryImage,
        at_instant: Callable[[], Awaitable[None]],
        progress: Callable[[float, str], None],
    ) -> None:
        """Write the guest's memory to ``image`` and call ``at_instant`` while it stands still."""
        await self._running(vm).capture(image, at_instant, lambda fraction: progress(fraction, "writing memory"))
