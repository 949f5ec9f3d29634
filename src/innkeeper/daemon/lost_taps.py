"""Taps that had to be made again, given back to the guests that had them."""

from __future__ import annotations

from innkeeper.compute.adoption import start_ticks
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.resources import Nic, Vm
from innkeeper.network.report import Report
from innkeeper.network.switch import SwitchRunner


async def give_back(rooms: Rooms, runner: SwitchRunner, report: Report) -> None:
    """Give the report's new taps to their vms' processes, those that run; what came of it is added to the report."""
    if not report.new_taps:
        return
    nics = {rooms.paths.tap(nic.number): nic for nic in rooms.store.ls(Nic)}
    vms = {vm.id: vm for vm in rooms.store.ls(Vm)}
    for tap in report.new_taps:
        vm = vms.get(nics[tap].vm_id) if tap in nics else None
        pid = vm.status.pid if vm is not None else None
        if vm is None or pid is None or start_ticks(pid) != vm.status.process_start:
            continue
        given = await runner.give_back(pid, tap)
        report.done.append(
            f"give tap {tap} back to its guest" if given else f"tap {tap} is new: restart the vm that lost it"
        )
