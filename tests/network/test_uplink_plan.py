"""What moves between a card and its bridge: properties of the plan, on a model of the kernel; and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Problem
from innkeeper.model.uplink import HostAddress, HostNeighbour, HostNetwork, HostRoute, HostRule, Uplink
from innkeeper.network.uplink_plan import (
    KERNEL_RA_METRIC,
    Item,
    NicFacts,
    Step,
    bridge_settings,
    check_mtu,
    check_nic,
    check_team,
    check_uplinks,
    given_back,
    lost_steps,
    merged,
    on_bridge,
    return_steps,
    sentences,
    stray_steps,
    take_steps,
    team_steps,
)

CARD, BRIDGE = "eth0", "inbr-t3st1"
octet = st.integers(1, 254)
v4 = st.builds("10.{}.{}.{}".format, octet, octet, octet)
v6 = st.builds("2001:db8::{:x}".format, st.integers(1, 65535))
addresses = st.one_of(
    st.builds(HostAddress, address=v4, prefix_length=st.integers(8, 32), lifetime_s=st.none() | st.integers(60, 9999)),
    st.builds(HostAddress, address=v6, prefix_length=st.just(64), prefix_route=st.booleans()),
)
routes = st.one_of(
    st.builds(HostRoute, destination=st.just("0.0.0.0/0"), gateway=v4, metric=st.integers(0, 5), table=octet),
    st.builds(
        HostRoute, destination=st.just("::/0"), gateway=v6, metric=st.integers(0, 5), preference=st.none() | octet
    ),
    st.builds(HostRoute, destination=st.just("198.18.0.0/15"), table=octet),
)
rules = st.builds(HostRule, version=st.sampled_from([4, 6]), priority=octet, table=octet, is_in=st.booleans())
networks = st.builds(
    HostNetwork,
    addresses=st.lists(addresses, max_size=6, unique_by=lambda one: one.address).map(tuple),
    routes=st.lists(routes, max_size=6, unique=True).map(tuple),
    rules=st.lists(rules, max_size=3, unique=True).map(tuple),
    neighbours=st.lists(st.builds(HostNeighbour, address=v4, mac=st.just("02:00:00:00:00:01")), max_size=2).map(tuple),
)


def identity(item: Item) -> object:
    """By what the kernel knows it: an address whatever its lifetime is."""
    return (item.address, item.prefix_length) if isinstance(item, HostAddress) else item


class Model:
    """Who is plugged into what, and what is on each device."""

    def __init__(self, network: HostNetwork) -> None:
        self.master: str | None = None
        self.on: dict[str, dict[object, Item]] = {CARD: {}, BRIDGE: {}}
        for item in (*network.addresses, *network.routes, *network.rules, *network.neighbours):
            self.on[CARD][identity(item)] = item

    def do(self, step: Step) -> None:
        if step.verb in ("join", "leave"):
            self.master = step.master
        elif step.item is not None:
            held = self.on[step.device]
            if step.verb == "add":
                held[identity(step.item)] = step.item
            else:
                held.pop(identity(step.item), None)

    def reached_by(self) -> set[object]:
        return set(self.on[CARD]) | set(self.on[BRIDGE])


@given(networks)
def test_after_the_move_everything_is_on_the_bridge_and_nothing_on_the_card(network: HostNetwork) -> None:
    model = Model(network)
    whole = set(model.on[CARD])
    for step in take_steps(CARD, BRIDGE, network):
        model.do(step)
        assert whole <= model.reached_by(), "after each step the host has everything somewhere"
    assert model.master == BRIDGE
    assert model.on[CARD] == {} and set(model.on[BRIDGE]) == whole


@given(networks, st.integers(0, 60))
def test_from_the_middle_of_a_move_everything_comes_back(network: HostNetwork, reached: int) -> None:
    model = Model(network)
    before = dict(model.on[CARD])
    for step in take_steps(CARD, BRIDGE, network)[:reached]:
        model.do(step)
    for step in return_steps(CARD, BRIDGE, network):
        model.do(step)
        assert set(before) <= model.reached_by()
    assert model.master is None
    assert (model.on[CARD], model.on[BRIDGE]) == (before, {})


@given(networks)
def test_both_ways_can_be_repeated(network: HostNetwork) -> None:
    model = Model(network)
    for step in [*take_steps(CARD, BRIDGE, network), *take_steps(CARD, BRIDGE, network)]:
        model.do(step)
    once = Model(network)
    for step in take_steps(CARD, BRIDGE, network):
        once.do(step)
    assert (model.master, model.on) == (once.master, once.on)


@given(networks)
def test_a_card_joins_a_team_when_it_has_nothing_left(network: HostNetwork) -> None:
    steps = team_steps(CARD, "inbd-t3st1", BRIDGE, network)
    assert [str(step) for step in steps[-2:]] == ["set eth0 down", "plug eth0 into inbd-t3st1"]
    assert steps[:-2] == stray_steps(CARD, BRIDGE, network)


@given(networks)
def test_gateways_are_reachable_before_they_are_used(network: HostNetwork) -> None:
    added = [step.item for step in take_steps(CARD, BRIDGE, network) if step.verb == "add"]
    kinds = [
        0 if isinstance(one, HostAddress) else 2 if isinstance(one, HostRoute) and not one.direct else 1
        for one in added
    ]
    first_gateway = kinds.index(2) if 2 in kinds else len(kinds)
    assert 0 not in kinds[first_gateway:]
    assert all(not (isinstance(one, HostRoute) and one.direct) for one in added[first_gateway:])


@given(networks, networks)
def test_what_the_card_has_now_goes_before_what_is_recorded(recorded: HostNetwork, present: HostNetwork) -> None:
    whole = merged(recorded, present)
    assert merged(None, present) == present
    assert set(present.addresses) <= set(whole.addresses) and set(present.routes) <= set(whole.routes)
    versions = {one.version for one in present.addresses}
    assert {one for one in whole.addresses if one not in present.addresses} == {
        one for one in recorded.addresses if one.version not in versions and one not in present.addresses
    }


@given(networks)
def test_nothing_is_lost_where_it_is_all_there(network: HostNetwork) -> None:
    bare = network.model_copy(update={"neighbours": ()})
    assert lost_steps(BRIDGE, bare, on_bridge(bare)) == []
    if bare.addresses:
        lost = {identity(step.item) for step in lost_steps(BRIDGE, bare, HostNetwork()) if step.item is not None}
        assert lost == {identity(one) for one in (*bare.addresses, *bare.routes, *bare.rules)}


@given(networks)
def test_what_was_moved_survives_in_the_document(network: HostNetwork) -> None:
    uplink = Uplink(devices=["eth0"], moved=network)
    assert Uplink.model_validate(json.loads(uplink.model_dump_json())) == uplink


def test_a_leased_address_stays_and_an_advertised_one_keeps_its_end() -> None:
    leased = HostAddress(address="192.0.2.5", prefix_length=24, lifetime_s=600, preferred_s=300)
    advertised = HostAddress(address="2001:db8::5", prefix_length=64, lifetime_s=600)
    by_dhcp6 = HostAddress(address="2001:db8::6", prefix_length=128, lifetime_s=600)
    route = HostRoute(destination="::/0", gateway="fe80::1", protocol=9, metric=KERNEL_RA_METRIC, expires_s=900)
    moved = on_bridge(HostNetwork(addresses=(leased, advertised, by_dhcp6), routes=(route,)))
    assert [one.lifetime_s for one in moved.addresses] == [None, 600, None]
    assert moved.routes[0].metric == KERNEL_RA_METRIC + 1, "the kernel's own comes to stand before it"
    assert bridge_settings(moved)["ipv6/accept_ra"] == "2", "also where the host forwards"
    static = HostNetwork(addresses=(leased,), settings=(("ipv6/accept_ra", "0"), ("ipv4/rp_filter", "1")))
    assert bridge_settings(static) == {"ipv6/accept_ra": "0", "ipv4/rp_filter": "1"}


# --- what is refused, and what is said --------------------------------------------------------------------------------

NIC = NicFacts(CARD, 2, "02:00:00:00:00:10", 1500)


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (None, "switch.uplink_gone"),
        (replace(NIC, loopback=True), "switch.uplink_kind"),
        (replace(NIC, wireless=True), "switch.uplink_kind"),
        (replace(NIC, kind="macvlan"), "switch.uplink_kind"),
        (replace(NIC, kind="tun"), "switch.uplink_kind"),
        (replace(NIC, name="inbr-t3st2", kind="bridge"), "switch.uplink_kind"),
        (replace(NIC, master="br0"), "switch.uplink_busy"),
        (replace(NIC, users=("macvlan0",)), "switch.uplink_busy"),
        (replace(NIC, unmovable=("route 10.0.0.0/8 has RTA_ENCAP",)), "switch.uplink_network"),
    ],
)
def test_a_card_that_cannot_be_an_uplink_is_refused(facts: NicFacts | None, code: str) -> None:
    with pytest.raises(Problem) as refused:
        check_nic(CARD, facts, teamed=False)
    assert refused.value.code == code and refused.value.remedy


@pytest.mark.parametrize("kind", ["", "veth", "vlan", "bond", "bridge", "dummy"])
def test_a_card_a_vlan_device_a_bond_or_a_bridge_can_be_one(kind: str) -> None:
    facts = replace(NIC, kind=kind)
    assert check_nic(CARD, facts, teamed=False) is facts
    assert check_nic(CARD, given_back(replace(facts, master=BRIDGE), None), teamed=False).master is None


def test_uplinks_are_named_once_and_several_are_a_team() -> None:
    check_uplinks(["eth0"], None, {})
    check_uplinks(["eth0", "eth1"], "active-backup", {"eth2": "lan"})
    for names, team, taken, code in (
        (["eth0", "eth0"], "active-backup", {}, "switch.uplink"),
        (["eth0", "eth1"], None, {}, "switch.uplink"),
        (["eth0"], None, {"eth0": "lan"}, "switch.uplink_taken"),
    ):
        with pytest.raises(Problem) as refused:
            check_uplinks(names, team, taken)  # type: ignore[arg-type]
        assert refused.value.code == code
    with pytest.raises(Problem) as bridge:
        check_nic("br0", replace(NIC, name="br0", kind="bridge"), teamed=True)
    assert bridge.value.code == "switch.uplink_kind"


def test_a_team_needs_a_kernel_that_bonds() -> None:
    check_team(None, False)
    check_team("802.3ad", True)
    with pytest.raises(Problem) as missing:
        check_team("active-backup", False)
    assert missing.value.code == "switch.team_missing" and "one card" in (missing.value.remedy or "")


def test_the_mtu_is_the_uplinks_or_less() -> None:
    assert (check_mtu(NIC, None), check_mtu(NIC, 1400), check_mtu(replace(NIC, mtu=9000), None)) == (1500, 1400, 9000)
    with pytest.raises(Problem) as larger:
        check_mtu(NIC, 9000)
    assert larger.value.code == "switch.uplink_mtu"


def test_the_plan_says_what_moves_and_what_to_do() -> None:
    leased = HostAddress(address="192.0.2.5", prefix_length=24, lifetime_s=600)
    route = HostRoute(destination="0.0.0.0/0", gateway="192.0.2.1")
    network = HostNetwork(addresses=(leased,), routes=(route,), manager="systemd-networkd (lan.network)")
    said = sentences(replace(NIC, network=network), BRIDGE, 30.0)
    assert said[:3] == [
        f"give {BRIDGE} the mac 02:00:00:00:00:10 and the mtu of eth0",
        "start a guard that gives everything back after 30 s unless that is confirmed",
        f"plug eth0 into {BRIDGE}",
    ]
    assert f"move address 192.0.2.5/24 from eth0 to {BRIDGE}" in said and "move route default via 192.0.2.1" in said
    assert any("managed by systemd-networkd (lan.network)" in one for one in said)
    assert any("leased by DHCP" in one and "reserve it" in one for one in said)
    bare = sentences(NIC, BRIDGE, 30.0)
    assert not any("guard" in one for one in bare), "nothing of the host's moves"
    assert "cable" in sentences(replace(NIC, kind="bridge"), BRIDGE, 30.0)[0]
