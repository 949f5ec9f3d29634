"""A guest that has a process: its life cycle, each operation guarded by the state that it is in.

    start ─> RUNNING <─> PAUSED          shutdown, poweroff ─> STOPPED
    restore ─> RUNNING                   save ─> SAVED
    adopt ─> whatever it is in           the process dies, or the guest panics ─> CRASHED

A guest whose storage is away is PAUSED with the reason ``storage`` and goes on by itself when storage is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

from innkeeper.compute import devices, firmware, hotplug, launcher, migration
from innkeeper.compute.adoption import HeldProcess, ProcessIdentity
from innkeeper.compute.inputs import DISK_PORTS, NIC_PORTS, DiskInput, MachineInputs, NbdExport, NicInput, free_port
from innkeeper.compute.launcher import GuestPlace
from innkeeper.compute.memory import Layout, MemoryImage
from innkeeper.compute.supervision import GuestChange as GuestChange, OnChange, SupervisedGuest
from innkeeper.model.problems import Conflict, Failed, Problem, Unavailable
from innkeeper.model.resources import VmState

log = logging.getLogger(__name__)

AGENT_SHUTDOWN_S = 30.0
"""A guest whose agent took the request but does nothing is asked by the power button after this."""


class Guest(SupervisedGuest):
    """Made by ``start``, ``restore`` or ``adopt``. Use from one event loop; operations wait for each other.

    Every operation raises ``Conflict`` (``vm.state``) in a state that does not allow it, and ``Unavailable``
    (``vm.monitor_hung``, ``vm.monitor_away``) when QEMU does not answer.
    """

    # --- coming to be ---

    @classmethod
    async def start(cls, machine: MachineInputs, place: GuestPlace, on_change: OnChange | None = None) -> Guest:
        """Boot the machine; returns with the guest RUNNING.

        Raises ``Failed`` (``vm.start_failed``, with QEMU's own words), ``Unavailable`` (``tool.missing``,
        ``vm.no_tap``, ...); then nothing of it is left.
        """
        guest = await cls._launch(machine, place)
        async with guest._undone_on_failure():
            await guest.monitor.execute("cont")
        guest._begin(on_change, VmState.RUNNING)
        return guest

    @classmethod
    async def restore(
        cls,
        machine: MachineInputs,
        place: GuestPlace,
        image: MemoryImage,
        on_change: OnChange | None = None,
        *,
        paused: bool = False,
    ) -> Guest:
        """Go on from a memory image, which stays as it is; the machine's disks must be of that instant.

        Raises ``Conflict`` (``memory.mismatch``), ``Failed`` (``memory.failed``) and what ``start`` raises.
        """
        image.check(machine)
        guest = await cls._launch(replace(machine, restoring=True), place)
        async with guest._undone_on_failure():
            await migration.read_memory(guest.monitor, image)
            if not paused:
                await guest.monitor.execute("cont")
            await guest._look_for_agent()
        guest._begin(on_change, VmState.PAUSED if paused else VmState.RUNNING)
        return guest

    @classmethod
    async def adopt(
        cls, vm_id: str, name: str, place: GuestPlace, identity: ProcessIdentity, on_change: OnChange | None = None
    ) -> Guest:
        """Take over a guest that another daemon started; thaws it if that one died while it was frozen.

        Raises ``NotFound`` (``vm.process_gone``), ``Failed`` (``vm.stranger``: the process is not this vm's QEMU; it is
        left alone), ``Unavailable`` (``vm.monitor_hung``: storage may be away; try again or ``fence_process``).
        """
        held = HeldProcess(identity)
        guest = cls(vm_id, name, place, held, Layout.unknown())
        guest.monitor.watch(guest._event)
        try:
            await guest.monitor.connect()
            uuid = (await guest.monitor.execute("query-uuid"))["UUID"]
            if uuid != vm_id:
                raise Failed("vm.stranger", f"process {identity.pid} runs vm {uuid}, not {vm_id}")
            guest.layout = Layout(**json.loads(guest._layout_file.read_text()))
            await guest._look_for_agent()
            status = (await guest.monitor.execute("query-status"))["status"]
        except OSError as lost:
            await guest.release()
            raise Failed("vm.stranger", f"the sockets of vm {name} are gone", cause=str(lost)) from lost
        except (Problem, asyncio.CancelledError):
            await guest.release()
            raise
        guest._begin(on_change, VmState.RUNNING)
        guest._status_is(str(status))
        guest._chore(guest._thaw_if_left_frozen())
        return guest

    @classmethod
    async def _launch(cls, machine: MachineInputs, place: GuestPlace) -> Guest:
        """The process is there, connected, sealed, and has not run an instruction."""
        launcher.prepare_directories(place)
        since = place.log.stat().st_size if place.log.exists() else 0
        tpm = None
        try:
            if machine.tpm:
                tpm = await firmware.start_tpm(place.tpm_state, place.tpm_socket, place.uid, place.log)
            held = launcher.launch(machine, place)
        except Problem:
            if tpm is not None:
                await tpm.fence()
            launcher.clear(place)
            raise
        guest = cls(machine.vm_id, machine.name, place, held, Layout.of(machine))
        guest._tpm = tpm
        guest.monitor.watch(guest._event)
        async with guest._undone_on_failure(since):
            await guest.monitor.connect()
            launcher.seal(place)
            guest._remember_layout()
        return guest

    @contextlib.asynccontextmanager
    async def _undone_on_failure(self, log_since: int = 0) -> AsyncIterator[None]:
        """When the block fails, or is cancelled, the process is gone afterwards."""
        try:
            yield
        except (Problem, OSError, asyncio.CancelledError) as failure:
            over = self._process.ended.is_set() or await self._process.wait(0.2)
            await asyncio.shield(self._undo())
            if isinstance(failure, asyncio.CancelledError):
                raise
            if over or not isinstance(failure, Problem):
                cause = firmware.tail(self.place.log, log_since) or str(failure)
                raise Failed(
                    "vm.start_failed", f"vm {self._name} did not start", cause=cause, remedy=f"see {self.place.log}"
                ) from failure
            raise

    async def _undo(self) -> None:
        await self._process.fence()
        await self.monitor.close()
        if self._tpm is not None:
            await firmware.stop_tpm(self._tpm)
        launcher.clear(self.place)

    # --- operations ---

    async def shutdown(self, timeout_s: float = 90.0) -> None:
        """Ask the guest to shut down, by its agent, else by the power button; returns when it is STOPPED.

        Raises ``Failed`` (``vm.shutdown_ignored``) when it still runs after ``timeout_s``; nothing is forced.
        """
        async with self._turn:
            self._guard("shut down", VmState.RUNNING)
            self._change(VmState.STOPPING)
            if await self._shut_down_by_agent(min(AGENT_SHUTDOWN_S, timeout_s / 2)):
                return
            try:
                async with asyncio.timeout(timeout_s):
                    await self.monitor.execute("system_powerdown")
                    await self._cleared.wait()
            except TimeoutError:
                self._change(VmState.RUNNING)
                raise Failed(
                    "vm.shutdown_ignored",
                    f"vm {self._name} did not shut down within {timeout_s:g} s",
                    cause="its agent is absent and its system ignores the power button, or its shutdown takes longer",
                    remedy="use poweroff, or allow more time",
                ) from None

    async def _shut_down_by_agent(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await self.agent.shutdown()
                await self._cleared.wait()
                return True
        except (Problem, TimeoutError) as ignored:
            log.info("%s: shutdown by the power button: %s", self._name, ignored)
            return False

    async def pause(self) -> None:
        """Stop the guest's processors; PAUSED."""
        async with self._turn:
            self._guard("pause", VmState.RUNNING)
            await self.monitor.execute("stop")
            self._change(VmState.PAUSED)

    async def resume(self) -> None:
        """Go on after ``pause``; RUNNING."""
        async with self._turn:
            self._guard("resume", VmState.PAUSED)
            await self.monitor.execute("cont")
            self._change(VmState.RUNNING)

    async def reset(self) -> None:
        """Press the reset button; RUNNING, also from CRASHED (panicked)."""
        async with self._turn:
            self._guard("reset", VmState.RUNNING, VmState.PAUSED, VmState.CRASHED)
            await self.monitor.execute("system_reset")
            self.agent.port_changed(False)
            await self.monitor.execute("cont")
            self._change(VmState.RUNNING)

    async def save(self, image: MemoryImage, progress: migration.Progress | None = None) -> None:
        """Write the guest's memory to ``image`` and end the process; SAVED. On failure the guest goes on.

        Raises ``NoSpace`` (``memory.no_space``), ``Failed`` (``memory.failed``).
        """
        async with self._turn, self._stopped_for_memory("save", image):
            await migration.write_memory(self.monitor, image, progress)
            await asyncio.to_thread(image.finish_blocking, self.layout)
            self._final = VmState.SAVED
            await self._quit()
            await self._cleared.wait()

    async def capture(
        self, image: MemoryImage, at_instant: Callable[[], Awaitable[None]], progress: migration.Progress | None = None
    ) -> None:
        """Memory and disks of one instant: the guest stands still while its memory is written and ``at_instant`` runs.

        ``at_instant`` takes the storage snapshot (and the TPM's state). The guest goes on as before in every case; on
        failure there is no image.
        """
        async with self._turn, self._stopped_for_memory("capture", image):
            await migration.write_memory(self.monitor, image, progress)
            await at_instant()
            await asyncio.to_thread(image.finish_blocking, self.layout)

    @contextlib.asynccontextmanager
    async def _stopped_for_memory(self, operation: str, image: MemoryImage) -> AsyncIterator[None]:
        """The guest stopped inside; after it, when it still has a process, as it was before. On failure no image."""
        self._guard(operation, VmState.RUNNING, VmState.PAUSED)
        before, reason = self.state, self.reason
        if before is VmState.PAUSED and reason:
            raise Unavailable("vm.storage_away", f"{self._name}: its storage is away", remedy="wait until it is back")
        try:
            await self.monitor.execute("stop", timeout_s=60.0)
            self._change(VmState.PAUSED, operation)
            yield
        except BaseException:
            image.discard()
            raise
        finally:
            if self._final is None:
                await asyncio.shield(self._go_on(before, reason))

    async def _go_on(self, before: VmState, reason: str) -> None:
        """``cont`` also takes back the disks that writing memory let go; QEMU offers nothing else that does."""
        try:
            await self.monitor.execute("cont", timeout_s=60.0)
            if before is VmState.PAUSED:
                await self.monitor.execute("stop", timeout_s=60.0)
            self._change(before, reason)
        except Problem as failed:
            log.warning("%s does not go on: %s", self._name, failed)
            self._chore(self._look_again())

    async def attach_disk(
        self, disk_id: str, source: NbdExport, *, boot_index: int | None = None, read_only: bool = False
    ) -> None:
        """Plug a disk in. Raises ``Conflict`` (``disk.attached``), ``Invalid`` (``vm.no_port``), ``Failed``."""
        async with self._turn:
            self._guard("attach a disk", VmState.RUNNING, VmState.PAUSED)
            if disk_id in self.layout.disks:
                raise Conflict("disk.attached", f"disk {disk_id} is attached to vm {self._name} already")
            port = free_port(list(self.layout.disks.values()), DISK_PORTS, "disk")
            await hotplug.attach_disk(self.monitor, DiskInput(disk_id, source, port, boot_index, read_only))
            self._layout_is(replace(self.layout, disks={**self.layout.disks, disk_id: port}))

    async def detach_disk(self, disk_id: str, timeout_s: float = 30.0) -> None:
        """Take a disk out with the guest's consent, if it is in. Raises ``Conflict`` (``disk.busy``)."""
        async with self._turn:
            self._guard("detach a disk", VmState.RUNNING)
            await hotplug.detach_disk(self.monitor, disk_id, timeout_s)
            rest = {key: port for key, port in self.layout.disks.items() if key != disk_id}
            self._layout_is(replace(self.layout, disks=rest))

    async def resize_disk(self, disk_id: str, size_bytes: int) -> None:
        """Let the guest see that a disk has grown. Raises ``Failed`` (``vm.disk_not_grown``)."""
        async with self._turn:
            self._guard("resize a disk", VmState.RUNNING, VmState.PAUSED)
            await hotplug.resize_disk(self.monitor, disk_id, size_bytes)

    async def attach_nic(self, nic_id: str, mac: str, tap: str, mtu: int = 1500) -> None:
        """Plug a card in whose tap exists. Raises ``Conflict`` (``nic.attached``), ``Invalid``, ``Unavailable``."""
        async with self._turn:
            self._guard("attach a nic", VmState.RUNNING, VmState.PAUSED)
            if nic_id in self.layout.nics:
                raise Conflict("nic.attached", f"nic {nic_id} is attached to vm {self._name} already")
            port = free_port(list(self.layout.nics.values()), NIC_PORTS, "nic")
            await hotplug.attach_nic(self.monitor, NicInput(nic_id, mac, tap, port, mtu))
            self._layout_is(replace(self.layout, nics={**self.layout.nics, nic_id: port}))

    async def detach_nic(self, nic_id: str, timeout_s: float = 30.0) -> None:
        """Take a card out with the guest's consent. Raises ``Conflict`` (``nic.busy``)."""
        async with self._turn:
            self._guard("detach a nic", VmState.RUNNING)
            await hotplug.detach_nic(self.monitor, nic_id, timeout_s)
            rest = {key: port for key, port in self.layout.nics.items() if key != nic_id}
            self._layout_is(replace(self.layout, nics=rest))

    async def set_link(self, nic_id: str, *, up: bool) -> None:
        """Let a card have its link or lose it, as if its cable were pulled; one that is not there is left alone."""
        async with self._turn:
            self._guard("change the link of a nic", VmState.RUNNING, VmState.PAUSED, VmState.CRASHED)
            if nic_id in self.layout.nics:
                await self.monitor.execute("set_link", name=devices.nic_device_id(nic_id), up=up)

    async def change_media(self, media: NbdExport | None) -> None:
        """Put an ISO into the CD-ROM drive in place of what is there; None empties it."""
        async with self._turn:
            self._guard("change media", VmState.RUNNING, VmState.PAUSED)
            await hotplug.change_media(self.monitor, media)

    # --- small parts ---

    def _guard(self, operation: str, *allowed: VmState) -> None:
        if self._final is not None or self.state not in allowed:
            raise Conflict(
                "vm.state",
                f"vm {self._name} is {self.state.value}: it is not possible to {operation}",
                cause=f"the vm must be {' or '.join(state.value for state in allowed)}",
                remedy=f"'inn vm show {self._name}' tells its state; start, resume or shut it down first",
            )


async def fence_process(identity: ProcessIdentity, place: GuestPlace) -> None:
    """Kill a guest's process that cannot be adopted, and remove what is left; nothing happens when it is gone."""
    try:
        held = HeldProcess(identity)
    except Problem:
        launcher.clear(place)
        return
    await held.fence()
    launcher.clear(place)
