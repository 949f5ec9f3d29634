"""Addresses of the switches and cards of a live inn: what DHCP and guests are told, and what cannot be."""

from __future__ import annotations

import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from live_inn import SMALL, LiveInn, eventually

from innkeeper.client.inn import InnClient
from innkeeper.system.paths import Paths

pytestmark = [pytest.mark.guest, pytest.mark.root]


def dhcp_files(inn: LiveInn, switch: str) -> str:
    """What the switch's dnsmasq reads."""
    identity = json.loads((inn.state / "inn.json").read_text())["id"]
    folder = Path("/run/innkeeper", identity, "switches", inn.json("switch", "show", switch)["bridge"])
    return (folder / "dnsmasq.conf").read_text() + (folder / "reservations").read_text()


def test_dhcp_of_a_switch_is_set_changed_and_refused(inn: LiveInn) -> None:
    create = ("switch", "create", "den", "--subnet", "10.232.0.0/24")
    inn.refused("dhcp.range", *create, "--range", "10.232.0.9-10.232.1.9")
    inn.refused("dhcp.reservation", *create, "--reserve", "52:54:aa:00:00:01=10.233.0.9")
    assert "den" not in inn("switch", "ls", "-q").split()
    inn(*create, "--range", "10.232.0.100-10.232.0.101", "--lease", "12h", "--dns", "192.0.2.53", "--option", "66=boot")
    inn("vm", "create", "cell", "--memory", "64M", "--switch", "den", "--no-start")
    (card,) = (nic for nic in inn.json("nic", "ls") if nic["name"] == "cell-0")
    assert card["address"] == "10.232.0.100"
    told = dhcp_files(inn, "den")
    assert "static,255.255.255.0,43200" in told and "dns-server,192.0.2.53" in told and "force=66,boot" in told

    keys = ("--reserve", "52:54:aa:00:00:01=10.232.0.9,printer")
    plan = inn.json("switch", "set", "den", *keys, "--dns", "none", "--dry-run")
    assert "+52:54:aa:00:00:01,10.232.0.9,printer" in plan["diff"]
    inn("switch", "set", "den", *keys, "--dns", "none")
    told = dhcp_files(inn, "den")
    assert "52:54:aa:00:00:01,10.232.0.9,printer" in told and "dns-server,10.232.0.1" in told
    assert "static,255.255.255.0,43200" in told, "what was not named stays"
    inn.refused("nic.address_in_use", "nic", "create", "cell", "--switch", "den", "--address", "10.232.0.9")
    inn.refused("nic.mac_in_use", "nic", "create", "cell", "--switch", "den", "--mac", "52:54:aa:00:00:01")
    inn.refused("dhcp.reservation_taken", "switch", "set", "den", "--reserve", "52:54:aa:00:00:02=10.232.0.100")
    assert inn.json("switch", "show", "den")["dhcp_settings"]["reservations"][0]["hostname"] == "printer"
    inn("nic", "create", "cell", "--switch", "den")
    inn.refused("switch.addresses_exhausted", "nic", "create", "cell", "--switch", "den")
    inn("vm", "rm", "cell")
    inn("switch", "rm", "den")


def test_a_guest_gets_static_addresses_through_its_seed_and_keeps_them(inn: LiveInn) -> None:
    inn("switch", "create", "still", "--subnet", "10.234.0.0/24", "--no-dhcp", "--kind", "internal")
    inn.refused(
        "nic.network_config", "vm", "create", "own", "--switch", "lan", "--static", "--network-config", __file__
    )
    addresses = ("--address", "10.234.0.9")
    inn("vm", "create", "rock", *SMALL, "--switch", "still", *addresses, "--switch", "lan", "--wait", "ready")
    still, lan = (one for one in inn.json("nic", "ls") if one["name"].startswith("rock-"))
    assert still["static"] and not lan["static"], "without DHCP there is only cloud-init"
    eventually(lambda: lan["address"] in inn.sh("rock", "ip -4 addr show eth1"), "the other card has its address")
    assert "10.234.0.9/24" in inn.sh("rock", "ip -4 addr show eth0")
    assert "0% packet loss" in inn.sh("rock", "ping -c 1 -W 5 10.234.0.1")
    assert inn.sh("rock", "ip route show default").split()[2:5] == [
        inn.json("switch", "show", "lan")["gateway_address"],
        "dev",
        "eth1",
    ]
    assert sum(inn.json("nic", "show", "rock-0")["dropped_packets"].values()) == 0

    inn("nic", "set", "rock-1", "--static")
    inn("nic", "set", "rock-0", "--address", "10.234.0.10")
    inn("vm", "save", "rock")
    inn("vm", "start", "rock")
    inn("vm", "shutdown", "rock")
    inn("vm", "start", "rock", "--wait", "ready")
    assert "10.234.0.10/24" in inn.sh("rock", "ip -4 addr show eth0")
    assert (
        lan["address"] in inn.sh("rock", "ip -4 addr show eth1")
        and inn.sh("rock", "pgrep -f 'udhcpc -i' || true") == ""
    )
    assert "0% packet loss" in inn.sh("rock", "ping -c 1 -W 5 10.234.0.1")
    inn("vm", "rm", "rock", "--with-disks", "--force")
    inn("switch", "rm", "still")


