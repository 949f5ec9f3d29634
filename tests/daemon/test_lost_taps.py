"""A tap that had to be made again is offered to the process that had the old one, if that still runs."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from still_kernel import StillKernel
from still_switches import still_switches

from innkeeper.compute.adoption import start_ticks
from innkeeper.daemon import watchman
from innkeeper.daemon.journal import Journal
from innkeeper.daemon.lost_taps import give_back
from innkeeper.daemon.rooms import Rooms
from innkeeper.model.resources import Nic, Switch, SwitchKind, Vm, VmSpec, VmStatus, new_id
from innkeeper.network import switch
from innkeeper.network.report import Report
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths


class Runner:
    def __init__(self, given: bool) -> None:
        self.given = given
        self.asked: list[tuple[int, str]] = []

    async def give_back(self, pid: int, tap: str) -> bool:
        self.asked.append((pid, tap))
        return self.given


@pytest.mark.parametrize("given", [True, False])
def test_only_a_process_that_is_the_vms_is_asked(tmp_path: Path, given: bool) -> None:
    paths = Paths.open(tmp_path / "inn", create=True)
    store, unused = Store(paths.database), None
    rooms: Any = Rooms(paths, store, unused, unused, Journal(paths.journal))  # type: ignore[arg-type]
    began = start_ticks(os.getpid())
    taps = {}
    for number, (name, pid, start) in enumerate(
        [("runs", os.getpid(), began), ("reused", os.getpid(), 1), ("off", None, None)], 1
    ):
        vm = store.create(Vm(name=name, spec=VmSpec(), status=VmStatus(pid=pid, process_start=start)))
        store.create(Nic(name=name, vm_id=vm.id, switch_id=new_id(), mac=f"52:54:00:00:00:0{number}", number=number))
        taps[name] = paths.tap(number)
    report, runner = Report(new_taps=[*taps.values(), paths.tap(9)]), Runner(given)
    asyncio.run(give_back(rooms, runner, report))  # type: ignore[arg-type]
    assert runner.asked == [(os.getpid(), taps["runs"])]
    (told,) = report.done
    assert taps["runs"] in told and ("back to its guest" in told) is given
    store.close()


def test_a_start_gives_back_what_it_had_to_make_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[int, str]] = []
    StillKernel(tmp_path, monkeypatch)
    monkeypatch.setattr(switch, "give_back", lambda *asked: given.append(asked))
    monkeypatch.setattr(watchman, "LOOK_INTERVAL_S", 3600.0)

    async def live() -> None:
        async with still_switches(tmp_path) as (rooms, switches):
            lan = rooms.store.create(Switch(name="lan", switch_kind=SwitchKind.PRIVATE, number=1, dhcp=False))
            status = VmStatus(pid=os.getpid(), process_start=start_ticks(os.getpid()))
            vm = rooms.store.create(Vm(name="web", spec=VmSpec(), status=status))
            rooms.store.create(Nic(name="web-0", vm_id=vm.id, switch_id=lan.id, mac="52:54:00:00:00:01", number=1))
            await switches.ensure_all()
            assert given == [(os.getpid(), rooms.paths.tap(1))]

    asyncio.run(live())
