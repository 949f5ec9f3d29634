"""What the kernel says of the host's VLAN devices is understood."""

from __future__ import annotations

from pathlib import Path

import pytest

from innkeeper.network import host_vlans
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


def test_odd_names_and_lines_hide_no_device() -> None:
    odd = PRINTED + "a|b  | 8  | eth1\nnothing of it\nx | y | z\nlast | 9 | eth0\n"
    assert listed(odd) == listed(PRINTED) | {("eth1", 8): "a|b", ("eth0", 9): "last"}


def test_the_ports_of_a_bridge_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_vlans, "_DEVICES", tmp_path)
    for name in ("br0/brif/eth1", "br0/brif/eth0", "eth0"):
        (tmp_path / name).mkdir(parents=True)
    assert host_vlans.bridge_ports("br0") == ["eth0", "eth1"]
    assert host_vlans.bridge_ports("eth0") == []
