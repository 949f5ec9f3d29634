"""Snapshots of a guest's disks at one instant, with its file systems frozen when its agent can do that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Literal

from innkeeper.daemon.power import Power
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.problems import Problem, Unavailable
from innkeeper.model.resources import Vm, VmState

log = logging.getLogger(__name__)

Quiesce = Literal["auto", "require", "never"]


class Quiescer:
    """Takes the snapshots that checkpoints, clones and backups stand on."""

    def __init__(self, rooms: Rooms, power: Power) -> None:
        self._rooms = rooms
        self._power = power

    async def snapshot(self, vm: Vm, snapshots: Mapping[str, str], *, quiesce: Quiesce) -> bool:
        """Snapshot the disks of ``snapshots`` (disk id -> fabric snapshot id) at one instant; may be repeated.

        True when the guest's file systems were frozen then (a stopped guest counts as frozen: nothing was in memory;
        a crashed or saved one does not). Frozen file systems are always thawed. Raises ``Unavailable``
        (``vm.not_quiesced``) when ``quiesce`` is ``require`` and the file systems cannot be frozen.
        """
        wanted = {snapshot_id: disk_id for disk_id, snapshot_id in snapshots.items()}
        guest = self._power.guest(vm)
        if guest is None and vm.status.state == VmState.STOPPED:
            await self._rooms.fabric.snapshot_create(wanted)
            return True
        if guest is not None and quiesce != "never" and vm.status.state == VmState.RUNNING:
            try:
                async with guest.agent.frozen_file_systems():
                    # Shielded: a cancel must not leave the caller unsure whether the snapshots exist.
                    await asyncio.shield(self._rooms.fabric.snapshot_create(wanted))
                return True
            except Problem as refused:
                if quiesce == "require" or not refused.code.startswith("agent."):
                    raise
                log.warning("vm %s: not frozen: %s", vm.name, refused)
        if quiesce == "require":
            raise Unavailable(
                "vm.not_quiesced",
                f"vm {vm.name!r} is {vm.status.state}: its file systems cannot be frozen",
                remedy="start it and wait for its agent, or do not require frozen file systems",
            )
        await self._rooms.fabric.snapshot_create(wanted)
        return False
