"""The seed's ARP lab between real guests, both steps of the attacker: poison the victim, then pass on what it sends, so
that nothing is noticed. With the guards as they are at first neither step succeeds."""

from __future__ import annotations

import time

import pytest
from live_inn import SMALL, LiveInn, eventually

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]
_LOCK_S = 1.1
"""Linux keeps a fresh ARP entry for a second before it believes another."""


def _believed(inn: LiveInn, vm: str, address: str) -> str:
    """The mac that the guest has for an address; empty without one."""
    for line in inn.sh(vm, "cat /proc/net/arp").splitlines():
        if line.split()[0] == address:
            return line.split()[3]
    return ""


def _forwarded(inn: LiveInn, vm: str) -> int:
    """Packets that the guest has forwarded since it booted."""
    names, values = (line.split() for line in inn.sh(vm, "grep ^Ip: /proc/net/snmp").splitlines())
    return int(values[names.index("ForwDatagrams")])


def _reaches(inn: LiveInn, vm: str, address: str) -> bool:
    return inn.run("vm", "exec", vm, "--", "ping", "-c", "1", "-W", "2", address).returncode == 0


def test_who_poisons_and_forwards_is_in_the_middle_only_without_guards(inn: LiveInn) -> None:
    for vm in ("mallory", "alice"):
        inn("vm", "create", vm, *SMALL, "--switch", "lan", "--wait", "ready")
    gateway = inn.json("switch", "show", "lan")["gateway_address"]
    evil, target = (inn.json("nic", "show", f"{vm}-0") for vm in ("mallory", "alice"))
    eventually(lambda: _reaches(inn, "alice", gateway), "alice has her address")
    honest = _believed(inn, "alice", gateway)
    assert honest not in ("", evil["mac"])
    inn.sh("mallory", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 0 > /proc/sys/net/ipv4/conf/all/send_redirects")
    inn.sh("mallory", "echo 0 > /proc/sys/net/ipv4/conf/eth0/send_redirects")
    poison = f"arp-spoof eth0 {gateway} {target['address']} {target['mac']}"

    inn("nic", "set", "mallory-0", "--no-guard", "arp", "--no-guard", "ip")

    def poisoned() -> bool:
        time.sleep(_LOCK_S)
        inn.sh("mallory", poison)
        return _believed(inn, "alice", gateway) == evil["mac"]

    eventually(poisoned, "without guards alice is poisoned")
    before = _forwarded(inn, "mallory")
    assert _reaches(inn, "alice", gateway), "alice notices nothing"
    assert _forwarded(inn, "mallory") > before, "for mallory passes on what she sends"

    inn("nic", "set", "mallory-0", "--default-guard", "arp", "--default-guard", "ip")
    assert _believed(inn, "alice", gateway) == evil["mac"], "she is poisoned still"
    before, dropped = _forwarded(inn, "mallory"), inn.json("nic", "show", "mallory-0")["dropped_packets"]
    inn.run("vm", "exec", "alice", "--", "ping", "-c", "3", "-W", "1", gateway)
    after = inn.json("nic", "show", "mallory-0")["dropped_packets"]
    assert _forwarded(inn, "mallory") > before, "mallory's kernel still tries"
    assert after["ip"] > dropped["ip"], "and what she passes on in alice's name goes nowhere"

    inn.sh("alice", f"arp -d {gateway} 2>/dev/null || ip neigh flush dev eth0")
    eventually(lambda: _reaches(inn, "alice", gateway), "alice asks anew")
    before, dropped = _forwarded(inn, "mallory"), inn.json("nic", "show", "mallory-0")["dropped_packets"]
    time.sleep(_LOCK_S)
    inn.sh("mallory", f"{poison} - 5")
    assert _believed(inn, "alice", gateway) == honest
    assert inn.json("nic", "show", "mallory-0")["dropped_packets"]["arp"] >= dropped["arp"] + 5
    assert _reaches(inn, "alice", gateway)
    assert _forwarded(inn, "mallory") == before

    def told() -> bool:
        return any(entry["reason"] == "GuardDropped" for entry in inn.json("event", "ls", "--vm", "mallory"))

    eventually(told, "the journal names mallory's card")
    for vm in ("mallory", "alice"):
        inn("vm", "rm", vm, "--force", "--with-disks")
