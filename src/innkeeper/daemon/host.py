"""The ``host`` noun: this machine, the inn's processes on it, the doctor, and the orderly end."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from datetime import datetime

import innkeeper
from innkeeper.daemon.pools import Pools
from innkeeper.daemon.power import Power
from innkeeper.daemon.qos import QosPolicies
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.harden import doctor, facts
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Problem
from innkeeper.model.resources import Disk, Pool, Qos, Storage, Switch, Task, Vm, now
from innkeeper.observe import ports
from innkeeper.observe.exposition import exposition
from innkeeper.tasks.engine import Run, Step, TaskKind


class Host:
    """The ``host`` noun."""

    def __init__(self, rooms: Rooms, power: Power, switches: Switches, pools: Pools, qos: QosPolicies) -> None:
        self._rooms = rooms
        self._pools = pools
        self._qos = qos
        self._power = power
        self._switches = switches
        self._started_at: datetime = now()
        rooms.engine.register(
            TaskKind(
                "host.stop",
                [Step("end the guests", self._end_guests), Step("take the switches down", self._end_switches)],
                cancellable=False,
            )
        )

    async def show(self) -> views.HostView:
        host = await asyncio.to_thread(facts.gather, self._rooms.paths.state)
        pool = await self._rooms.fabric.pool_show()
        return views.HostView(
            inn_id=self._rooms.paths.inn_id,
            inn_uuid=self._rooms.paths.inn_uuid,
            version=innkeeper.__version__,
            state_dir=str(self._rooms.paths.state),
            hostname=socket.gethostname(),
            daemon_pid=os.getpid(),
            fabric_pid=self._pid("fabric"),
            keeper_pid=self._pid("keeper"),
            started_at=self._started_at,
            cpus=os.cpu_count() or 0,
            memory_bytes=host.memory_total_bytes,
            memory_available_bytes=host.memory_available_bytes,
            accelerator=self._power.accelerator,
            qemu_version=host.tools.get("qemu-system-x86_64"),
            pool=pool,
            allow_docker=self._switches.allows_docker,
            vms=dict(Counter(vm.status.state.value for vm in self._rooms.store.ls(Vm))),
        )

    async def set(self, request: ask.HostSet) -> views.HostView:
        """Raises ``Failed`` (``tool.failed``) where iptables refuses; nothing has changed then."""
        if request.allow_docker is not None:
            await self._switches.allow_docker(request.allow_docker)
        return await self.show()

    def _pid(self, name: str) -> int | None:
        try:
            return int((self._rooms.paths.run / f"{name}.pid").read_text())
        except (OSError, ValueError):
            return None

    async def health(self) -> views.Health:
        try:
            await self._rooms.fabric.ping()
            answers = True
        except Problem:
            answers = False
        return views.Health(
            inn_id=self._rooms.paths.inn_id,
            version=innkeeper.__version__,
            daemon_pid=os.getpid(),
            fabric=answers,
        )

    async def metrics(self) -> str:
        """Everything that is measured, in Prometheus' text format. Raises ``Unavailable`` (``fabric.unreachable``)."""
        names = {one.id: one.name for kind in (Disk, Qos, Storage, Pool) for one in self._rooms.store.ls(kind)}
        metering = self._switches.metering
        of_ports = ports.exposition(await metering.facts(), await metering.host_dropped())
        return exposition(await self._rooms.fabric.metrics(), names) + of_ports

    async def doctor(self) -> list[views.Check]:
        switches = self._rooms.store.ls(Switch)
        forwards = [forward for switch in switches for forward in switch.forwards]
        gathered = await asyncio.to_thread(
            facts.gather,
            self._rooms.paths.state,
            accelerator=self._power.accelerator,
            wanted_ports=tuple((forward.protocol, forward.host_port) for forward in forwards),
            gateways=self._switches.gateways(),
            switch_findings=self._switches.findings(),
            firewall_findings=await self._firewall_findings(),
            pool_problem=await self._pools.problem(),
            qos_alarms=tuple(await self._qos.alarms()),
            foreign_drops=tuple((one.detail, one.remedy) for one in await self._switches.foreign_findings()),
        )
        return doctor.examine(gathered)

    async def _firewall_findings(self) -> tuple[str, ...]:
        try:
            return tuple(await self._switches.firewall.findings())
        except Problem:  # the switches cannot be started, which the doctor tells by them
            return ()

    async def stop(self, request: ask.HostStop) -> Task:
        """End guests and switches, so that the daemon can end without leaving anything behind."""
        return self._rooms.engine.start("host.stop", request.model_dump(), target_kind="host", target_id="host")

    async def _end_guests(self, run: Run) -> None:
        await self._power.end_all(force=bool(run.parameters["force"]), progress=run.progress)

    async def _end_switches(self, run: Run) -> None:
        await self._switches.down_all()
