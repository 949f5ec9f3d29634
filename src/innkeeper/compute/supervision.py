"""What a guest does by itself and what becomes of it: its process, its events, its end.

``guest`` adds what one does to it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from innkeeper.compute import firmware, launcher, outage
from innkeeper.compute.adoption import HeldProcess, ProcessIdentity
from innkeeper.compute.agent import Agent
from innkeeper.compute.commandline import AGENT_CHARDEV
from innkeeper.compute.launcher import GuestPlace
from innkeeper.compute.memory import Layout
from innkeeper.compute.monitor import Monitor
from innkeeper.model.problems import Problem
from innkeeper.model.resources import VmState

log = logging.getLogger(__name__)

QUIT_TIMEOUT_S = 3.0
_STATES = {
    "running": VmState.RUNNING,
    "prelaunch": VmState.PAUSED,
    "guest-panicked": VmState.CRASHED,
    "internal-error": VmState.CRASHED,
    "shutdown": VmState.STOPPING,
}
"""QEMU's run states; the others mean PAUSED."""


@dataclass(frozen=True, slots=True)
class GuestChange:
    """What a guest's owner is told: its state, why (``storage``, ``panic``, ...), whether its agent's port is open."""

    vm_id: str
    state: VmState
    reason: str
    agent: bool


OnChange = Callable[[GuestChange], None]


