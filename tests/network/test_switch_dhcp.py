"""DHCP of a switch, spoken to frame by frame."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import frames as f
import pytest
from switch_lab import PATIENCE_S, Guest, Lab
from switch_world import GATEWAY, SWITCH, dnsmasq_pid, port_of

pytestmark = pytest.mark.root


def _dhcp_options(message: bytes) -> dict[int, bytes]:
    options, rest = {}, message[240:]
    while rest and rest[0] != 255:
        options[rest[0]] = rest[2 : 2 + rest[1]]
        rest = rest[2 + rest[1] :]
    return options


def _dhcp_exchange(guest: Guest, frame: bytes) -> tuple[int, str, dict[int, bytes]]:
    """Send a DHCP frame; the answer's kind, the address it gives, and its options."""
    guest.send(frame)
    while True:
        answer = guest.receive(PATIENCE_S)
        assert answer is not None, "no answer of DHCP"
        if answer[12:14] == b"\x08\x06" and answer[38:42] == f.ip(guest.ip):
            guest.send(f.arp(guest.mac, 2, guest.mac, guest.ip, SWITCH.mac, GATEWAY))
        if answer[12:14] == b"\x08\x00" and answer[23] == 17 and answer[36:38] == struct.pack("!H", 68):
            message = answer[42:]
            options = _dhcp_options(message)
            return options[53][0], socket.inet_ntoa(message[16:20]), options


def _dhcp_broadcast(guest: Guest, kind: int, options: bytes = b"") -> bytes:
    message = f.dhcp(1, kind, guest.mac, options=options)
    packet = f.ipv4("0.0.0.0", "255.255.255.255", 17, f.udp("0.0.0.0", "255.255.255.255", 68, 67, message))
    return f.ethernet(f.BROADCAST, guest.mac, 0x0800, packet)


def test_dhcp_gives_the_reserved_address_and_renews_it(lab: Lab) -> None:
    lab.plug(port_of(2))
    guest = lab.plug(port_of(1))
    offer, address, options = _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))
    assert (offer, address) == (2, guest.ip)
    assert options[3] == options[6] == options[54] == f.ip(GATEWAY)
    assert options[26] == struct.pack("!H", 1500)
    wanted = bytes([50, 4]) + f.ip(guest.ip) + bytes([54, 4]) + f.ip(GATEWAY)
    assert _dhcp_exchange(guest, _dhcp_broadcast(guest, 3, wanted))[:2] == (5, guest.ip)

    renewal = bytearray(f.dhcp(1, 3, guest.mac))
    renewal[12:16] = f.ip(guest.ip)
    packet = f.ipv4(guest.ip, GATEWAY, 17, f.udp(guest.ip, GATEWAY, 68, 67, bytes(renewal)))
    assert _dhcp_exchange(guest, f.ethernet(SWITCH.mac, guest.mac, 0x0800, packet))[:2] == (5, guest.ip)
    leases = lab.do(lab.runner.leases(SWITCH.bridge))
    assert [(lease.address, lease.mac, lease.hostname) for lease in leases] == [(guest.ip, guest.mac, "guest1")]
    assert sum(lab.dropped(guest).values()) == 0


def test_dhcp_follows_a_changed_address_without_a_restart(lab: Lab) -> None:
    guest, pid = lab.plug(port_of(1)), dnsmasq_pid(lab)
    lab.set_port(guest, replace(guest.port, ipv4=("10.66.0.200",)))
    assert _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))[1] == "10.66.0.200"
    assert dnsmasq_pid(lab) == pid


def test_dhcp_gives_nothing_to_a_stranger(lab: Lab) -> None:
    guest = lab.plug(replace(port_of(1), guards=replace(port_of(1).guards, mac=False)))
    stranger = replace(guest, port=replace(guest.port, mac="52:54:aa:aa:aa:aa"))
    guest.send(_dhcp_broadcast(stranger, 1))
    assert _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))[1] == guest.ip
