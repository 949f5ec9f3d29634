"""The ARP lab: a guest tells another that the gateway is at its own address, without the guard and with it."""

from __future__ import annotations

import time

from innkeeper.cli.tour_stage import GUESTS, SWITCH, Stage, require
from innkeeper.model import requests as ask

_PATIENCE_S = 15.0
_LOCK_S = 1.1
"""Linux keeps a fresh ARP entry for a second before it believes another."""


def _known_mac(stage: Stage, guest: str, address: str) -> str:
    """The MAC address that the guest's ARP table has for ``address``; empty when it has none."""
    for line in stage.sh(guest, "cat /proc/net/arp").splitlines():
        fields = line.split()
        if fields and fields[0] == address:
            return fields[3]
    return ""


def _ping(stage: Stage, guest: str, address: str) -> None:
    stage.sh(guest, f"for i in 1 2 3 4 5; do ping -c 1 -W 2 {address} >/dev/null && exit 0; done; exit 1")


def spoof(stage: Stage) -> None:
    """Guard off: poisoned. Guard on: clean, and the drops are counted."""
    attacker, victim, _ = GUESTS
    gateway = stage.client.switches.show(SWITCH).gateway
    require(gateway is not None, f"switch {SWITCH} has no gateway")
    assert gateway is not None
    evil, target = stage.card(attacker), stage.card(victim)
    command = f"arp-spoof eth0 {gateway} {target.address} {target.mac}"
    _ping(stage, victim, gateway)
    honest = _known_mac(stage, victim, gateway)
    require(honest not in ("", evil.mac), f"{victim} does not know the gateway's address to begin with")
    stage.say(f"{victim} knows that the gateway {gateway} is at {honest}")

    stage.client.nics.set(evil.id, ask.NicSet(guards=ask.GuardsSet(arp=False)))
    try:
        _poison(stage, attacker, victim, gateway, evil.mac, command)
        stage.say(f"ARP guard off: {attacker} says it is the gateway, {victim} now believes {evil.mac}: poisoned")
    finally:
        stage.client.nics.set(evil.id, ask.NicSet(guards=ask.GuardsSet(arp=True)))

    stage.sh(victim, f"arp -d {gateway} 2>/dev/null || ip neigh flush dev eth0")
    _ping(stage, victim, gateway)
    before = stage.card(attacker).dropped_packets.get("arp", 0)
    time.sleep(_LOCK_S)
    stage.sh(attacker, f"{command} - 5")
    believed = _known_mac(stage, victim, gateway)
    dropped = stage.card(attacker).dropped_packets.get("arp", 0) - before
    require(believed == honest, f"{victim} believes {believed} though the guard is on")
    require(dropped >= 5, f"the guard counted {dropped} of 5 spoofed replies")
    stage.say(f"ARP guard on: {victim} still knows {honest}: clean; 'inn nic show {evil.name}' counts {dropped} drops")


def _poison(stage: Stage, attacker: str, victim: str, gateway: str, lie: str, command: str) -> None:
    """Repeat the lie until the victim believes it."""
    deadline = time.monotonic() + _PATIENCE_S
    while _known_mac(stage, victim, gateway) != lie:
        require(time.monotonic() < deadline, f"{victim} was not poisoned though the guard is off")
        time.sleep(_LOCK_S)
        stage.sh(attacker, command)