def test_a_card_moves_to_another_switch_under_its_guest(inn: LiveInn) -> None:
    inn("switch", "create", "second", "--subnet", "10.235.0.0/24")
    inn("switch", "create", "third", "--kind", "private")
    inn("vm", "create", "nomad", *SMALL, "--switch", "lan", "--switch", "lan", "--wait", "ready")
    inn("switch", "set", "lan", "--forward", "18090=nomad:80")
    eventually(lambda: inn.sh("nomad", "ip route | grep -c default") != "0", "it has an address")
    carrier, pid = (
        "cat /sys/class/net/eth0/carrier_down_count /sys/class/net/eth0/carrier",
        inn.json("vm", "show", "nomad")["status"]["pid"],
    )
    downs = int(inn.sh("nomad", carrier).split()[0])
    plan = inn.json("nic", "set", "nomad-0", "--switch", "second", "--address", "10.235.0.44", "--dry-run")
    assert any("10.235.0.44" in step for step in plan["steps"])
    assert inn.sh("nomad", carrier).split() == [str(downs), "1"]

    inn("nic", "set", "nomad-0", "--switch", "second", "--address", "10.235.0.44")
    assert inn.sh("nomad", carrier).split() == [str(downs + 1), "1"], "the guest saw its link go and come"
    assert inn.json("switch", "show", "lan")["forwards"] == [], "forwards are for cards of that switch"
    inn.sh("nomad", "ip addr flush dev eth0; probe-net eth0")
    eventually(lambda: "10.235.0.44/24" in inn.sh("nomad", "ip -4 addr show eth0"), "DHCP of the other switch")
    assert "0% packet loss" in inn.sh("nomad", "ping -c 1 -W 5 -I eth0 10.235.0.1")
    inn.refused("nic.address_outside", "nic", "set", "nomad-0", "--switch", "lan", "--address", "10.235.0.44")
    inn("nic", "set", "nomad-0", "--switch", "third")
    inn("nic", "set", "nomad-0", "--switch", "lan")
    assert inn.sh("nomad", carrier).split() == [str(downs + 3), "1"]
    assert inn.json("vm", "show", "nomad")["status"]["pid"] == pid

    inn.refused("nic.mtu", "nic", "set", "nomad-0", "--mtu", "9000")
    inn("nic", "set", "nomad-0", "--mtu", "1400")
    assert inn.sh("nomad", carrier).split() == [str(downs + 4), "1"], "so that it asks DHCP"
    tap = Path("/sys/class/net", inn.json("nic", "show", "nomad-0")["tap"], "mtu")
    assert tap.read_text().strip() == "1400"
    inn("nic", "set", "nomad-0", "--mtu", "0")
    assert tap.read_text().strip() == "1500"

    inn("nic", "create", "nomad", "--switch", "third")
    eventually(lambda: "eth2" in inn.sh("nomad", "ls /sys/class/net"), "a third card comes")
    inn("nic", "rm", "nomad-2")
    eventually(lambda: "eth2" not in inn.sh("nomad", "ls /sys/class/net"), "and goes")
    inn("vm", "rm", "nomad", "--with-disks", "--force")
    for name in ("second", "third"):
        inn("switch", "rm", name)


def test_a_guest_saved_while_a_card_has_no_link_comes_back_with_it(inn: LiveInn) -> None:
    inn("vm", "create", "sleeper", *SMALL, "--switch", "lan", "--wait", "ready")
    down = "cat /sys/class/net/eth0/carrier_down_count"
    before = int(inn.sh("sleeper", down))
    with InnClient(Paths.open(inn.state).api_socket) as client, ThreadPoolExecutor() as pool:
        changing = pool.submit(inn.run, "nic", "set", "sleeper-0", "--mtu", "1400")
        eventually(lambda: client.nics.show("sleeper-0").mtu == 1400, "its link is away", every_s=0.01)
        inn("vm", "save", "sleeper")
        changed = changing.result()
    assert changed.returncode == 0, changed.stderr
    assert inn.json("vm", "show", "sleeper")["status"]["state"] == "saved"
    inn("vm", "start", "sleeper")
    eventually(lambda: inn.sh("sleeper", "cat /sys/class/net/eth0/carrier") == "1", "its link is there")
    assert int(inn.sh("sleeper", down)) > before, "it was saved without"
    inn("vm", "rm", "sleeper", "--with-disks", "--force")


