"""Whether one end of a switch reaches another: the ways that switches have, guards, and lists at both cards."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from acl_world import ONE, TWO, World, frame_of, policies
from hypothesis import given, settings, strategies as st
from switch_lab import new_lab
from switch_world import GATEWAY, SWITCH, port_of

from innkeeper.model.acl import AclLists, AclRule
from innkeeper.model.uplink import HostAddress, HostNetwork
from innkeeper.network.acl import AclPolicy, policy_of
from innkeeper.network.acl_decision import Packet
from innkeeper.network.overlay import OverlayPolicy, Record
from innkeeper.network.policy import Forward, GuardPolicy, SwitchPolicy
from innkeeper.network.reach import SOURCE_PORT, End, answer_to, guard_of, reach
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.vlan_policy import VlanPolicy

WEB, DB = port_of(1), port_of(2)
INTERNAL = SwitchPolicy("inside", "inbr-t3st2", kind="internal", subnet="10.66.0.0/24")
PRIVATE = SwitchPolicy("apart", "inbr-t3st3", kind="private", subnet="10.66.0.0/24")
EXTERNAL = SwitchPolicy("out", "inbr-t3st4", kind="external", uplink=UplinkPolicy(("eth0",)))
VIRTUAL = SwitchPolicy(
    "red",
    "inbr-t3st5",
    kind="virtual",
    subnet="10.66.0.0/24",
    overlay=OverlayPolicy(5001, "192.0.2.7", records=(Record("10.66.0.77", "52:54:00:00:00:77", "192.0.2.8"),)),
)
FORWARDING = replace(SWITCH, forwards=(Forward("tcp", 8080, "10.66.0.11", 80),))
HOST, BEYOND = End("host", GATEWAY), End("192.0.2.1", "192.0.2.1")


def end(port=WEB) -> End:  # type: ignore[no-untyped-def]
    return End(port.hostname, port.ipv4[0], port)


def lists(*rules: AclRule) -> AclPolicy:
    return policy_of([("", AclLists(rules=list(rules)))])


DENY_IN = AclRule(weight=1, action="deny", direction="in")
ALLOW_OUT = AclRule(weight=10, action="allow", direction="out", stateful=True)


@pytest.mark.parametrize("switch", [SWITCH, INTERNAL, PRIVATE, EXTERNAL])
def test_cards_of_a_switch_reach_each_other(switch: SwitchPolicy) -> None:
    assert reach(switch, end(), end(DB), 6, 443).reaches
    assert reach(switch, end(), end(DB), 1).reaches


@pytest.mark.parametrize(
    ("switch", "source", "target", "port", "reaches"),
    [
        (SWITCH, end(), HOST, 53, True),
        (SWITCH, HOST, end(), 22, True),
        (PRIVATE, end(), HOST, 53, False),
        (SWITCH, end(), BEYOND, 443, True),
        (INTERNAL, end(), BEYOND, 443, False),
        (EXTERNAL, end(), BEYOND, 443, True),
        (EXTERNAL, BEYOND, end(), 22, True),
        (SWITCH, BEYOND, end(), 80, False),
        (VIRTUAL, end(), End("10.66.0.77", "10.66.0.77"), 80, True),
        (VIRTUAL, end(), End("10.66.0.78", "10.66.0.78"), 80, False),
        (VIRTUAL, end(), BEYOND, 80, False),
        (FORWARDING, BEYOND, end(), 80, True),
        (FORWARDING, BEYOND, end(), 81, False),
        (SWITCH, end(), End("10.66.0.99", "10.66.0.99"), 80, False),
        (SWITCH, End("web", "fe80::1", WEB), End("2001:db8::1", "2001:db8::1"), 80, False),
    ],
)
def test_the_ways_of_switches(switch: SwitchPolicy, source: End, target: End, port: int, reaches: bool) -> None:
    found = reach(switch, source, target, 6, port)
    assert found.reaches == reaches, found
    assert reaches or len(found.steps) == 1


SERVING = replace(
    SWITCH,
    subnet6="fd00:66::/64",
    forwards=(Forward("tcp", 8080, "10.66.0.12", 80),),
    host_services=("tcp/3142", "tcp/8000-8100@10.66.0.0/28", "udp/123@10.66.0.128/25", "sctp/5000", "gre"),
)


@pytest.mark.parametrize(
    ("switch", "address", "protocol", "port", "line"),
    [
        (SWITCH, GATEWAY, 6, 53, "the gateway's DNS"),
        (SWITCH, GATEWAY, 17, 67, "the gateway's DHCP"),
        (SWITCH, GATEWAY, 1, None, "the gateway answers pings"),
        (SWITCH, GATEWAY, 6, 22, None),
        (INTERNAL, GATEWAY, 6, 67, None),
        (SERVING, GATEWAY, 6, 3142, "--host-service tcp/3142"),
        (SERVING, GATEWAY, 17, 3142, None),
        (SERVING, GATEWAY, 6, 8000, "--host-service tcp/8000-8100@10.66.0.0/28"),
        (SERVING, GATEWAY, 6, 8101, None),
        (SERVING, GATEWAY, 17, 123, None),
        (SERVING, GATEWAY, 47, None, "--host-service gre"),
        (SERVING, GATEWAY, 6, 8080, "the port forward leads on to 10.66.0.12 port 80: ask about that card"),
        (SERVING, "fd00:66::1", 17, 547, "the gateway's DHCPv6"),
        (SERVING, "fd00:66::1", 58, None, "the gateway answers pings"),
        (SERVING, "fd00:66::1", 6, 3142, "--host-service tcp/3142"),
        (SERVING, "fd00:66::1", 6, 8000, None),
    ],
)
def test_what_guests_ask_of_the_host(
    switch: SwitchPolicy, address: str, protocol: int, port: int | None, line: str | None
) -> None:
    source = WEB.link_local if ":" in address else WEB.ipv4[0]
    found = reach(switch, End("web", source, WEB), End(address, address), protocol, port)
    assert found.reaches == (line is not None)
    judged = [step for step in found.steps if step.where == "host"]
    assert [step.line for step in judged] == [
        line or "the host's services are not for guests; --host-service opens one"
    ]
    if port is not None:
        asks = reach(switch, End(address, address), End("web", source, WEB), protocol, port)
        assert asks.reaches and all(step.where != "host" for step in asks.steps), "the answer to the host's own passes"


def test_the_line_that_is_in_the_way_is_named() -> None:
    found = reach(SWITCH, end(), end(replace(DB, acl=lists(DENY_IN))), 6, 443)
    assert [step.where for step in found.steps] == [
        "switch lan",
        "guest1: guards",
        "guest1: acl, out",
        "guest2: extended acl, in",
    ]
    assert (found.reaches, found.steps[-1].line) == (False, "weight 1: deny in any")


def test_the_answer_comes_back_only_where_it_may() -> None:
    assert reach(SWITCH, end(replace(WEB, acl=lists(ALLOW_OUT, DENY_IN))), end(DB), 6, 443).reaches
    stateless = ALLOW_OUT.model_copy(update={"stateful": False})
    found = reach(SWITCH, end(replace(WEB, acl=lists(stateless, DENY_IN))), end(DB), 6, 443)
    assert not found.reaches and found.steps[-1].where == "answer: guest1: extended acl, in"
    assert not reach(SWITCH, end(DB), end(replace(WEB, acl=lists(ALLOW_OUT, DENY_IN))), 6, 443).reaches


def test_vlans_keep_cards_apart() -> None:
    apart = replace(DB, vlan=VlanPolicy(vlan_id=20))
    found = reach(SWITCH, end(), end(apart), 6, 443)
    assert not found.reaches and found.steps[-1].line == "their VLANs keep the cards apart"
    assert not reach(SWITCH, end(apart), HOST, 6, 443).reaches


def test_the_hosts_own_address_is_in_no_vlan_of_an_uplink() -> None:
    held = tuple(HostAddress(address=text, prefix_length=64) for text in ("192.0.2.1", "2001:db8::10"))
    switch = replace(EXTERNAL, uplink=UplinkPolicy(("eth0",), network=HostNetwork(addresses=held)), vlans=True)
    apart, plain = End("guest2", DB.ipv4[0], replace(DB, vlan=VlanPolicy(vlan_id=20))), end()
    for address in ("192.0.2.1", "2001:db8:0::10"):
        host = End(address, address)
        for found in (reach(switch, apart, host, 6, 22), reach(switch, host, apart, 6, 22)):
            assert not found.reaches and "the VLAN of guest2 is apart from the host" in found.steps[-1].line
    assert reach(switch, plain, BEYOND, 6, 22).steps[0].allowed
    assert reach(switch, apart, End("192.0.2.2", "192.0.2.2"), 6, 22).steps[0].allowed


def test_which_guard_drops_a_packet() -> None:
    sent = Packet("10.66.0.11", "10.66.0.12", 17, 5000, 6000, source_mac=WEB.mac)
    assert guard_of(WEB, sent) is None
    dropped = {
        "mac": replace(sent, source_mac=DB.mac),
        "ip": replace(sent, source="10.66.0.12"),
        "dhcp": replace(sent, target_port=68),
        "router": replace(sent, protocol=1, icmp_type=5),
        "frame": replace(sent, source=WEB.link_local, target="ff02::1", fragment=True),
    }
    for guard, packet in dropped.items():
        found = guard_of(WEB, packet)
        assert found is not None and found[0] == guard
        if guard != "frame":
            assert guard_of(replace(WEB, guards=replace(GuardPolicy(), **{guard: False})), packet) is None
    assert guard_of(WEB, replace(sent, source="0.0.0.0", source_port=68, target_port=67)) is None
    assert guard_of(replace(WEB, ipv4=()), replace(sent, source="192.0.2.1")) is None
    assert guard_of(WEB, Packet("::", "ff02::1:ff00:1", 58, icmp_type=135, source_mac=WEB.mac)) is None


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with new_lab(SWITCH) as lab:
        yield World(lab)


@pytest.mark.root
@settings(max_examples=60, deadline=None)
@given(
    first=policies,
    second=policies,
    asked=st.lists(st.sampled_from([(6, 80), (6, 443), (17, 22), (17, 547), (1, None), (47, None)]), max_size=6),
)
def test_frames_get_as_far_as_is_said(
    world: World, first: AclPolicy, second: AclPolicy, asked: list[tuple[int, int | None]]
) -> None:
    one, two = replace(WEB, acl=first), replace(TWO, acl=second)
    for protocol, port in dict.fromkeys(asked):
        said = reach(SWITCH, end(one), end(two), protocol, port)
        packet = Packet(
            WEB.ipv4[0],
            TWO.ipv4[0],
            protocol,
            SOURCE_PORT if port else None,
            port,
            icmp_type=8 if protocol == 1 else None,
            echo_id=1 if protocol == 1 else None,
            source_mac=WEB.mac,
            target_mac=TWO.mac,
        )
        world.lab.do(world.lab.runner.update_rules([one, two]))
        word = b"<asked>", b"<answered>"
        world.one.send(frame_of(packet, word[0]))
        arrived = any(word[0] in frame for frame in world.two.drain())
        if arrived:
            world.two.send(frame_of(answer_to(packet), word[1]))
            arrived = any(word[1] in frame for frame in world.one.drain())
        world.lab.do(world.lab.runner.update_rules([ONE, TWO]))
        assert arrived == said.reaches, said