class SupervisedGuest:
    """A guest's process, watched: it says what changes, thaws and continues what needs it, and clears up at the end."""

    def __init__(self, vm_id: str, name: str, place: GuestPlace, held: HeldProcess, layout: Layout) -> None:
        self.vm_id = vm_id
        self.place = place
        self.layout = layout
        self.state = VmState.STARTING
        self.reason = ""
        self.monitor = Monitor(place.monitor_socket, name)
        self.agent = Agent(place.agent_socket, name)
        self._name = name
        self._process = held
        self._on_change: OnChange | None = None
        self._turn = asyncio.Lock()
        self._final: VmState | None = None
        self._tpm: HeldProcess | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()
        self._cleared = asyncio.Event()

    @property
    def identity(self) -> ProcessIdentity:
        """For the vm's document: ``adopt`` wants it back."""
        return self._process.identity

    @property
    def gone(self) -> bool:
        """Whether there is no process any more, and nothing left of it."""
        return self._cleared.is_set()

    async def wait_ended(self) -> VmState:
        """Wait until there is no process and nothing of it is left; returns STOPPED, SAVED or CRASHED."""
        await self._cleared.wait()
        return self.state

    async def release(self) -> None:
        """Let go of the guest, which runs on: the daemon ends and another will ``adopt`` it."""
        if self._recovery is not None:
            self._recovery.cancel()
        for chore in tuple(self._chores):
            chore.cancel()
        await asyncio.gather(*self._chores, return_exceptions=True)
        await self.agent.close()
        await self.monitor.close()
        self._process.release()
        if self._tpm is not None:
            self._tpm.release()

    async def poweroff(self) -> None:
        """End the guest at once, whatever it does, even when QEMU or storage hang. Interrupts other operations."""
        self._final = VmState.STOPPED
        if not self._process.ended.is_set():
            await self._quit()
        await self._cleared.wait()

    async def _quit(self) -> None:
        try:
            await self.monitor.execute("quit", timeout_s=QUIT_TIMEOUT_S)
        except Problem as hung:
            log.debug("%s: quit: %s", self._name, hung)
        if not await self._process.wait(QUIT_TIMEOUT_S):
            await self._process.fence()

    def _begin(self, on_change: OnChange | None, state: VmState) -> None:
        self._on_change = on_change
        self.monitor.on_reconnect = self._look_again_soon
        self._change(state)
        self._process.on_end(self._clear_soon)

    def _event(self, name: str, data: dict[str, Any]) -> None:
        if name == "VSERPORT_CHANGE":
            self.agent.port_changed(data.get("open") is True)
            self._tell()
        elif name == "SHUTDOWN" and data.get("guest") is True:
            self._chore(self._quit_after_shutdown())
        elif name == "GUEST_PANICKED":
            self._change(VmState.CRASHED, "panic")
        elif name == "BLOCK_IO_ERROR" and data.get("action") == "stop":
            self._storage_is_away("no space" if data.get("nospace") is True else "storage")
        elif name == "RESET" and data.get("guest") is True:
            log.info("%s: the guest restarts", self._name)

    async def _quit_after_shutdown(self) -> None:
        """The guest has shut itself down; QEMU waits with the lights on."""
        self._final = VmState.STOPPED
        self._change(VmState.STOPPING)
        await self.poweroff()

    def _storage_is_away(self, reason: str) -> None:
        self._change(VmState.PAUSED, reason)
        if self._recovery is None or self._recovery.done():
            self._recovery = self._chore(self._recover())

    async def _recover(self) -> None:
        await outage.continue_until_steady(self.monitor)
        status = (await self.monitor.execute("query-status", timeout_s=60.0))["status"]
        self._status_is(str(status))

    def _look_again_soon(self) -> None:
        self._chore(self._look_again())

    def _clear_soon(self) -> None:
        self._chore(self._ended())

    async def _look_again(self) -> None:
        """After events may have been missed."""
        await self._look_for_agent()
        self._status_is(str((await self.monitor.execute("query-status", timeout_s=60.0))["status"]))

    def _status_is(self, status: str) -> None:
        """Take QEMU's word for the state."""
        if status == "shutdown":
            self._chore(self._quit_after_shutdown())
        elif status == "io-error":
            self._storage_is_away("storage")
        else:
            self._change(_STATES.get(status, VmState.PAUSED), "panic" if status == "guest-panicked" else "")

    async def _look_for_agent(self) -> None:
        for chardev in await self.monitor.execute("query-chardev"):
            if chardev["label"] == AGENT_CHARDEV:
                self.agent.port_changed(chardev["frontend-open"] is True)

    async def _thaw_if_left_frozen(self) -> None:
        if self.agent.present and self.state is VmState.RUNNING and await self.agent.is_frozen():
            log.warning("%s: its file systems were left frozen; thawing", self._name)
            await self.agent.thaw()

    async def _ended(self) -> None:
        """The process is gone: leave nothing behind and say why."""
        final = self._final or VmState.CRASHED
        status = self._process.exit_status
        if self._recovery is not None:
            self._recovery.cancel()
        await self.agent.close()
        await self.monitor.close()
        if self._tpm is not None:
            await firmware.stop_tpm(self._tpm)
        launcher.clear(self.place)
        reason = "" if final is not VmState.CRASHED else _death(status)
        self.agent.port_changed(False)
        self._change(final, reason)
        self._cleared.set()

    def _chore(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run ``work`` beside; a Problem in it is logged, because nobody waits for it."""

        async def supervised() -> None:
            try:
                await work
            except Problem as failed:
                log.warning("%s: %s", self._name, failed)

        task = asyncio.create_task(supervised())
        self._chores.add(task)
        task.add_done_callback(self._chores.discard)
        return task

    def _change(self, state: VmState, reason: str = "") -> None:
        if (state, reason) != (self.state, self.reason):
            self.state, self.reason = state, reason
            self._tell()

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change(GuestChange(self.vm_id, self.state, self.reason, self.agent.present))

    def _layout_is(self, layout: Layout) -> None:
        self.layout = layout
        self._remember_layout()

    def _remember_layout(self) -> None:
        fresh = self._layout_file.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self.layout)))
        fresh.rename(self._layout_file)

    @property
    def _layout_file(self) -> Path:
        return self.place.run_dir / "layout.json"


def _death(status: int | None) -> str:
    if status is None:
        return "its process ended"
    return f"its process was killed by signal {-status}" if status < 0 else f"its process ended with status {status}"
