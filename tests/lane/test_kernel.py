"""The lane's kernel has what this machine's may lack; whoever builds on one of them sees here that it is there."""

from __future__ import annotations

import platform
import subprocess

import pytest
from switch_lab import new_namespace, run_in


def test_the_kernel_is_debians_full_one() -> None:
    assert platform.release().endswith("-amd64")
    assert "cloud" not in platform.release()


@pytest.mark.parametrize(
    "module", ["bonding", "8021q", "nf_conntrack_bridge", "ip_gre", "act_police", "vhost_net", "team"]
)
def test_a_module_loads(module: str) -> None:
    subprocess.run(["modprobe", module], check=True)


def test_a_bridge_filters_vlans() -> None:
    with new_namespace("filter") as namespace:
        run_in(namespace, "ip", "link", "add", "br0", "type", "bridge", "vlan_filtering", "1")
        run_in(namespace, "bridge", "vlan", "add", "dev", "br0", "vid", "10", "self")
        assert "10" in run_in(namespace, "bridge", "vlan", "show", "dev", "br0")


def test_the_bridge_family_tracks_connections() -> None:
    rules = "table bridge t { chain c { type filter hook forward priority -150; ct state established accept; }; }"
    with new_namespace("track") as namespace:
        run_in(namespace, "nft", rules)
        assert "ct state established" in run_in(namespace, "nft", "list", "table", "bridge", "t")
