"""The daemon's switches on a host of ``host_lab``: documents, a journal and a real kernel, without guests."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from host_lab import Host, new_host
from switch_lab import in_namespace

from innkeeper.daemon.journal import Journal
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.model.journal import JournalFilter
from innkeeper.model.problems import Problem
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths

T = TypeVar("T")


class Inn:
    """The switches of an inn on a host of ``host_lab``; each ``run`` is a daemon's life."""

    def __init__(self, host: Host, paths: Paths) -> None:
        self.host = host
        self.paths = paths
        self.told: list[str] = []
        """Reasons in the journal when the last daemon ended."""

    def run(self, scenario: Callable[[Switches], Awaitable[T]], *, ends: bool = True) -> T:
        async def live() -> T:
            store = Store(self.paths.database)
            unused: Any = None
            journal = Journal(self.paths.journal)
            switches = Switches(Rooms(self.paths, store, unused, unused, journal))
            await switches.ensure_all()
            try:
                return await scenario(switches)
            finally:
                await (switches.down_all() if ends else switches.let_go())
                self.told = [entry.reason for entry in journal.ls(JournalFilter())]
                journal.close()
                store.close()

        return in_namespace(self.host.namespace, lambda: asyncio.run(live()))


@contextmanager
def inn_on_host(folder: Path) -> Iterator[Inn]:
    """An inn with its host, for the time of the block."""
    paths = Paths.open(folder / "inn", create=True)
    with new_host() as host:
        yield Inn(host, paths)
    shutil.rmtree(paths.run, ignore_errors=True)


async def code_of(work: Awaitable[object]) -> str:
    """The code of the problem that it ends with, or ``done``."""
    try:
        await work
    except Problem as problem:
        return problem.code
    return "done"
