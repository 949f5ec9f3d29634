"""QMP, one client for one guest: commands with a time limit, events to whoever listens, file descriptors handed over.

Problems: ``Unavailable`` ``vm.monitor_away`` (no connection), ``vm.monitor_hung`` (no reply in time: storage is away,
or the process is stuck); ``Failed`` ``vm.qemu_refused`` (QEMU said no).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from innkeeper.model.problems import Failed, Problem, Unavailable

log = logging.getLogger(__name__)

EventWatcher = Callable[[str, dict[str, Any]], None]
_RECONNECT_S = 0.2


class _Dispatcher(EventListener):
    """Hands events straight on; the library's own listener keeps a history without end."""

    def __init__(self, deliver: EventWatcher) -> None:
        super().__init__()
        self._hand_on = deliver

    async def put(self, event: Message) -> None:
        data = event.get("data")
        self._hand_on(str(event["event"]), data if isinstance(data, dict) else {})


class Monitor:
    """The QMP connection of one guest; comes back by itself until ``close``."""

    def __init__(self, socket_path: Path, name: str) -> None:
        self._path = socket_path
        self._name = name
        self._client = self._fresh()
        self._socket: socket.socket | None = None
        self._watchers: list[EventWatcher] = []
        self._keeper: asyncio.Task[None] | None = None
        self._parting: asyncio.Task[None] | None = None
        self._descriptors = asyncio.Lock()
        self._connected = asyncio.Event()
        self._running: set[asyncio.Task[object]] = set()
        self.on_reconnect: Callable[[], None] | None = None
        """Called after the connection was lost and came back: events may have been missed."""

    def _fresh(self) -> QMPClient:
        client = QMPClient()
        # The library reports every hang-up as an error; here it is how a process ends.
        client.logger = logging.getLogger("innkeeper.qmp.wire")
        client.logger.setLevel(logging.CRITICAL)
        client.events.event_filter = lambda event: False
        client.register_listener(_Dispatcher(self._deliver))
        return client

    def watch(self, watcher: EventWatcher) -> Callable[[], None]:
        """Call ``watcher(name, data)`` for every event; returns what ends that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher) if watcher in self._watchers else None

    async def connect(self, timeout_s: float = 30.0) -> None:
        """Connect and keep connected. Raises ``Unavailable`` (``vm.monitor_away``, ``vm.monitor_hung``)."""
        try:
            await asyncio.wait_for(self._connect(), timeout_s)
        except TimeoutError:
            raise self._hung("greet", timeout_s) from None
        self._keeper = asyncio.create_task(self._keep(), name=f"monitor {self._name}")

    async def _connect(self) -> None:
        client = self._fresh()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(connection, str(self._path))
            await client.connect(connection)
        except (OSError, ConnectError) as refused:
            connection.close()
            away = f"{self._name}: QEMU's monitor is away"
            raise Unavailable("vm.monitor_away", away, cause=str(refused)) from refused
        except asyncio.CancelledError:
            connection.close()
            raise
        self._client, self._socket = client, connection
        self._connected.set()

    async def _keep(self) -> None:
        """Connect again whenever the connection ends; give up only when closed."""
        while True:
            while self._client.runstate is Runstate.RUNNING:
                await self._client.runstate_changed()
            self._connected.clear()
            await self._part()
            while not self._connected.is_set():
                await asyncio.sleep(_RECONNECT_S)
                try:
                    await self._connect()
                except Unavailable as away:
                    log.debug("%s: %s", self._name, away)
            if self.on_reconnect is not None:
                self.on_reconnect()

    def _deliver(self, name: str, data: dict[str, Any]) -> None:
        for watcher in tuple(self._watchers):
            try:
                watcher(name, data)
            except Exception:  # a watcher's defect must not cost the connection that all depend on
                log.exception("%s: event %s", self._name, name)

    async def execute(self, command: str, *, timeout_s: float = 20.0, **arguments: Any) -> Any:
        """``command`` with the arguments as keywords: ``node_name`` becomes ``node-name``."""
        renamed = {key.replace("_", "-"): value for key, value in arguments.items()}
        return await self.command(command, renamed, timeout_s=timeout_s)

    async def command(self, command: str, arguments: dict[str, Any] | None = None, *, timeout_s: float = 20.0) -> Any:
        """Run a QMP command with exactly these arguments and return its value.

        Raises ``Unavailable`` (``vm.monitor_away``, ``vm.monitor_hung``), ``Failed`` (``vm.qemu_refused``).
        """
        # A reply that comes too late must still find its place in the library, hence the shield.
        task: asyncio.Task[object] = asyncio.create_task(self._client.execute(command, arguments or {}))
        self._running.add(task)
        task.add_done_callback(self._forget)
        try:
            return await asyncio.wait_for(asyncio.shield(task), timeout_s)
        except TimeoutError:
            raise self._hung(command, timeout_s) from None
        except ExecuteError as refused:
            raise Failed("vm.qemu_refused", f"{self._name}: QEMU refused {command}", cause=str(refused)) from refused
        except (ExecInterruptedError, StateError, QMPError, OSError, EOFError) as lost:
            raise Unavailable(
                "vm.monitor_away", f"{self._name}: the connection to QEMU was lost during {command}", cause=str(lost)
            ) from lost

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()

    async def lend(self, descriptor: int) -> int:
        """Hand QEMU a copy of a descriptor; returns the number N by which it opens ``/dev/fdset/N``."""
        added = await self._with_descriptor(descriptor, "add-fd", {})
        return int(added["fdset-id"])

    async def give(self, descriptor: int, name: str) -> None:
        """Hand QEMU a copy of a descriptor under a name, for commands that take one."""
        await self._with_descriptor(descriptor, "getfd", {"fdname": name})

    async def _with_descriptor(self, descriptor: int, command: str, arguments: dict[str, Any]) -> Any:
        async with self._descriptors:
            if self._socket is None or not self._connected.is_set():
                raise Unavailable("vm.monitor_away", f"{self._name}: QEMU's monitor is away")
            socket.send_fds(self._socket, [b" "], [descriptor])
            return await self.command(command, arguments)

    async def take_back(self, fdset: int) -> None:
        """Forget what ``lend`` gave; nothing happens when QEMU is gone."""
        try:
            await self.execute("remove-fd", fdset_id=fdset)
        except Problem as gone:
            log.debug("fdset %d of %s not removed: %s", fdset, self._name, gone)

    async def close(self) -> None:
        """Disconnect; QEMU goes on."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        await self._part()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        self._connected.clear()

    async def _part(self) -> None:
        """Disconnect in a task of its own: the library forgets errors of a disconnect that is cancelled half-way."""
        if self._parting is None or self._parting.done():
            self._parting = asyncio.create_task(_quietly_disconnect(self._client))
        await asyncio.shield(self._parting)

    def _hung(self, command: str, timeout_s: float) -> Unavailable:
        return Unavailable(
            "vm.monitor_hung",
            f"{self._name}: QEMU did not answer {command} within {timeout_s:g} s",
            cause="its storage is away, or the process is stuck",
            remedy="see whether the fabric runs; 'inn vm poweroff' ends the guest in any case",
        )


async def _quietly_disconnect(client: QMPClient) -> None:
    if client.runstate is Runstate.IDLE:
        return
    try:
        await client.disconnect()
    except (EOFError, OSError, QMPError):
        pass
