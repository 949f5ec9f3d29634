"""External switches as the daemon keeps them: documents, deadlines, a daemon that dies, a reboot. No guests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from host_lab import HOST4
from switch_lab import in_namespace
from switches_on_host import Inn, code_of, inn_on_host

from innkeeper.cli import leftovers, processes
from innkeeper.daemon import house, vlans
from innkeeper.daemon.switches import Switches
from innkeeper.fabric.client import FabricClient
from innkeeper.model import requests as ask, views
from innkeeper.model.problems import Unavailable
from innkeeper.model.resources import Nic, Switch, SwitchKind, Vm, VmSpec, VmStatus
from innkeeper.model.vlan import parse_vlan
from innkeeper.network.uplinks import has_bonding

pytestmark = pytest.mark.root


@pytest.fixture
def inn(tmp_path: Path) -> Iterator[Inn]:
    with inn_on_host(tmp_path) as made:
        yield made


def wish(**changes: Any) -> ask.SwitchCreate:
    return ask.SwitchCreate(name="lan", kind=SwitchKind.EXTERNAL, uplinks=["eth0"], **changes)


def test_a_switch_takes_the_card_is_confirmed_and_gives_it_back(inn: Inn) -> None:
    before = inn.host.network()

    async def take(switches: Switches) -> None:
        planned = await switches.create(wish(), dry_run=True)
        assert isinstance(planned, views.Plan)
        assert any(step.startswith(f"move address {HOST4}/24 from eth0 to inbr-") for step in planned.steps)
        assert inn.host.network() == before and await switches.ls() == []
        made = await switches.create(wish())
        assert isinstance(made, Switch) and made.uplink is not None
        assert (made.uplink.state, made.mtu, made.dhcp, made.subnet) == ("pending", 1500, False, None)
        shown = await switches.show("lan")
        assert [(card.device, card.present, card.carrier) for card in shown.cards] == [("eth0", True, True)]
        kept = await switches.confirm("lan")
        assert kept.uplink is not None and kept.uplink.state == "taken"
        assert await switches.confirm("lan") == kept
        assert await code_of(switches.create(wish().model_copy(update={"name": "more"}))) == "switch.uplink_taken"
        assert await code_of(switches.set("lan", ask.SwitchSet(mtu=9000))) == "switch.uplink_mtu"
        assert await switches.set("lan", ask.SwitchSet(uplinks=["eth0"])) is not None
        assert inn.host.reaches()

    inn.run(take, ends=False)
    inn.run(_stands, ends=False)
    inn.run(_goes)
    assert inn.host.network() == before


async def _stands(switches: Switches) -> None:
    (switch,) = await switches.ls()
    assert switch.uplink is not None and switch.uplink.state == "taken" and switch.conditions == []


async def _goes(switches: Switches) -> None:
    await switches.rm("lan")
    assert await switches.ls() == []


def test_an_inn_that_goes_down_gives_back_and_takes_again_when_it_is_up(inn: Inn) -> None:
    before = inn.host.network()

    async def take(switches: Switches) -> None:
        await switches.create(wish())
        await switches.confirm("lan")

    inn.run(take)
    assert inn.host.network() == before
    inn.run(_stands, ends=False)
    (bridge,) = inn.host.network()
    assert bridge.startswith("inbr-") and inn.host.reaches()
    inn.run(_goes)


def test_what_is_not_confirmed_is_given_back_and_can_be_tried_again(inn: Inn) -> None:
    before = inn.host.network()

    async def wait(switches: Switches) -> None:
        await switches.create(wish(confirm_within_s=1.0))
        for _ in range(200):
            switch = (await switches.ls())[0]
            if switch.uplink is not None and switch.uplink.state == "returned":
                break
            await asyncio.sleep(0.05)
        assert [one.reason for one in switch.conditions] == ["switch.not_confirmed"]
        assert inn.host.network() == before
        assert await code_of(switches.confirm("lan")) == "switch.not_confirmed"
        again = await switches.set("lan", ask.SwitchSet(uplinks=["eth0"]))
        assert isinstance(again, Switch) and again.uplink is not None and again.uplink.state == "pending"
        kept = await switches.confirm("lan")
        assert kept.conditions == [] and "eth0" not in inn.host.network()

    inn.run(wait)
    assert {"UplinkTaken", "UplinkReturned", "UplinkConfirmed"} <= set(inn.told)
    assert inn.host.network() == before


def test_a_reboot_undoes_what_was_not_confirmed(inn: Inn) -> None:
    before = inn.host.network()

    async def take(switches: Switches) -> None:
        await switches.create(wish())

    async def look(switches: Switches) -> None:
        (switch,) = await switches.ls()
        assert switch.uplink is not None and switch.uplink.state == "returned"
        assert "started anew" in switch.conditions[0].message

    inn.run(take)  # the kernel forgets, and /run with it
    inn.run(look)
    assert {"UplinkTaken", "UplinkReturned"} <= set(inn.told)
    assert inn.host.network() == before


@pytest.mark.parametrize("confirmed", [True, False], ids=["confirmed", "waiting"])
def test_what_a_dead_daemon_left_gives_the_card_back_when_it_is_cleared(inn: Inn, confirmed: bool) -> None:
    before = inn.host.network()

    async def take(switches: Switches) -> None:
        await switches.create(wish())
        if confirmed:
            await switches.confirm("lan")

    inn.run(take, ends=False)
    cleared, stayed = in_namespace(inn.host.namespace, lambda: leftovers.clear(inn.paths))
    assert stayed == [] and any(one.startswith("device inbr-") for one in cleared)
    assert inn.host.network() == before and inn.host.reaches()
    assert list(processes.of_inn(inn.paths)) == []


def test_the_network_stands_where_the_fabric_does_not(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    before = inn.host.network()

    async def take(switches: Switches) -> None:
        await switches.create(wish())
        await switches.confirm("lan")

    inn.run(take)
    assert inn.host.network() == before
    monkeypatch.setattr(house, "FabricClient", partial(FabricClient, patience_s=0.1))

    async def start() -> None:
        async with house.open_house(inn.paths):
            raise AssertionError("there is no fabric")

    with pytest.raises(Unavailable, match="fabric"):
        in_namespace(inn.host.namespace, lambda: asyncio.run(start()))
    (bridge,) = inn.host.network()
    assert bridge.startswith("inbr-") and inn.host.reaches()
    inn.run(_goes)


def test_an_uplink_that_is_gone_is_a_finding(inn: Inn) -> None:
    async def take(switches: Switches) -> None:
        await switches.create(wish())
        await switches.confirm("lan")

    async def look(switches: Switches) -> None:
        assert [name for name, _ in switches.findings()] == ["lan"]
        assert "eth0, the uplink of switch lan, is gone" in switches.findings()[0][1]
        assert await code_of(switches.set("lan", ask.SwitchSet(uplinks=["eth9"]))) == "switch.uplink_gone"

    inn.run(take)
    inn.host.ip("link del eth0")
    inn.run(look)
    assert "SwitchDegraded" in inn.told


def test_another_card_can_become_the_uplink(inn: Inn) -> None:
    before = inn.host.network()
    inn.host.ip("link add eth1 type veth peer name far")
    for name in ("eth1", "far"):
        inn.host.ip(f"link set {name} up")

    async def change(switches: Switches) -> None:
        await switches.create(wish())
        await switches.confirm("lan")
        planned = await switches.set("lan", ask.SwitchSet(uplinks=["eth1"]), dry_run=True)
        assert isinstance(planned, views.Plan) and any(step.startswith("give eth0 back") for step in planned.steps)
        changed = await switches.set("lan", ask.SwitchSet(uplinks=["eth1"]))
        assert isinstance(changed, Switch) and changed.uplink is not None
        assert (changed.uplink.devices, changed.uplink.state) == (["eth1"], "taken"), "there is nothing to confirm"
        assert inn.host.network() == before and inn.host.reaches()
        assert "master inbr-" in inn.host.ip("link show eth1") and "master" not in inn.host.ip("link show eth0")
        back = await switches.set("lan", ask.SwitchSet(uplinks=["eth0"]))
        assert isinstance(back, Switch) and back.uplink is not None and back.uplink.state == "pending"
        await switches.confirm("lan")
        assert "eth0" not in inn.host.network() and inn.host.reaches()
        assert "master" not in inn.host.ip("link show eth1")

    inn.run(change)
    assert inn.host.network() == before


def test_an_uplink_with_the_hosts_own_device_for_a_cards_vlan_is_refused(
    inn: Inn, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def change(switches: Switches) -> None:
        made = await switches.create(ask.SwitchCreate(name="lan", kind=SwitchKind.EXTERNAL, uplinks=["eth1"]))
        assert isinstance(made, Switch)
        vm = switches._rooms.store.create(Vm(name="web", spec=VmSpec(), status=VmStatus(uid=900001)))
        facts = {"name": "web-0", "vm_id": vm.id, "number": 1, "mac": "52:54:00:00:00:01"}
        switches._rooms.store.create(Nic(**facts, switch_id=made.id, vlan=parse_vlan("access:7")))
        monkeypatch.setattr(vlans, "host_vlans", lambda: {("eth0", 7): "eth0.7"})
        assert await code_of(switches.set("lan", ask.SwitchSet(uplinks=["eth0"]), dry_run=True)) == "nic.vlan_in_use"
        monkeypatch.setattr(vlans, "host_vlans", lambda: {("eth0", 8): "eth0.8"})
        assert await code_of(switches.set("lan", ask.SwitchSet(uplinks=["eth0"]), dry_run=True)) == "done"

    inn.host.ip("link add eth1 type veth peer name far")
    inn.run(change)


def test_a_team_needs_a_kernel_that_can_make_one(inn: Inn) -> None:
    async def ask_for_one(switches: Switches) -> None:
        asked = ask.SwitchCreate(name="lan", kind=SwitchKind.EXTERNAL, uplinks=["eth0"], team="active-backup")
        assert await code_of(switches.create(asked, dry_run=True)) == (
            "done" if has_bonding() else "switch.team_missing"
        )

    inn.run(ask_for_one)


def test_bad_wishes_are_refused(inn: Inn) -> None:
    async def refuse(switches: Switches) -> None:
        for uplinks, team, code in (
            (["eth7"], None, "switch.uplink_gone"),
            (["lo"], None, "switch.uplink_kind"),
            (["eth0", "lo"], None, "switch.uplink"),
        ):
            asked = ask.SwitchCreate(name="lan", kind=SwitchKind.EXTERNAL, uplinks=uplinks, team=team)
            assert await code_of(switches.create(asked)) == code
        await switches.create(ask.SwitchCreate(name="inside", kind=SwitchKind.PRIVATE))
        assert await code_of(switches.set("inside", ask.SwitchSet(uplinks=["eth0"]))) == "switch.not_external"
        assert await code_of(switches.confirm("inside")) == "switch.not_external"

    inn.run(refuse)
    for members in (
        {"kind": "external"},
        {"kind": "nat", "uplinks": ["eth0"]},
        {"uplinks": ["eth0"], "subnet": "10.0.0.0/24"},
    ):
        with pytest.raises(ValueError, match="external switch"):
            ask.SwitchCreate(name="lan", **{"kind": "external", **members})  # type: ignore[arg-type]
