"""What a card's document says of its VLAN is what its port is compiled from."""

from __future__ import annotations

import pytest

from innkeeper.daemon import vlans
from innkeeper.daemon.ports import vlan_policy
from innkeeper.daemon.vlans import check_priority, check_uplink, check_vlan
from innkeeper.model.problems import Conflict, Invalid, Unavailable
from innkeeper.model.resources import Nic, Switch, SwitchKind, new_id
from innkeeper.model.traffic import NicTraffic
from innkeeper.model.uplink import Uplink
from innkeeper.model.vlan import NicVlan, parse_vlan
from innkeeper.network.vlan_policy import UNTAGGED, VlanPolicy


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("untagged", UNTAGGED),
        ("access:1", UNTAGGED),
        ("access:10", VlanPolicy("access", 10)),
        ("trunk:10,20-30,native=1", VlanPolicy("trunk", 1, ((10, 10), (20, 30)))),
        ("trunk:1-4094", VlanPolicy("trunk", None, ((1, 4094),))),
        ("isolated:100,101", VlanPolicy("isolated", 100, ((101, 101),))),
        ("community:100,102", VlanPolicy("community", 100, ((102, 102),))),
        ("promiscuous:1,100-102,200", VlanPolicy("promiscuous", 1, ((100, 102), (200, 200)))),
    ],
)
def test_a_document_becomes_a_policy(text: str, policy: VlanPolicy) -> None:
    assert vlan_policy(parse_vlan(text)) == policy


def test_cards_of_virtual_switches_have_no_vlan() -> None:
    beyond = Switch(name="beyond", switch_kind=SwitchKind.VIRTUAL)
    check_vlan(beyond, NicVlan())
    check_vlan(Switch(name="inside", subnet="10.77.0.0/24"), parse_vlan("access:10"))
    with pytest.raises(Invalid) as refused:
        check_vlan(beyond, parse_vlan("access:10"))
    assert refused.value.code == "nic.vlan"
    assert refused.value.remedy


def test_a_vlan_that_leads_outside_needs_a_kernel_that_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = Switch(name="outside", switch_kind=SwitchKind.EXTERNAL)
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    for text in ("access:10", "isolated:100,101", "trunk:10"):
        check_vlan(outside, parse_vlan(text))
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, False))
    check_vlan(outside, parse_vlan("access:1"))
    with pytest.raises(Unavailable) as refused:
        check_vlan(outside, parse_vlan("access:10"))
    assert refused.value.code == "network.kernel_lacks"
    assert "VLAN device" in (refused.value.remedy or "")


def test_a_vlan_that_the_host_has_a_device_of_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    uplink = Uplink(devices=["eth0"])
    outside = Switch(name="outside", switch_kind=SwitchKind.EXTERNAL, uplink=uplink)
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    monkeypatch.setattr(vlans, "host_vlans", lambda: {("eth0", 7): "eth0.7", ("eth1", 8): "eth1.8"})
    for text in ("access:8", "trunk:8-20,native=1", "untagged"):
        check_vlan(outside, parse_vlan(text))
    for text in ("access:7", "trunk:1-4094", "isolated:7,101"):
        with pytest.raises(Conflict) as refused:
            check_vlan(outside, parse_vlan(text))
        assert refused.value.code == "nic.vlan_in_use"
        assert "eth0.7" in str(refused.value)


def test_by_a_cable_the_ports_of_the_hosts_bridge_count(monkeypatch: pytest.MonkeyPatch) -> None:
    cable = Uplink(devices=["br0"], via="cable")
    outside = Switch(name="outside", switch_kind=SwitchKind.EXTERNAL, uplink=cable)
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    monkeypatch.setattr(vlans, "host_vlans", lambda: {("br0", 7): "br0.7", ("eth0", 8): "eth0.8"})
    monkeypatch.setattr(vlans, "bridge_ports", lambda name: ["eth0", "inuq-k3f91"] if name == "br0" else [])
    check_vlan(outside, parse_vlan("access:7"))
    with pytest.raises(Conflict) as refused:
        check_vlan(outside, parse_vlan("access:8"))
    assert "eth0.8" in str(refused.value)


def test_an_uplink_takes_the_vlans_of_the_cards_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vlans, "host_vlans", lambda: {("eth0", 7): "eth0.7"})

    def card(vlan: str) -> Nic:
        ids = {"vm_id": new_id(), "switch_id": new_id()}
        return Nic(name="web-0", number=1, mac="52:54:00:00:00:01", vlan=parse_vlan(vlan), **ids)

    check_uplink(Uplink(devices=["eth0"]), [card("untagged"), card("access:8")])
    check_uplink(Uplink(devices=["eth1"]), [card("trunk:7")])
    with pytest.raises(Conflict) as refused:
        check_uplink(Uplink(devices=["eth1", "eth0"]), [card("untagged"), card("trunk:7")])
    assert refused.value.code == "nic.vlan_in_use"


def test_a_trunk_needs_a_kernel_that_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    inside = Switch(name="inside", subnet="10.77.0.0/24")
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    check_vlan(inside, parse_vlan("trunk:10"))
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, False))
    check_vlan(inside, parse_vlan("access:10"))
    with pytest.raises(Unavailable) as refused:
        check_vlan(inside, parse_vlan("trunk:10"))
    assert refused.value.code == "network.kernel_lacks"
    assert "bridge_vlan_filtering" in str(refused.value)
    assert "access VLANs" in (refused.value.remedy or "")


def test_a_priority_needs_a_kernel_that_can_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    outside, inside = Switch(name="outside", switch_kind=SwitchKind.EXTERNAL), Switch(name="in", subnet="10.77.0.0/24")
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: dict.fromkeys(parts, True))
    check_priority(outside, NicTraffic(pcp=0))
    monkeypatch.setattr(vlans, "kernel_parts", lambda parts: {part: part != "sch_ingress" for part in parts})
    check_priority(outside, NicTraffic())
    check_priority(inside, NicTraffic(pcp=5))
    with pytest.raises(Unavailable) as refused:
        check_priority(outside, NicTraffic(pcp=0))
    assert refused.value.code == "network.kernel_lacks" and "sch_ingress" in str(refused.value)
