"""Switches of a live inn without guests: what they become in the kernel, what is refused, and how they go."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from live_inn import LiveInn

pytestmark = [pytest.mark.guest, pytest.mark.root]


def device(name: str) -> Path:
    return Path("/sys/class/net", name)


def mtu(name: str) -> int:
    return int((device(name) / "mtu").read_text())


def dnsmasq(inn_id: str, bridge: str) -> bool:
    """Whether a dnsmasq serves that bridge."""
    return Path(f"/run/innkeeper/{inn_id}/switches/{bridge}/dnsmasq.pid").exists()


def test_a_switch_comes_changes_and_goes(inn: LiveInn) -> None:
    identity = json.loads((inn.state / "inn.json").read_text())["id"]
    plan = inn.json("switch", "create", "yard", "--subnet", "10.231.0.0/24", "--dry-run")
    assert any("bridge" in step for step in plan["steps"])
    assert "yard" not in inn("switch", "ls", "-q").split(), "a dry run makes nothing"

    inn("switch", "create", "yard", "--subnet", "10.231.0.0/24", "--label", "team=a")
    made = inn.json("switch", "show", "yard")
    bridge = made["bridge"]
    assert bridge.startswith(f"inbr-{identity}")
    assert made["gateway_address"] == "10.231.0.1"
    assert device(bridge).exists() and mtu(bridge) == 1500 and dnsmasq(identity, bridge)
    inn.refused("switch.name_taken", "switch", "create", "yard")
    inn.refused("switch.subnet_in_use", "switch", "create", "other", "--subnet", "10.231.0.128/25")

    plan = inn.json("switch", "set", "yard", "--mtu", "1400", "--dry-run")
    assert mtu(bridge) == 1500
    inn("switch", "set", "yard", "--name", "court", "--mtu", "1400", "--no-dhcp")
    assert mtu(bridge) == 1400 and not dnsmasq(identity, bridge)
    assert "yard" not in inn("switch", "ls", "-q").split()
    inn.refused("switch.name_taken", "switch", "set", "court", "--name", "lan")

    inn("switch", "rm", "court", "--dry-run")
    assert device(bridge).exists()
    inn("switch", "rm", "court")
    assert not device(bridge).exists()
    inn.refused("switch.not_found", "switch", "show", "court")


def test_forwards_need_a_nat_switch_a_card_and_a_free_port(inn: LiveInn) -> None:
    inn("switch", "create", "out")
    inn("switch", "create", "inside", "--kind", "internal")
    inn("vm", "create", "one", "--memory", "64M", "--switch", "out", "--switch", "inside", "--no-start")
    inn("switch", "set", "out", "--forward", "18081=one:80", "--forward", "udp:18081=one:53")
    table = f"inn_{json.loads((inn.state / 'inn.json').read_text())['id']}"
    rules = subprocess.run(["nft", "list", "table", "inet", table], capture_output=True, text=True, check=True).stdout
    address = next(nic["address"] for nic in inn.json("nic", "ls") if nic["name"] == "one-0")
    assert f"tcp . 18081 : {address} . 80" in rules
    assert f"udp . 18081 : {address} . 53" in rules
    assert len(inn.json("switch", "show", "out")["forwards"]) == 2

    inn("switch", "create", "second")
    inn("nic", "create", "one", "--switch", "second")
    inn.refused("switch.forward_taken", "switch", "set", "second", "--forward", "18081=one:80")
    inn.refused("nic.not_found", "switch", "set", "lan", "--forward", "18082=one:80")
    inside = inn.run("switch", "set", "inside", "--forward", "18082=one:80")
    assert "[switch.forward]" in inside.stderr
    assert len(inn.json("switch", "show", "out")["forwards"]) == 2, "what is refused changes nothing"
    inn.refused("switch.in_use", "switch", "rm", "out")

    inn("vm", "rm", "one")
    assert inn.json("switch", "show", "out")["forwards"] == [], "they go with the card"
    for name in ("out", "inside", "second"):
        inn("switch", "rm", name)
    assert not {"out", "inside", "second"} & set(inn("switch", "ls", "-q").split())
