"""What the pure decision says is what nft does: random lists and random packets through real rules, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from acl_world import ONE, TWO, World, answered, packets, policies
from hypothesis import example, given, settings, strategies as st
from switch_lab import new_lab
from switch_world import SWITCH

from innkeeper.model.acl import AclLists, AclRule
from innkeeper.network.acl import AclPolicy, policy_of
from innkeeper.network.acl_decision import Flows, Packet, decide
from innkeeper.network.policy import GuardPolicy, PortPolicy
from innkeeper.network.reach import pass_port
from innkeeper.network.traffic import Direction

pytestmark = pytest.mark.root

Sent = list[tuple[Direction, Packet]]
GUARDED = replace(ONE, guards=GuardPolicy(), ipv6=("2001:db8::1",))
DISCOVERY = (133, 134, 135, 136)
NO_PORT_IN_DATA = policy_of(
    [("", AclLists(rules=(AclRule(direction="in", action="deny", weight=1, protocol="tcp", remote_ports="22-40000"),)))]
)
LATER_FRAGMENT = Packet(TWO.ipv4[0], ONE.ipv4[0], 6, fragment=True, source_mac=TWO.mac, target_mac=ONE.mac)
"""Its data, read as a port, would be one of these."""
SIX = {"source": "2001:db8::2", "target": "2001:db8::1"}


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with new_lab(SWITCH) as lab:
        yield World(lab)


def decided(policy: AclPolicy, sent: Sent) -> list[bool]:
    """What ``decide`` says of packets that come one after another."""
    found: list[bool] = []
    flows: Flows = {}
    for direction, packet in sent:
        decision = decide(policy, direction, packet, flows)
        flows = decision.flows
        found.append(decision.allowed)
    return found


def passed(port: PortPolicy, sent: Sent) -> list[bool]:
    """The same of ``pass_port``."""
    found: list[bool] = []
    flows: Flows = {}
    for direction, packet in sent:
        steps, flows = pass_port("one", port, direction, packet, flows)
        found.append(steps[-1].allowed)
    return found


def compare(world: World, port: PortPolicy, sent: Sent, wanted: list[bool]) -> None:
    world.set_port(port)
    arrived = world.pass_all(sent)
    wrong = [(each, got) for each, got, right in zip(sent, arrived, wanted, strict=True) if got != right]
    assert wrong == [], [str(line) for line in (*port.acl.entries, *port.acl.rules)]


@settings(max_examples=100, deadline=None)
@given(policy=policies, asked=st.lists(packets(), min_size=1, max_size=12))
@example(policy=NO_PORT_IN_DATA, asked=[("in", LATER_FRAGMENT), ("in", replace(LATER_FRAGMENT, **SIX))])
def test_nft_does_what_is_decided(world: World, policy: AclPolicy, asked: Sent) -> None:
    sent = [each for one in asked for each in (one, answered(one), one)]
    compare(world, replace(ONE, acl=policy), sent, decided(policy, sent))


def _from_others(one: tuple[Direction, Packet], stranger: bool) -> tuple[Direction, Packet]:
    return (one[0], replace(one[1], source_mac="52:54:00:00:00:09")) if stranger and one[0] == "out" else one


_sent = st.builds(_from_others, packets(), st.integers(0, 9).map(lambda number: number == 0))


@settings(max_examples=60, deadline=None)
@given(policy=policies, asked=st.lists(_sent, min_size=1, max_size=12))
def test_guards_do_what_is_said(world: World, policy: AclPolicy, asked: Sent) -> None:
    """Discovery is left out: whether it is well formed is more than a ``Packet`` says."""
    sent = [each for one in asked for each in (one, answered(one)) if each[1].icmp_type not in DISCOVERY]
    port = replace(GUARDED, acl=policy)
    compare(world, port, sent, passed(port, sent))
