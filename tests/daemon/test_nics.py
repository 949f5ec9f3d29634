"""What cards may have on the switch that they join, and what of a card another vm's can have. No network is touched."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from innkeeper.daemon import vlans
from innkeeper.daemon.nics import Nics, like, macs_in_use
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask
from innkeeper.model.dhcp import DhcpReservation, DhcpSettings
from innkeeper.model.overlay import LookupRecord, Overlay
from innkeeper.model.problems import Conflict, Problem
from innkeeper.model.resources import Nic, Resource, Switch, SwitchKind, Vm, VmSpec, VmStatus
from innkeeper.model.traffic import NicTraffic, NicTrafficSet
from innkeeper.model.vlan import NicVlan
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths

HERE, THERE = "192.0.2.1", "192.0.2.2"
ELSEWHERE_MAC, ELSEWHERE = "52:54:00:00:99:01", "10.5.0.9"
RESERVED_MAC = "52:54:00:00:99:02"
SWITCHES = [
    Switch(
        name="lan",
        number=1,
        subnet="10.77.0.0/24",
        mtu=9000,
        dhcp_settings=DhcpSettings(reservations=[DhcpReservation(mac=RESERVED_MAC, address="10.77.0.200")]),
    ),
    Switch(name="yard", number=2, switch_kind=SwitchKind.INTERNAL, subnet="10.78.0.0/24"),
    Switch(name="bare", number=3, switch_kind=SwitchKind.PRIVATE),
    Switch(name="ext", number=4, switch_kind=SwitchKind.EXTERNAL),
    Switch(
        name="red",
        number=5,
        switch_kind=SwitchKind.VIRTUAL,
        subnet="10.5.0.0/24",
        mtu=1450,
        overlay=Overlay(
            vni=5001,
            provider_address=HERE,
            routing_domain="red",
            domain_number=1,
            records=[LookupRecord(customer_address=ELSEWHERE, mac=ELSEWHERE_MAC, provider_address=THERE)],
        ),
    ),
]


@dataclass
class Inn:
    """Switches of each kind, and a vm."""

    rooms: Rooms
    nics: Nics
    vm: Vm

    def switch(self, name: str) -> Switch:
        return self.rooms.store.get(Switch, name)

    def card(self, switch: str, **wish: Any) -> Nic:
        return self.nics.allocate(self.vm, ask.VmNic(switch=switch, **wish))

    def refusal(self, nic: Nic, **changes: Any) -> Problem | None:
        """Why the card cannot be changed so; None when all that is amiss is that no switch stands."""
        with pytest.raises(Problem) as refused:
            asyncio.run(self.nics.set(nic.id, ask.NicSet(**changes), dry_run=True))
        return None if refused.value.code == "network.not_started" else refused.value


@pytest.fixture
def inn(tmp_path: Path) -> Iterator[Inn]:
    paths = Paths.open(tmp_path / "inn", create=True)
    store = Store(paths.database)
    unused: list[Any] = [None] * (len(fields(Rooms)) - 2)
    rooms = Rooms(paths, store, *unused)
    made: list[Resource] = [store.create(switch) for switch in SWITCHES]
    assert len(made) == len(SWITCHES)
    vm = store.create(Vm(name="web", spec=VmSpec(), status=VmStatus(uid=900001)))
    yield Inn(rooms, Nics(rooms, Switches(rooms)), vm)
    store.close()


# --- a card that moves -----------------------------------------------------------------------------------------------


def test_what_a_card_keeps_is_judged_where_it_goes(inn: Inn) -> None:
    other = inn.card("yard", address="10.78.0.7")
    card = inn.rooms.change(inn.card("lan"), None, extra_addresses=["10.78.0.7"])
    assert inn.refusal(card, guards={}) is None, "on its own switch nobody has it"
    refused = inn.refusal(card, switch="yard")
    assert refused is not None and refused.code == "nic.address_in_use" and other.name in str(refused)
    assert inn.refusal(card, switch="yard", extra_addresses=["10.78.0.8"]) is None
    assert inn.refusal(card, switch="yard", extra_addresses=[]) is None


@pytest.mark.parametrize("address", ["10.78.0.1", "fe80::5054:ff:fe00:77"])
def test_no_card_brings_a_gateways_or_a_neighbours_address(inn: Inn, address: str) -> None:
    inn.card("yard", mac="52:54:00:00:00:77")
    card = inn.rooms.change(inn.card("lan"), None, extra_addresses=[address])
    refused = inn.refusal(card, switch="yard")
    assert refused is not None and refused.code == "nic.address_in_use"


def test_no_extra_is_that_of_a_guest_on_another_host(inn: Inn) -> None:
    card = inn.card("red")
    for changes in ({"extra_addresses": [ELSEWHERE]}, {"extra_macs": [ELSEWHERE_MAC]}):
        refused = inn.refusal(card, **changes)
        assert isinstance(refused, Conflict), changes
    moving = inn.rooms.change(inn.card("lan"), None, extra_macs=[ELSEWHERE_MAC])
    refused = inn.refusal(moving, switch="red")
    assert refused is not None and refused.code == "nic.mac_in_use"
    assert inn.refusal(moving, switch="red", extra_macs=[]) is None
    assert inn.refusal(moving, switch="yard") is None


def test_no_card_moves_to_where_another_host_has_its_mac(inn: Inn) -> None:
    card = inn.card("lan", mac=ELSEWHERE_MAC)
    refused = inn.refusal(card, switch="red")
    assert refused is not None and refused.code == "nic.mac_in_use" and THERE in str(refused)
    assert inn.refusal(card, switch="yard") is None


# --- a card like another ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [switch.name for switch in SWITCHES])
def test_what_is_like_a_card_can_be_had_on_every_switch(inn: Inn, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    vlan = NicVlan(mode="access", vlan_id=10)
    card = inn.card("lan", static=True, mtu=8000, vlan=vlan, traffic=NicTraffic(max_in_bits_per_s=1_000_000))
    wish = like(card, inn.switch(target))
    made = inn.card(target, **{name: value for name, value in wish if name != "switch"})
    assert made.mac != card.mac
    assert made.mtu == {"lan": 8000, "red": 1450}.get(target, 1500)
    assert made.static == (target not in ("ext", "bare"))
    assert made.vlan == (NicVlan() if target == "red" else vlan)
    assert made.traffic.max_in_bits_per_s == 1_000_000


def test_a_card_without_an_mtu_of_its_own_follows_its_switch(inn: Inn) -> None:
    assert like(inn.card("lan"), inn.switch("red")).mtu is None


def test_a_mac_that_is_kept_is_one_that_can_be_had(inn: Inn) -> None:
    card = inn.card("lan", mac="52:54:00:00:00:01")
    assert macs_in_use(inn.rooms, inn.switch("lan")) == {card.mac, RESERVED_MAC}
    taken = macs_in_use(inn.rooms, inn.switch("red"))
    assert taken == {card.mac, RESERVED_MAC, ELSEWHERE_MAC}
    for mac in taken:
        with pytest.raises(Conflict) as refused:
            inn.card("red", mac=mac)
        assert refused.value.code == "nic.mac_in_use"


def test_a_priority_and_a_vlan_are_looked_at_where_they_change(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    wishes = {"traffic": NicTraffic(pcp=5), "vlan": NicVlan(mode="access", vlan_id=10)}
    there, inside = inn.card("ext", **wishes), inn.card("lan", **wishes)
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, False))
    assert inn.refusal(there, labels={"tier": "db"}) is None, "what it has stays, and keeps nothing from being changed"
    assert inn.refusal(there, traffic=NicTrafficSet(dscp=46)) is None
    assert inn.refusal(inside, traffic=NicTrafficSet(pcp=6)) is None
    for nic, changes in (
        (there, {"traffic": NicTrafficSet(pcp=6)}),
        (there, {"vlan": NicVlan(mode="access", vlan_id=11)}),
        (inside, {"switch": "ext", "vlan": NicVlan()}),
        (inside, {"switch": "ext", "traffic": NicTrafficSet(pcp=None)}),
    ):
        problem = inn.refusal(nic, **changes)
        assert problem is not None and problem.code == "network.kernel_lacks", changes
    with pytest.raises(Problem, match="802.1p"):
        inn.card("ext", traffic=NicTraffic(pcp=5))
