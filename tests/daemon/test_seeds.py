"""What a seed says of a guest's network."""

from __future__ import annotations

import json
from typing import Any

import pytest

from innkeeper.daemon.seeds import check_static, seed_of
from innkeeper.model.dhcp import DhcpSettings
from innkeeper.model.problems import Invalid
from innkeeper.model.resources import CloudInit, Nic, Switch, SwitchKind, Vm, VmSpec

PLAIN, CLOUD = Vm(name="plain"), Vm(name="cloud", spec=VmSpec(cloud_init=CloudInit()))
NAT = Switch(name="nat", subnet="10.77.0.0/24")
QUIET = Switch(name="quiet", subnet="10.78.0.0/25", switch_kind=SwitchKind.INTERNAL, dhcp=False, mtu=9000)
APART = Switch(name="apart", switch_kind=SwitchKind.PRIVATE)
SWITCHES = {switch.id: switch for switch in (NAT, QUIET, APART)}


def card(index: int, switch: Switch, address: str | None = None, *, static: bool = False) -> Nic:
    """The card of that index on a switch."""
    return Nic(
        name=f"vm-{index}",
        vm_id=PLAIN.id,
        switch_id=switch.id,
        mac=f"52:54:00:00:00:0{index}",
        address=address,
        static=static,
        index=index,
    )


def cards_of(vm: Vm, *nics: Nic) -> dict[str, Any]:
    """The ``ethernets`` of the seed of a vm with those cards."""
    made = seed_of(vm, nics, SWITCHES)
    assert made is not None and made.network_config is not None
    config = json.loads(made.network_config)
    assert config["version"] == 2
    return dict(config["ethernets"])


def test_a_static_card_is_told_its_address_its_way_out_and_its_names() -> None:
    assert cards_of(PLAIN, card(0, NAT, "10.77.0.9", static=True)) == {
        "eth0": {
            "match": {"macaddress": "52:54:00:00:00:00"},
            "set-name": "eth0",
            "dhcp4": False,
            "dhcp6": False,
            "mtu": 1500,
            "addresses": ["10.77.0.9/24"],
            "gateway4": "10.77.0.1",
            "nameservers": {"addresses": ["10.77.0.1"], "search": ["inn"]},
        }
    }


def test_every_card_is_there_in_its_own_way() -> None:
    cards = cards_of(CLOUD, card(2, APART), card(0, NAT, "10.77.0.2"), card(1, QUIET, "10.78.0.2", static=True))
    assert list(cards) == ["eth0", "eth1", "eth2"]
    assert cards["eth0"]["dhcp4"] and "addresses" not in cards["eth0"]
    assert cards["eth1"]["addresses"] == ["10.78.0.2/25"] and cards["eth1"]["mtu"] == 9000
    assert "gateway4" not in cards["eth1"], "an internal switch is no way out"
    assert cards["eth2"]["optional"] and not cards["eth2"]["dhcp4"], "nobody answers there: do not wait at boot"


def test_ipv6_is_told_too() -> None:
    switch = NAT.model_copy(update={"subnet6": "fd00:77::/64"})
    made = seed_of(PLAIN, [card(0, NAT, "10.77.0.9", static=True), card(1, NAT, "10.77.0.3")], {NAT.id: switch})
    assert made is not None and made.network_config is not None
    static, by_dhcp = json.loads(made.network_config)["ethernets"].values()
    assert static["addresses"] == ["10.77.0.9/24", "fd00:77::5054:ff:fe00:0/64"]
    assert (static["gateway4"], static["gateway6"]) == ("10.77.0.1", "fd00:77::1")
    assert static["nameservers"]["addresses"] == ["10.77.0.1", "fd00:77::1"]
    assert by_dhcp["dhcp6"] and by_dhcp["dhcp4"]


def test_a_card_has_the_smaller_mtu() -> None:
    for own, told in ((8000, 8000), (None, 9000), (9200, 9000)):
        cards = cards_of(CLOUD, card(0, QUIET, "10.78.0.2", static=True).model_copy(update={"mtu": own}))
        assert cards["eth0"]["mtu"] == told


def test_dns_servers_of_the_switch_go_first() -> None:
    settings = DhcpSettings(dns_servers=["192.0.2.53"], search_domains=["a.example"])
    switch = NAT.model_copy(update={"dhcp_settings": settings})
    made = seed_of(PLAIN, [card(0, NAT, "10.77.0.9", static=True)], {NAT.id: switch})
    assert made is not None and made.network_config is not None
    names = json.loads(made.network_config)["ethernets"]["eth0"]["nameservers"]
    assert names == {"addresses": ["192.0.2.53"], "search": ["a.example"]}


def test_only_cloud_init_or_a_static_card_makes_a_seed() -> None:
    by_dhcp, static = card(0, NAT, "10.77.0.2"), card(0, NAT, "10.77.0.2", static=True)
    assert seed_of(PLAIN, [by_dhcp], SWITCHES) is None
    assert seed_of(PLAIN, [static], SWITCHES) is not None
    assert seed_of(CLOUD, [], SWITCHES) is not None


def test_a_guest_that_goes_on_from_its_memory_has_the_devices_it_had() -> None:
    static = card(0, NAT, "10.77.0.2", static=True)
    assert seed_of(PLAIN, [static], SWITCHES, wanted=False) is None
    assert seed_of(PLAIN, [], SWITCHES, wanted=True) is not None


def test_no_address_can_be_written_into_the_users_own_configuration() -> None:
    check_static(CLOUD)
    with pytest.raises(Invalid) as problem:
        check_static(Vm(name="own", spec=VmSpec(cloud_init=CloudInit(network_config="version: 2"))))
    assert problem.value.code == "nic.network_config"
