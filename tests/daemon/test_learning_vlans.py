"""What is learned in one VLAN of an external switch says nothing of the cards of another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from innkeeper.daemon import vlans
from innkeeper.daemon.learning import Learning
from innkeeper.daemon.nics import Nics
from innkeeper.daemon.rooms import Rooms
from innkeeper.daemon.switches import Switches
from innkeeper.model import requests as ask
from innkeeper.model.problems import Failed
from innkeeper.model.resources import Nic, Switch, SwitchKind, Vm, VmSpec, VmStatus
from innkeeper.model.vlan import parse_vlan
from innkeeper.network.dhcp_messages import Message
from innkeeper.network.plan import Standing
from innkeeper.network.policy import PortPolicy
from innkeeper.state.store import Store
from innkeeper.system.paths import Paths

ADDRESS, LEASE_S = "192.168.1.5", 36_000


@dataclass
class Inn:
    """An external switch with cards, at whose uplink servers speak."""

    rooms: Rooms
    learning: Learning
    switch: Switch
    vm: Vm

    def card(self, number: int, vlan: str, **facts: Any) -> Nic:
        return self.rooms.store.create(
            Nic(
                name=f"web-{number}",
                vm_id=self.vm.id,
                switch_id=self.switch.id,
                number=number,
                mac=f"52:54:00:00:00:0{number}",
                vlan=parse_vlan(vlan),
                index=number,
                **facts,
            )
        )

    def given(self, nic: Nic, vlan_id: int | None) -> None:
        """A server in that VLAN gives the card ``ADDRESS``."""
        said = Message(4, "give", nic.mac, 1, given=((ADDRESS, LEASE_S),), vlan_id=vlan_id)
        self.learning._take(nic, said, "", time.time())

    def has_it(self, *cards: Nic) -> list[bool]:
        """Which cards have it for the whole of the lease, not for a grace."""
        held = [{one.address: one.ends_s or 0.0 for one in self.learning.leases(nic)} for nic in cards]
        return [leases.get(ADDRESS, 0.0) > time.time() + LEASE_S / 2 for leases in held]


@pytest.fixture
def inn(tmp_path: Path) -> Iterator[Inn]:
    paths = Paths.open(tmp_path / "inn", create=True)
    store = Store(paths.database)
    unused: list[Any] = [None] * (len(fields(Rooms)) - 2)
    rooms = Rooms(paths, store, *unused)
    switch = store.create(Switch(name="ext", number=1, switch_kind=SwitchKind.EXTERNAL))
    vm = store.create(Vm(name="web", spec=VmSpec(), status=VmStatus(uid=900001)))
    runner: Any = SimpleNamespace()
    yield Inn(rooms, Learning(rooms, runner, lambda _: asyncio.sleep(0)), switch, vm)
    store.close()


def test_an_address_of_another_vlan_is_anothers(inn: Inn) -> None:
    ten, twenty = inn.card(1, "access:10"), inn.card(2, "access:20")
    inn.given(ten, 10)
    inn.given(twenty, 20)
    assert inn.has_it(ten, twenty) == [True, True]


@pytest.mark.parametrize(("vlan", "other"), [("access:10", "trunk:10,20"), ("access:10", "isolated:10,101")])
def test_within_its_vlan_an_address_is_one_cards(inn: Inn, vlan: str, other: str) -> None:
    first, second = inn.card(1, vlan), inn.card(2, other)
    inn.given(first, 10)
    inn.given(second, 10)
    assert inn.has_it(first, second) == [False, True]


def test_the_address_of_a_document_counts_in_its_vlan(inn: Inn) -> None:
    inn.card(1, "access:10", address=ADDRESS)
    ten, plain = inn.card(2, "access:10"), inn.card(3, "untagged")
    inn.given(ten, 10)
    inn.given(plain, None)
    assert inn.has_it(ten, plain) == [False, True]


class Runner:
    """Ports by bridge, as a change of one makes them unless it is refused."""

    def __init__(self, standing: Standing) -> None:
        self.now = standing
        self.refuses = False
        self.meanwhile: Callable[[], None] = lambda: None

    def standing(self, _bridge: str) -> Standing:
        return self.now

    async def move_port(self, _bridge: str, port: PortPolicy) -> None:
        if self.refuses:
            self.refuses = False
            raise Failed("nft.refused", "no")
        self.meanwhile()
        self.now = self.now.with_port(port)

    async def update_rules(self, ports: list[PortPolicy]) -> None:
        for port in ports:
            self.now = self.now.with_port(port)


@pytest.mark.parametrize("refused", [True, False])
def test_what_was_learned_is_forgotten_once_the_card_is_elsewhere(
    inn: Inn, monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    switches, card = Switches(inn.rooms), inn.card(1, "access:10")
    inn.learning = switches.learning
    switches._plugged = {card.id}
    runner = Runner(Standing(switches._policy(inn.switch), {port.tap: port for port in switches._ports(inn.switch)}))
    monkeypatch.setattr(switches, "_runner", runner)
    inn.given(card, 10)
    asyncio.run(switches.port_changed(card, card))
    (port,) = runner.now.ports.values()
    assert port.learns and inn.has_it(card) == [True], "a change of another kind takes nothing away"
    runner.refuses = refused
    with pytest.raises(Failed) if refused else nullcontext():
        asyncio.run(Nics(inn.rooms, switches).set(card.id, ask.NicSet(vlan=parse_vlan("access:20"))))
    card = inn.rooms.store.get(Nic, card.id)
    assert inn.has_it(card) == [refused]
    (port,) = runner.now.ports.values()
    assert (ADDRESS in port.known4) == refused


def test_what_is_learned_on_the_way_counts(inn: Inn, monkeypatch: pytest.MonkeyPatch) -> None:
    switches, card = Switches(inn.rooms), inn.card(1, "access:10")
    inn.learning = switches.learning
    switches._plugged = {card.id}
    runner = Runner(Standing(switches._policy(inn.switch), {port.tap: port for port in switches._ports(inn.switch)}))
    monkeypatch.setattr(switches, "_runner", runner)
    moved = inn.rooms.change(card, None, vlan=parse_vlan("access:20"))
    runner.meanwhile = lambda: inn.given(moved, 20)
    asyncio.run(switches.port_changed(moved, card))
    (port,) = runner.now.ports.values()
    assert inn.has_it(moved) == [True] and ADDRESS in port.known4
