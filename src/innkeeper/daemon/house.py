"""The house: all services of one inn, made in order and ended in reverse."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from innkeeper.daemon import temporary
from innkeeper.daemon.acls import Acls
from innkeeper.daemon.assembly import Assembly
from innkeeper.daemon.backups import Backups
from innkeeper.daemon.checkpoints import Checkpoints
from innkeeper.daemon.disks import Disks
from innkeeper.daemon.exports import Exports
from innkeeper.daemon.host import Host
from innkeeper.daemon.images import Images
from innkeeper.daemon.journal import Journal, JournalService
from innkeeper.daemon.nics import Nics
from innkeeper.daemon.nvram import Nvram
from innkeeper.daemon.pools import Pools
from innkeeper.daemon.power import Power
from innkeeper.daemon.qos import QosPolicies
from innkeeper.daemon.quiesce import Quiescer
from innkeeper.daemon.repositories import Repositories
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.scrubbing import Scrubbing
from innkeeper.daemon.storages import Storages
from innkeeper.daemon.switches import Switches
from innkeeper.daemon.task_service import Tasks
from innkeeper.daemon.vms import Vms
from innkeeper.fabric.client import FabricClient
from innkeeper.model import views
from innkeeper.model.problems import Conflict
from innkeeper.model.resources import Vm
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths
from innkeeper.tasks.engine import Engine

log = logging.getLogger(__name__)


class House:
    """One service per noun, and the events of all of them."""

    def __init__(self, rooms: Rooms) -> None:
        self._rooms = rooms
        self.pools = Pools(rooms)
        self.qos = QosPolicies(rooms)
        self.storages = Storages(rooms)
        self.exports = Exports(rooms)
        self.disks = Disks(rooms, self.storages, self.exports)
        self.images = Images(rooms, self.disks, self.storages)
        self.switches = Switches(rooms)
        self.nics = Nics(rooms, self.switches)
        self.acls = Acls(rooms, self.switches)
        self.power = Power(rooms, self.disks, self.switches)
        quiescer = Quiescer(rooms, self.power)
        nvram = Nvram(rooms, self.disks, self.storages)
        assembly = Assembly(rooms, self.disks, self.nics, nvram, self.power)
        self.checkpoints = Checkpoints(rooms, self.power, quiescer)
        self.vms = Vms(rooms, self.disks, self.nics, self.power, self.checkpoints, assembly, quiescer)
        self.repositories = Repositories(rooms)
        self.backups = Backups(
            rooms,
            self.disks,
            self.storages,
            self.vms,
            self.power,
            quiescer,
            self.repositories,
            assembly,
        )
        Scrubbing(rooms, self.repositories)
        self.tasks = Tasks(rooms)
        self.journal = JournalService(rooms.journal, lambda ref: rooms.store.get(Vm, ref).id)
        self.firewall = self.switches.firewall
        self.host = Host(rooms, self.power, self.switches, self.pools, self.qos)
        for told in (self.qos.tell, self.storages.tell, self.exports.tell):
            self.pools.life.on_opened(told)
        self.disks.serve(self.power)
        self.nics.serve(self.power)

    async def settle(self) -> None:
        """Bring what is desired and what is there together after a start: adopt, repair, finish, tidy.

        The switches stand by then.
        """
        await self.pools.settle()
        await self.qos.settle()
        await self.storages.settle()
        await self.power.adopt_all()
        await self.exports.settle()
        await temporary.settle(self._rooms)
        await self._rooms.engine.recover()
        await self.disks.moves.settle()
        for name in await self.disks.tidy():
            log.warning("disk %s was left half-made and has been removed", name)
        for stranger in await self.exports.strangers():
            log.warning("the fabric holds %s, which nothing here knows; it is kept", stranger)
        await self.power.autostart()

    async def events(self, since: int | None = None) -> AsyncIterator[views.Event]:
        """Every change of a resource after revision ``since`` (None: from now on)."""
        start = self._rooms.store.revision if since is None else since
        async for revision, action, resource in self._rooms.store.watch(start):
            yield views.Event(
                revision=revision,
                action=action,
                kind=resource.kind,
                id=resource.id,
                name=resource.name,
                resource=None if action == "deleted" else resource.model_dump(mode="json"),
            )


@contextmanager
def _only_daemon(paths: Paths) -> Iterator[None]:
    """Hold the inn's daemon lock; raises ``Conflict`` (``inn.busy``) when another daemon has it."""
    descriptor = os.open(paths.daemon_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as held:
        os.close(descriptor)
        raise Conflict(
            "inn.busy",
            f"another daemon serves {paths.state}",
            remedy="use that one, or give this one a state directory of its own with --state-dir",
        ) from held
    try:
        yield
    finally:
        os.close(descriptor)


@asynccontextmanager
async def open_house(paths: Paths) -> AsyncIterator[House]:
    """The house of the inn at ``paths``, settled; its guests outlive it.

    Raises ``Conflict`` (``inn.busy``), ``Unavailable`` (``fabric.unreachable``), ``Corrupt`` (``state.*``).
    """
    with _only_daemon(paths):
        store = Store(paths.database)
        fabric = FabricClient(paths.fabric_socket)
        journal = Journal(paths.journal)
        engine = Engine(store)
        try:
            house = House(Rooms(paths, store, engine, fabric, journal))
            try:
                await house.switches.ensure_all()  # first: the host's own network is on external ones
                await fabric.connect()
                await house.settle()
                yield house
            finally:
                await engine.close()
                await house.power.let_go()
                await house.switches.let_go()
                house.exports.let_go()
                await house.pools.life.let_go()
        finally:
            await fabric.close()
            journal.close()
            store.close()
