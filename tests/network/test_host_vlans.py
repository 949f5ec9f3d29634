"""What the kernel says of the host's VLAN devices is understood."""

from __future__ import annotations

from innkeeper.network.host_vlans import listed

PRINTED = """\
VLAN Dev name\t | VLAN ID
Name-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD
eth0.7         | 7  | eth0
storage        | 4094  | bond0
"""


def test_devices_are_found_by_card_and_vlan() -> None:
    assert listed(PRINTED) == {("eth0", 7): "eth0.7", ("bond0", 4094): "storage"}
    assert listed("") == {}
