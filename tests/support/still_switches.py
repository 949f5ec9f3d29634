"""The daemon's switches on a ``StillKernel``: documents, a runner and what they make of each other, without root."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from innkeeper.daemon.journal import Journal
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths


@asynccontextmanager
async def still_switches(folder: Path) -> AsyncIterator[tuple[Rooms, Switches]]:
    """Started, with nobody who watches."""
    paths = Paths.open(folder / "inn", create=True)
    store, unused = Store(paths.database), None
    rooms: Any = Rooms(paths, store, unused, unused, Journal(paths.journal))  # type: ignore[arg-type]
    switches = Switches(rooms)
    await switches._start()
    try:
        yield rooms, switches
    finally:
        await switches.let_go()
        rooms.journal.close()
        store.close()
        shutil.rmtree(paths.run, ignore_errors=True)
