"""Real guests on an external switch: the network outside gives them addresses, and they are held to those.

What one of them claims in another's name does not arrive outside, and does where its guards are off.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator

import pytest
from host_lab import WORLD4, dhcp_at_out
from live_inn import SMALL, LiveInn, eventually
from switch_lab import new_namespace, run_in

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow]
CARD = "tout0"
_LOCK_S = 1.1
"""Linux keeps a fresh ARP entry for a second before it believes another."""


@pytest.fixture
def outside() -> Iterator[str]:
    """The network that the card ``CARD`` leads to: a namespace with a router's address and a DHCP server."""
    with new_namespace("outside") as namespace:
        run_in(namespace, "ip", "link", "add", "out", "type", "veth", "peer", "name", CARD)
        try:
            run_in(namespace, "ip", "link", "set", CARD, "netns", "1")
            run_in(namespace, "ip", "link", "set", "out", "up")
            run_in(namespace, "ip", "addr", "add", f"{WORLD4}/24", "dev", "out")
            subprocess.run(["ip", "link", "set", CARD, "up"], check=True)
            with dhcp_at_out(namespace):
                yield namespace
        finally:
            subprocess.run(["ip", "link", "del", CARD], check=True)


@pytest.fixture
def guests(inn: LiveInn, outside: str) -> Iterator[dict[str, str]]:
    """Two guests with the addresses that the outside gave them."""
    inn("switch", "create", "outer", "--kind", "external", "--uplink", CARD)
    names = ("eve", "bob")
    try:
        for name in names:
            inn("vm", "create", name, *SMALL, "--switch", "outer", "--wait", "ready")
        yield {name: _learned(inn, name) for name in names}
    finally:
        for name in names:
            inn.run("vm", "rm", name, "--force", "--with-disks")
        inn.run("switch", "rm", "outer")


def _learned(inn: LiveInn, name: str) -> str:
    """The address that the inn has learned of the guest, which the guest has."""
    found: list[str] = []

    def known() -> bool:
        told = inn.json("nic", "show", f"{name}-0")["known_addresses"]
        found[:] = [one["address"] for one in told if one["known_from"] == "dhcp-learned"]
        return bool(found)

    eventually(known, f"the inn hears of {name}'s lease")
    assert f" {found[0]}/24 " in inn.sh(name, "ip -4 -o addr show dev eth0")
    return found[0]


def _pings(inn: LiveInn, name: str, *words: str) -> bool:
    return inn.run("vm", "exec", name, "--", "ping", "-c", "1", "-W", "2", *words).returncode == 0


def _asked(outside: str) -> int:
    """Echo requests that have come to the outside."""
    names, values = re.findall(r"^Icmp: (.*)$", run_in(outside, "cat", "/proc/net/snmp"), re.MULTILINE)
    return int(values.split()[names.split().index("InEchos")])


def _believed(outside: str, address: str) -> str:
    """The mac that the outside has for an address."""
    found = re.search(r"lladdr (\S+)", run_in(outside, "ip", "neigh", "show", address, "dev", "out"))
    return found[1] if found else ""


def test_who_speaks_for_another_is_not_heard_outside(inn: LiveInn, outside: str, guests: dict[str, str]) -> None:
    eve, bob = guests["eve"], guests["bob"]
    mac = {name: inn.json("nic", "show", f"{name}-0")["mac"] for name in guests}
    assert eve != bob and all(address.startswith("192.0.2.1") for address in guests.values())
    assert inn.json("nic", "show", "eve-0")["guards_without_address"] == []

    assert _pings(inn, "eve", bob) and _pings(inn, "bob", eve), "they reach each other"
    assert _pings(inn, "eve", WORLD4) and _pings(inn, "bob", WORLD4), "and the outside"
    assert "1 received" in run_in(outside, "ping", "-c1", "-W2", bob), "and are reached from there"
    assert _believed(outside, bob) == mac["bob"]

    inn.sh("eve", f"ip addr add {bob}/32 dev eth0")
    poison = f"arp-spoof eth0 {bob} {WORLD4} ff:ff:ff:ff:ff:ff"
    forged = ("-I", bob, WORLD4)

    def dropped(guard: str) -> int:
        return int(inn.json("nic", "show", "eve-0")["dropped_packets"][guard])

    before, arps, sources = _asked(outside), dropped("arp"), dropped("ip")
    time.sleep(_LOCK_S)
    inn.sh("eve", f"{poison} - 5; arp-spoof eth0 {WORLD4} {bob} {mac['bob']} - 5")
    assert not _pings(inn, "eve", *forged)
    assert dropped("arp") >= arps + 10 and dropped("ip") > sources
    assert _asked(outside) == before, "no packet in bob's name has come out"
    assert _believed(outside, bob) == mac["bob"]
    router = run_in(outside, "cat", "/sys/class/net/out/address").strip()
    assert router in inn.sh("bob", f"grep '^{WORLD4} ' /proc/net/arp"), "nor has bob heard of another router"
    assert _pings(inn, "bob", WORLD4), "bob has noticed nothing"

    def told() -> bool:
        return any(entry["reason"] == "GuardDropped" for entry in inn.json("event", "ls", "--vm", "eve"))

    eventually(told, "the journal names eve's card")

    inn("nic", "set", "eve-0", "--no-guard", "arp", "--no-guard", "ip")
    before = _asked(outside)

    def poisoned() -> bool:
        time.sleep(_LOCK_S)
        inn.sh("eve", poison)
        inn.run("vm", "exec", "eve", "--", "ping", "-c", "1", "-W", "1", *forged)
        return _believed(outside, bob) == mac["eve"] and _asked(outside) > before

    eventually(poisoned, "without guards both attacks work outside")
