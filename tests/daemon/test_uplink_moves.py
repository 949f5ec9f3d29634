"""Moves of the host's network that nobody confirms: who looks, who lets go, and that the next try is a try.

The card is none that this host has: nothing of the host's is touched.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from still_kernel import StillKernel
from still_switches import still_switches

from innkeeper.daemon import uplinks
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask
from innkeeper.model.problems import Failed
from innkeeper.model.resources import Switch, SwitchKind, now
from innkeeper.model.uplink import HostAddress, HostNetwork, Uplink
from innkeeper.network.switch import SwitchRunner
from innkeeper.network.uplink_plan import NicFacts
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.uplink_record import Record, RecordFile, boot_time_s
from innkeeper.network.uplinks import Uplinks

CARD, MAC = "inn-nocard0", "52:54:00:00:00:77"
NETWORK = HostNetwork(addresses=(HostAddress(address="192.0.2.7", prefix_length=24),))


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StillKernel:
    async def facts(_: SwitchRunner, name: str) -> NicFacts:
        return NicFacts(name, 7, MAC, 1500, network=NETWORK)

    monkeypatch.setattr(SwitchRunner, "nic_facts", facts)
    monkeypatch.setattr(Uplinks, "_spawn_guard", lambda *_: None)
    monkeypatch.setattr(uplinks, "_GUARD_FIRST_S", 0.0)
    monkeypatch.setattr(uplinks, "_LOOK_AGAIN_S", 0.01)
    return StillKernel(tmp_path, monkeypatch, real_uplinks=True)


class Move:
    """A switch whose move waits."""

    def __init__(self, rooms: Rooms, switches: Switches, switch: Switch) -> None:
        self.rooms, self.switches, self.id = rooms, switches, switch.id
        self.bridge = rooms.paths.bridge(switch.number)
        self.file = RecordFile(rooms.paths.run / "uplinks", self.bridge)
        self.pending = Record(uplink=CARD, bridge=self.bridge, network=NETWORK, deadline_s=boot_time_s() + 3600)

    def write(self, **changes: object) -> None:
        """What the guard says."""
        self.file.write(self.pending.model_copy(update=changes))

    @property
    def document(self) -> Switch:
        return self.rooms.store.get(Switch, self.id)

    @property
    def state(self) -> str:
        assert self.document.uplink is not None
        return self.document.uplink.state

    @property
    def held(self) -> UplinkPolicy | None:
        """The uplink that the kernel's side believes in."""
        standing = self.switches._runner.standing(self.bridge)
        assert standing is not None
        return standing.switch.uplink


@asynccontextmanager
async def waiting_move(folder: Path) -> AsyncIterator[Move]:
    async with still_switches(folder) as (rooms, switches):
        uplink = Uplink(
            devices=[CARD],
            state="pending",
            confirm_by=now() + timedelta(hours=1),
            confirm_within_s=3600.0,
            moved=NETWORK,
            mac=MAC,
        )
        kind = SwitchKind.EXTERNAL
        switch = rooms.store.create(Switch(name="lan", switch_kind=kind, number=1, dhcp=False, uplink=uplink))
        move = Move(rooms, switches, switch)
        move.write()
        try:
            await switches.refresh(switch)
            yield move
        finally:
            move.file.remove()


def test_when_the_watchman_finds_a_move_given_back_the_kernel_lets_go(still: StillKernel, tmp_path: Path) -> None:
    async def live() -> None:
        async with waiting_move(tmp_path) as move:
            assert move.held is not None
            move.write(state="returned")
            report = await move.switches._repair()
            assert move.state == "returned" and move.held is None and move.file.read() is None
            assert report.problems == {}
            assert [one.reason for one in move.document.conditions] == ["switch.not_confirmed"]

    asyncio.run(live())


@pytest.mark.parametrize("settled", [True, False], ids=["known", "not-yet-known"])
def test_after_a_move_was_given_back_the_next_try_is_one(still: StillKernel, tmp_path: Path, settled: bool) -> None:
    async def live() -> None:
        async with waiting_move(tmp_path) as move:
            move.write(state="returned")
            if settled:
                move.switches._uplinks.settle()  # and nobody has told the kernel's side
                assert move.held is not None
            await move.switches.set("lan", ask.SwitchSet(uplinks=[CARD], confirm_within_s=60.0))
            assert move.state == "pending" and move.document.conditions == []
            assert move.held is not None and move.held.confirm_s == 60.0
            assert move.file.read() is None, "what came of the former try says nothing of this one"
            problem = move.switches._runner.uplink_problem(move.bridge)
            assert problem is not None and problem.code == "switch.uplink_gone", "it went to take the card"

    asyncio.run(live())


def test_who_looks_too_early_looks_again(still: StillKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[str] = []

    async def live() -> None:
        async with waiting_move(tmp_path) as move:
            refresh = move.switches._uplinks._refresh

            async def look(switch: Switch) -> None:
                looks.append(switch.id)
                if len(looks) == 1:
                    raise Failed("link.refused", "not now")
                if len(looks) == 2:
                    raise KeyError("nobody foresaw this")
                await refresh(switch)

            move.switches._uplinks._refresh = look
            due = move.document.uplink
            assert due is not None
            move.rooms.change(move.document, None, uplink=due.model_copy(update={"confirm_by": now()}))
            move.switches._uplinks.expect(move.document)
            (looking,) = move.switches._uplinks._waiting.values()
            while len(looks) < 6:
                await asyncio.sleep(0.01)
            assert move.state == "pending" and not looking.done(), "its guard still waits"
            move.write(state="returned")
            await asyncio.wait_for(looking, 10)
            assert move.state == "returned" and move.held is None and move.file.read() is None

    asyncio.run(live())


def test_who_looks_late_tells_the_kernel_all_the_same(still: StillKernel, tmp_path: Path) -> None:
    async def live() -> None:
        async with waiting_move(tmp_path) as move:
            move.write(state="returned")
            move.switches._uplinks.settle()
            assert move.held is not None
            assert await move.switches._uplinks._came_out(move.id)
            assert move.held is None and move.file.read() is None

    asyncio.run(live())
