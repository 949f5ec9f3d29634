"""A change that the kernel refuses is taken back, whoever changed the same document meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from still_kernel import StillKernel
from still_switches import still_switches

from innkeeper.daemon.acls import Acls
from innkeeper.model import requests as ask
from innkeeper.model.problems import Failed
from innkeeper.model.resources import Acl, Condition, Switch, SwitchKind

NOTED = Condition(type="Degraded", status=True, reason="switch.uplink_down", message="no carrier")


@pytest.fixture
def still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StillKernel:
    return StillKernel(tmp_path, monkeypatch)


def test_a_refused_change_of_a_switch_keeps_what_others_noted_of_it(still: StillKernel, tmp_path: Path) -> None:
    async def live() -> None:
        async with still_switches(tmp_path) as (rooms, switches):
            made = await switches.create(ask.SwitchCreate(name="lan", kind=SwitchKind.PRIVATE))
            assert isinstance(made, Switch)

            async def refuse(switch: Switch) -> None:
                rooms.change(rooms.store.get(Switch, switch.id), None, conditions=[NOTED])
                raise Failed("link.refused", "the kernel does not want it")

            switches.refresh = refuse  # type: ignore[method-assign]
            with pytest.raises(Failed, match="does not want it"):
                await switches.set("lan", ask.SwitchSet(mtu=1400, name="court"))
            kept = rooms.store.get(Switch, made.id)
            assert (kept.name, kept.mtu, kept.conditions) == ("lan", 1500, [NOTED])

    asyncio.run(live())


def test_a_refused_change_of_an_acl_is_taken_back(still: StillKernel, tmp_path: Path) -> None:
    async def live() -> None:
        async with still_switches(tmp_path) as (rooms, switches):
            acls = Acls(rooms, switches)
            made = await acls.create(ask.AclCreate(name="servers"))
            assert isinstance(made, Acl)

            async def refuse(acl: Acl) -> None:
                rooms.change(rooms.store.get(Acl, acl.id), None, labels={"team": "a"})
                raise Failed("nft.refused", "the kernel does not want it")

            switches.acl_changed = refuse  # type: ignore[method-assign]
            with pytest.raises(Failed, match="does not want it"):
                await acls.set("servers", ask.AclSet(name="others"))
            kept = rooms.store.get(Acl, made.id)
            assert (kept.name, kept.labels) == ("servers", {"team": "a"})

    asyncio.run(live())


def test_what_cannot_be_taken_back_does_not_hide_why_it_was_refused(still: StillKernel, tmp_path: Path) -> None:
    async def live() -> None:
        async with still_switches(tmp_path) as (rooms, switches):
            made = await switches.create(ask.SwitchCreate(name="lan", kind=SwitchKind.PRIVATE))
            assert isinstance(made, Switch)
            rooms.store.delete("switch", made.id)
            rooms.take_back(made, ["mtu"])
            assert await switches.ls() == []

    asyncio.run(live())
