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

    inn("switch", "create", "yard", "--subnet", "10.231.0.0/24", "--label", "team=a", "--host-service", "tcp/3142")
    made = inn.json("switch", "show", "yard")
    assert made["host_services"] == ["tcp/3142"]
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


def test_a_virtual_switch_has_an_identifier_a_provider_address_and_records(inn: LiveInn) -> None:
    identity = json.loads((inn.state / "inn.json").read_text())["id"]
    shown = json.loads(subprocess.check_output(["ip", "-j", "-4", "addr", "show", "scope", "global"]))
    provider = shown[0]["addr_info"][0]["local"]
    create = ("switch", "create", "--kind", "virtual", "--provider", provider, "--subnet", "10.233.0.0/24")
    inn("switch", "create", "plain", "--subnet", "10.233.0.0/24")
    inn(*create, "red", "--vni", "4999001")
    inn(*create, "blue", "--vni", "4999002")
    inn.refused("switch.vni_taken", *create, "again", "--vni", "4999001")
    inn.refused("switch.subnet_in_use", *create, "again", "--vni", "4999003", "--routing-domain", "red")
    inn.refused("switch.provider_absent", *create, "again", "--vni", "4999003", "--provider", "192.0.2.77")
    assert "vni" in inn.run("switch", "create", "again", "--kind", "virtual").stderr
    tunnel = inn.json("switch", "show", "red")["bridge"].replace("inbr-", "inov-")
    assert tunnel.startswith(f"inov-{identity}") and mtu(tunnel) == 1450

    record = ("10.233.0.2", "52:54:99:00:00:07", "192.0.2.78")
    plan = inn.json("switch", "record", "add", "red", *record, "--dry-run")
    assert "+mac 52:54:99:00:00:07 at 192.0.2.78" in plan["diff"].splitlines()
    inn("switch", "record", "add", "red", *record)
    entries = subprocess.check_output(["bridge", "fdb", "show", "dev", tunnel], text=True)
    assert "52:54:99:00:00:07 dst 192.0.2.78" in entries
    assert inn.json("switch", "record", "ls", "red")[0]["customer_address"] == "10.233.0.2"
    inn.refused("switch.record", "switch", "record", "add", "red", "10.234.0.7", *record[1:])
    inn.refused("switch.overlay", "switch", "record", "ls", "plain")
    inn.refused("switch.record_not_found", "switch", "record", "rm", "red", "10.233.0.8")

    inn("vm", "create", "one", "--memory", "64M", "--switch", "red", "--switch", "blue", "--no-start")
    cards = {nic["name"]: nic for nic in inn.json("nic", "ls")}
    assert (cards["one-0"]["address"], cards["one-1"]["address"]) == ("10.233.0.3", "10.233.0.2")
    own = inn.json("switch", "record", "ls", "red", "--own")
    assert own == [{"customer_address": "10.233.0.3", "mac": cards["one-0"]["mac"], "provider_address": provider}]
    taken = ("10.233.0.3", "52:54:99:00:00:08", "192.0.2.78")
    inn.refused("switch.record_of_own_card", "switch", "record", "add", "red", *taken)
    inn("switch", "record", "add", "red", *taken[:2], provider)
    inn("switch", "record", "rm", "red", "10.233.0.2", "10.233.0.3")
    assert "192.0.2.78" not in subprocess.check_output(["bridge", "fdb", "show", "dev", tunnel], text=True)
    inn("switch", "create", "garden", *create[2:-1], "10.234.0.0/24", "--vni", "4999003", "--routing-domain", "red")
    inn("switch", "set", "garden", "--gateway")
    inn("switch", "route", "add", "red", "10.99.0.0/16", "10.233.0.3")
    inn("switch", "route", "add", "red", "10.98.0.0/16", "10.233.0.3", "--metric", "7")
    assert [one["prefix"] for one in inn.json("switch", "route", "ls", "red")] == ["10.98.0.0/16", "10.99.0.0/16"]
    inn.refused("switch.route", "switch", "route", "add", "red", "10.97.0.0/16", "10.234.0.3")
    inn("switch", "route", "rm", "red", "10.98.0.0/16")
    inn.refused("switch.route_not_found", "switch", "route", "rm", "red", "10.98.0.0/16")
    tenant = f"intn-{identity}1"
    routes = subprocess.check_output(["ip", "netns", "exec", tenant, "ip", "route"], text=True)
    assert "10.99.0.0/16 via 10.233.0.3" in routes and "10.98." not in routes and "10.234.0.0/24" in routes
    assert "default" in routes and device(f"intu-{identity}1").exists()
    assert inn.json("switch", "show", "red")["gateway_address"] == "10.233.0.1"
    inn("switch", "set", "garden", "--no-gateway")
    assert not device(f"intu-{identity}1").exists()
    inn("vm", "rm", "one")
    for name in ("red", "blue", "plain", "garden"):
        inn("switch", "rm", name)
    assert not device(tunnel).exists()
    assert not [path.name for path in Path("/run/netns").glob(f"intn-{identity}*")]


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


def test_the_first_vlan_of_a_switch_holds_its_other_cards_to_theirs(inn: LiveInn) -> None:
    table = f"inn_{json.loads((inn.state / 'inn.json').read_text())['id']}"

    def in_set(name: str) -> set[str]:
        listed = subprocess.run(["nft", "-j", "list", "set", "bridge", table, name], capture_output=True, check=True)
        return set(json.loads(listed.stdout)["nftables"][1]["set"].get("elem", ()))

    inn("switch", "create", "floor")
    for name in ("plain", "apart"):
        inn("vm", "create", name, "--memory", "64M", "--switch", "floor")
    taps = {one: inn.json("nic", "show", f"{one}-0")["tap"] for one in ("plain", "apart")}
    assert in_set("vlan_ports") == set()
    plan = inn.json("nic", "set", "apart-0", "--vlan", "access:10", "--dry-run")
    assert all(f"vlan_ports: {tap}" in plan["diff"] for tap in taps.values())
    assert in_set("vlan_ports") == set(), "a dry run changes nothing"

    inn("nic", "set", "apart-0", "--vlan", "access:10")
    assert in_set("vlan_ports") == set(taps.values())
    assert in_set("vlan_hosts") == {taps["plain"]}
    inn("vm", "clone", "apart", "copy")
    assert inn.json("nic", "show", "copy-0")["vlan"]["vlan_id"] == 10
    inn("vm", "rm", "copy")

    inn("nic", "set", "apart-0", "--vlan", "untagged")
    assert in_set("vlan_ports") == set()
    for name in taps:
        inn("vm", "rm", name, "--force")
    inn("switch", "rm", "floor")