def test_ipv6_of_a_switch_reaches_its_guests(inn: LiveInn) -> None:
    create = ("switch", "create", "six", "--kind", "internal", "--subnet", "10.236.0.0/24")
    inn.refused("switch.subnet6", *create, "--subnet6", "fd00:236::/48")
    inn(*create, "--subnet6", "fd00:236::/64", "--ra-mode", "slaac")
    inn.refused("switch.subnet_in_use", "switch", "create", "again", "--subnet6", "fd00:236::/64", "--kind", "private")
    assert inn.json("switch", "show", "six")["gateway_address6"] == "fd00:236::1"
    inn("vm", "create", "sixth", *SMALL, "--switch", "six", "--address6", "fd00:236::6", "--static", "--wait", "ready")
    known = inn.json("nic", "show", "sixth-0")["ipv6_addresses"]
    assert [address.partition(":")[0] for address in known] == ["fe80", "fd00", "fd00"] and known[1] == "fd00:236::6"
    for address in known:
        eventually(lambda address=address: address in inn.sh("sixth", "ip -6 addr show eth0"), address)  # type: ignore[misc]
    eventually(lambda: "tentative" not in inn.sh("sixth", "ip -6 addr show eth0"), "its addresses are its own")
    assert "0% packet loss" in inn.sh("sixth", "ping -6 -c 1 -W 5 fd00:236::1")
    assert inn.sh("sixth", "ip -6 route show default") == "", "an internal switch is no way out"
    assert sum(inn.json("nic", "show", "sixth-0")["dropped_packets"].values()) == 0
    for wrong, code in (("fd00:237::6", "nic.address_outside"), ("fd00:236::1", "nic.address_in_use")):
        inn.refused(code, "nic", "create", "sixth", "--switch", "six", "--address6", wrong)
    inn.refused("switch.no_subnet", "nic", "create", "sixth", "--switch", "lan", "--address6", "fd00:236::7")
    inn.refused("switch.addresses_outside", "switch", "set", "six", "--subnet6", "none")
    plan = inn.json("switch", "set", "lan", "--subnet6", "auto", "--dry-run")
    assert any("forward IPv6" in step for step in plan["steps"])
    inn("vm", "rm", "sixth", "--with-disks", "--force")
    inn("switch", "set", "six", "--subnet6", "none")
    assert inn.json("switch", "show", "six")["gateway_address6"] is None
    inn("switch", "rm", "six")


def test_a_daemon_killed_while_a_card_has_no_link_gives_it_back(inn: LiveInn) -> None:
    inn("switch", "create", "refuge", "--subnet", "10.237.0.0/24")
    inn("vm", "create", "orphan", *SMALL, "--switch", "lan", "--wait", "ready")
    carrier = "cat /sys/class/net/eth0/carrier_down_count /sys/class/net/eth0/carrier"
    downs = int(inn.sh("orphan", carrier).split()[0])
    bridge, daemon = inn.json("switch", "show", "refuge")["bridge"], inn.pid("daemon")
    master = Path("/sys/class/net", inn.json("nic", "show", "orphan-0")["tap"], "master")
    with ThreadPoolExecutor(1) as aside:
        moving = aside.submit(inn.run, "nic", "set", "orphan-0", "--switch", "refuge")
        deadline = time.monotonic() + 60
        while master.resolve().name != bridge:  # from then on it has no link for two seconds
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(daemon, signal.SIGKILL)
        assert moving.result().returncode != 0
    inn("up")
    eventually(lambda: inn.sh("orphan", carrier).split() == [str(downs + 1), "1"], "its link is back")
    nic = inn.json("nic", "show", "orphan-0")
    assert nic["switch_name"] == "refuge" and nic["address"].startswith("10.237.0.")
    assert master.resolve().name == bridge, "it is where it was to go"
    inn.sh("orphan", "ip addr flush dev eth0; probe-net eth0")
    eventually(lambda: f"{nic['address']}/24" in inn.sh("orphan", "ip -4 addr show eth0"), "DHCP of the other switch")
    inn("vm", "rm", "orphan", "--with-disks", "--force")
    inn("switch", "rm", "refuge")
