"""What is known of a card's addresses, from which source, and what of it the guards of its port are given. No root."""

from __future__ import annotations

from pathlib import Path

import pytest

from innkeeper.daemon.learning import known_addresses
from innkeeper.daemon.ports import port_policies
from innkeeper.model.resources import Nic, Switch, SwitchKind, Vm, VmSpec, VmStatus
from innkeeper.network.learned import Lease
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import port_elements
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.system.paths import Paths

VM = Vm(name="web", spec=VmSpec(), status=VmStatus(uid=900001))
LAN = Switch(name="lan", number=1, switch_kind=SwitchKind.NAT, subnet="10.77.0.0/24")
OUTSIDE = Switch(name="outside", number=2, switch_kind=SwitchKind.EXTERNAL, dhcp=False)
MAC, MORE = "52:54:00:00:00:01", "52:54:00:00:00:02"


def card(switch: Switch, **members: object) -> Nic:
    return Nic.model_validate({"name": "web-0", "vm_id": VM.id, "switch_id": switch.id, "mac": MAC, **members})


def sources(switch: Switch, nic: Nic, *leases: Lease) -> dict[str, str]:
    return {one.address: one.known_from for one in known_addresses(switch, nic, leases)}


def test_each_address_has_a_source() -> None:
    own = {"fe80::5054:ff:fe00:1": "mac"}
    assert sources(LAN, card(LAN, address="10.77.0.5")) == {"10.77.0.5": "dhcp", **own}
    static = card(LAN, address="10.77.0.5", static=True, extra_addresses=["10.77.0.9"])
    assert sources(LAN, static) == {"10.77.0.5": "cloud-init", "10.77.0.9": "document", **own}
    assert sources(OUTSIDE, card(OUTSIDE, address="192.0.2.5")) == {"192.0.2.5": "document", **own}
    lease = Lease("192.0.2.5", MAC, "", 0.0, 600, 600.0)
    assert sources(OUTSIDE, card(OUTSIDE), lease) == {"192.0.2.5": "dhcp-learned", **own}
    assert sources(OUTSIDE, card(OUTSIDE)) == own


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return Paths.open(tmp_path / "inn", create=True)


def port(paths: Paths, nic: Nic, learned: dict[str, str]) -> PortPolicy:
    return port_policies(paths, OUTSIDE, [nic], {VM.id: VM}, {}, lambda _: learned)[0]


def test_an_address_of_its_own_mac_puts_the_guards_on(paths: Paths) -> None:
    switch = SwitchPolicy("outside", "inbr-x1", kind="external", uplink=UplinkPolicy(("eth0",)))

    def guards(learned: dict[str, str], **members: object) -> set[str]:
        elements = port_elements(switch, port(paths, card(OUTSIDE, **members), learned))
        return {one.container for one in elements} & {"guard_ip4", "guard_arp", "learning_ports"}

    assert guards({}) == {"learning_ports"}
    assert guards({"192.0.2.5": MAC}) == {"guard_ip4", "guard_arp", "learning_ports"}
    assert guards({"192.0.2.6": MORE}, extra_macs=[MORE]) == {"learning_ports"}, "its own is not known"
    assert guards({"2001:db8::7": MAC}) == {"learning_ports"}
    assert guards({}, address="192.0.2.5") == {"guard_ip4", "guard_arp"}, "what is fixed is not learned"


def test_all_that_was_learned_may_be_used(paths: Paths) -> None:
    learned = {"192.0.2.6": MAC, "192.0.2.5": MAC, "192.0.2.7": MORE, "2001:db8::7": MAC}
    made = port(paths, card(OUTSIDE, extra_macs=[MORE], extra_addresses=["192.0.2.9"]), learned)
    assert made.ipv4 == ("192.0.2.6", "192.0.2.5")
    assert made.known4 == ("192.0.2.6", "192.0.2.5", "192.0.2.9", "192.0.2.7")
    assert "2001:db8::7" in made.known6
