"""The plans of virtual networks: nothing is flooded, and no tenant's frame comes to another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Invalid
from innkeeper.network.addresses import check_record
from innkeeper.network.overlay import Encapsulation, OverlayPolicy, Record
from innkeeper.network.overlay_plan import Tunnel, overlay_elements, plan_overlay, sentences, tunnels_of
from innkeeper.network.policy import SwitchPolicy

BRIDGE = "inbr-k3f91"
HERE = "192.0.2.1"
NEAR = Record("10.5.0.7", "52:54:00:00:00:07", "192.0.2.2")
FAR = Record("10.5.0.8", "52:54:00:00:00:08", "192.0.2.3")
OWN = Record("10.5.0.9", "52:54:00:00:00:09", HERE)
RED = OverlayPolicy(5001, HERE, records=(NEAR, FAR, OWN))


def switch_of(overlay: OverlayPolicy, number: int = 1) -> SwitchPolicy:
    return SwitchPolicy(f"v{number}", f"inbr-k3f9{number}", kind="virtual", subnet="10.5.0.0/24", overlay=overlay)


def test_vxlan_has_one_tunnel_and_an_entry_for_each_guest_elsewhere() -> None:
    plan = plan_overlay(BRIDGE, RED)
    assert plan.tunnels == (Tunnel("inov-k3f91", "vxlan", 5001, HERE),)
    assert plan.forwarding == {NEAR.mac: "inov-k3f91", FAR.mac: "inov-k3f91"}
    assert plan.destinations == {NEAR.mac: NEAR.provider, FAR.mac: FAR.provider}
    assert plan.neighbours == {
        NEAR.customer: NEAR.mac,
        FAR.customer: FAR.mac,
        "fe80::5054:ff:fe00:7": NEAR.mac,
        "fe80::5054:ff:fe00:8": FAR.mac,
    }
    assert f"mac {NEAR.mac} at 192.0.2.2" in sentences(BRIDGE, RED)


def test_nvgre_has_a_tunnel_for_each_provider_address() -> None:
    plan = plan_overlay(BRIDGE, replace(RED, encapsulation="nvgre"))
    assert {(one.kind, one.key, one.local, one.remote) for one in plan.tunnels} == {
        ("gretap", 5001 << 8, HERE, NEAR.provider),
        ("gretap", 5001 << 8, HERE, FAR.provider),
    }
    by_remote = {one.remote: one.device for one in plan.tunnels}
    assert plan.forwarding == {record.mac: by_remote[record.provider] for record in (NEAR, FAR)}
    assert plan.destinations == {}
    assert all(len(one.device) == 15 for one in plan.tunnels)


def test_a_host_whose_records_are_all_its_own_reaches_nobody() -> None:
    plan = plan_overlay(BRIDGE, replace(RED, records=(OWN,)))
    assert (plan.forwarding, plan.destinations, plan.neighbours) == ({}, {}, {})


def test_other_switches_have_no_tunnels() -> None:
    assert tunnels_of(SwitchPolicy("lan", BRIDGE, subnet="10.77.0.0/24")) == ()
    assert sentences(BRIDGE, None) == []


@pytest.mark.parametrize(
    "records",
    [
        (NEAR, replace(FAR, mac=NEAR.mac)),
        (NEAR, replace(FAR, customer=NEAR.customer)),
        (replace(NEAR, mac=RED.gateway_mac),),
    ],
)
def test_records_that_contradict_each_other_are_refused(records: tuple[Record, ...]) -> None:
    with pytest.raises(Invalid) as refused:
        replace(RED, records=records)
    assert refused.value.code == "switch.record"


def test_an_overlay_belongs_to_a_virtual_switch() -> None:
    for kind, overlay in (("virtual", None), ("nat", RED)):
        with pytest.raises(Invalid) as refused:
            SwitchPolicy("red", BRIDGE, kind=kind, subnet="10.5.0.0/24", overlay=overlay)  # type: ignore[arg-type]
        assert refused.value.code == "switch.overlay"
    with pytest.raises(Invalid):
        replace(RED, vni=4095)


@pytest.mark.parametrize("customer", ["10.6.0.7", "10.5.0.1", "10.5.0.0", "10.5.0.255"])
def test_a_record_is_of_a_guest_of_the_subnet(customer: str) -> None:
    with pytest.raises(Invalid):
        check_record("red", "10.5.0.0/24", customer)
    check_record("red", "10.5.0.0/24", "10.5.0.7")
    check_record("red", "10.5.0.0/24", "2001:db8::7")


# --- properties ------------------------------------------------------------------------------------------------------

macs = st.integers(0, 12).map(lambda number: f"52:54:00:00:00:{number:02x}")
providers = st.integers(1, 4).map(lambda number: f"192.0.2.{number}")


@st.composite
def overlays(draw: st.DrawFn, vni: int) -> OverlayPolicy:
    places = draw(st.dictionaries(macs, providers, max_size=8))
    records = tuple(
        Record(f"10.5.0.{number}", mac, provider) for number, (mac, provider) in enumerate(places.items(), 2)
    )
    encapsulation: Encapsulation = draw(st.sampled_from(["vxlan", "nvgre"]))
    return OverlayPolicy(vni, HERE, encapsulation, records=records)


def sent(switch: SwitchPolicy, mac: str) -> set[tuple[int, str]]:
    """(VNI on the wire, provider address) to which a frame of ``switch`` for ``mac`` leaves the host."""
    assert switch.overlay is not None
    plan = plan_overlay(switch.bridge, switch.overlay)
    device = plan.forwarding.get(mac)
    tunnels = [one for one in plan.tunnels if one.device == device]
    gone = set()
    for tunnel in tunnels:
        target = tunnel.remote or plan.destinations.get(mac)
        assert target is not None, "a mac behind a tunnel is at a provider address"
        gone.add((tunnel.key if tunnel.kind == "vxlan" else tunnel.key >> 8, target))
    return gone


@given(overlays(5001), overlays(5002), st.one_of(macs, st.just("ff:ff:ff:ff:ff:ff"), st.just("33:33:00:00:00:01")))
def test_a_frame_leaves_for_its_records_provider_only_and_in_its_tenants_network(
    red: OverlayPolicy, blue: OverlayPolicy, mac: str
) -> None:
    for switch in (switch_of(red, 1), switch_of(blue, 2)):
        overlay = switch.overlay
        assert overlay is not None
        wanted = {(overlay.vni, one.provider) for one in overlay.records if one.mac == mac and one.provider != HERE}
        assert sent(switch, mac) == wanted
        assert len(wanted) <= 1, "no frame is copied"


@given(overlays(5001), overlays(5002))
def test_tenants_share_no_tunnel_and_believe_nothing_of_each_other(red: OverlayPolicy, blue: OverlayPolicy) -> None:
    one, other = switch_of(red, 1), switch_of(blue, 2)
    assert not {tunnel.device for tunnel in tunnels_of(one)} & {tunnel.device for tunnel in tunnels_of(other)}
    assert not overlay_elements(one) & overlay_elements(other)
    assert {(tunnel.key, tunnel.kind) for tunnel in tunnels_of(one)}.isdisjoint(
        {(tunnel.key, tunnel.kind) for tunnel in tunnels_of(other)}
    )


@given(overlays(5001))
def test_what_is_believed_is_what_records_say(overlay: OverlayPolicy) -> None:
    believed = {one.key[1:] for one in overlay_elements(switch_of(overlay)) if one.container == "overlay_sources4"}
    assert believed == {(one.mac, one.customer) for one in overlay.records if one.provider != HERE}
