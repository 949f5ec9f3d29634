from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Invalid
from innkeeper.network.policy import Forward, PortPolicy, SwitchPolicy, dns_label

GOOD: dict[str, Any] = {"tap": "intp-k3f91", "mac": "52:54:00:00:00:01"}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"tap": "intp-k3f91234567"}, "nic.tap"),
        ({"tap": 'x" ; drop'}, "nic.tap"),
        ({"mac": "01:00:5e:00:00:01"}, "nic.mac"),
        ({"mac": "52:54:00:00:00"}, "nic.mac"),
        ({"mac": "52:54:00:00:00:0G"}, "nic.mac"),
        ({"mac": "00:00:00:00:00:00"}, "nic.mac"),
        ({"ipv4": ("10.0.0.256",)}, "nic.address"),
        ({"ipv4": ("10.0.0.1 }",)}, "nic.address"),
        ({"ipv4": ("0.0.0.0",)}, "nic.address"),
        ({"ipv4": ("224.0.0.1",)}, "nic.address"),
        ({"ipv4": ("::1",)}, "nic.address"),
        ({"ipv6": ("2001:DB8::1",)}, "nic.address"),
        ({"ipv6": ("ff02::1",)}, "nic.address"),
    ],
)
def test_a_port_that_cannot_be_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(Invalid) as problem:
        PortPolicy(**{**GOOD, **wrong})
    assert problem.value.code == code


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"bridge": "inbr-k3f9/1"}, "switch.bridge"),
        ({"kind": "internal"}, "switch.subnet"),
        ({"subnet": "10.0.0.0/31"}, "switch.subnet"),
        ({"subnet": "10.0.0.0/24", "dns_domain": "in n"}, "switch.domain"),
        (
            {"subnet": "10.0.0.0/24", "kind": "internal", "forwards": (Forward("tcp", 1, "10.0.0.2", 1),)},
            "switch.forward",
        ),
    ],
)
def test_a_switch_that_cannot_be_is_refused(wrong: dict[str, Any], code: str) -> None:
    with pytest.raises(Invalid) as problem:
        SwitchPolicy(**{"name": "lan", "bridge": "inbr-k3f91", **wrong})
    assert problem.value.code == code


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_a_forward_of_no_port_is_refused(port: int) -> None:
    with pytest.raises(Invalid):
        Forward("tcp", port, "10.0.0.2", 80)


def test_a_private_switch_has_no_gateway() -> None:
    private = SwitchPolicy("apart", "inbr-k3f91", kind="private", subnet="10.0.0.0/24")
    assert private.gateway is None and not private.serves_dhcp
    assert SwitchPolicy("lan", "inbr-k3f91", subnet="10.0.0.0/24").gateway == "10.0.0.1"


def test_a_bridge_keeps_its_mac() -> None:
    one, two = (SwitchPolicy("lan", f"inbr-k3f9{n}", subnet="10.0.0.0/24") for n in (1, 2))
    assert one.mac == SwitchPolicy("renamed", "inbr-k3f91", subnet="10.1.0.0/24").mac != two.mac
    assert int(one.mac[:2], 16) & 3 == 2  # locally administered, not a group


@given(st.text(max_size=100))
def test_a_label_is_a_host_name_or_empty(name: str) -> None:
    label = dns_label(name)
    assert len(label) <= 63
    assert all(character in "abcdefghijklmnopqrstuvwxyz0123456789-" for character in label)
    assert not label.startswith("-") and not label.endswith("-")
    assert dns_label(label) == label


def test_labels_of_common_names() -> None:
    assert [dns_label(name) for name in ("web", "Web_1", "db.north", "-")] == ["web", "web-1", "db-north", ""]
