"""DHCP of a switch, spoken to frame by frame."""

from __future__ import annotations

import socket
import struct
from dataclasses import replace

import frames as f
import pytest
from switch_lab import PATIENCE_S, Guest, Lab, run_in
from switch_world import GATEWAY, SWITCH, dnsmasq_pid, port_of, until

from innkeeper.network.dhcp_policy import DhcpPolicy, Reservation

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
    assert until(lambda: _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))[1] == "10.66.0.200"), "it hears a signal"
    assert dnsmasq_pid(lab) == pid


def test_the_mtu_of_a_card_and_of_its_switch_change_while_it_is_plugged_in(lab: Lab) -> None:
    guest, other = lab.plug(port_of(1)), lab.plug(port_of(2))

    def mtu_of(device: str) -> int:
        return int(run_in(lab.namespace, "cat", f"/sys/class/net/{device}/mtu"))

    def told(one: Guest) -> int:
        one.drain()
        return int.from_bytes(_dhcp_exchange(one, _dhcp_broadcast(one, 1))[2][26], "big")

    lab.set_port(guest, replace(guest.port, mtu=1400))
    assert (mtu_of(guest.port.tap), mtu_of(other.port.tap), mtu_of(SWITCH.bridge)) == (1400, 1500, 1500)
    assert (told(guest), told(other)) == (1400, 1500)
    lab.do(lab.runner.ensure(replace(SWITCH, mtu=9000), [guest.port, other.port]))
    assert (mtu_of(guest.port.tap), mtu_of(other.port.tap), mtu_of(SWITCH.bridge)) == (1400, 9000, 9000)
    assert (told(guest), told(other)) == (1400, 9000)
    assert lab.do(lab.runner.repair()).done == []


def test_dhcp_gives_nothing_to_a_stranger(lab: Lab) -> None:
    guest = lab.plug(replace(port_of(1), guards=replace(port_of(1).guards, mac=False)))
    stranger = replace(guest, port=replace(guest.port, mac="52:54:aa:aa:aa:aa"))
    guest.send(_dhcp_broadcast(stranger, 1))
    assert _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))[1] == guest.ip


def test_dhcp_gives_what_was_set_and_reservations_to_other_macs(lab: Lab) -> None:
    stranger_mac = "52:54:aa:aa:aa:aa"
    dhcp = DhcpPolicy(
        lease_s=600,
        dns_servers=("192.0.2.53", "192.0.2.54"),
        search_domains=("a.example",),
        ntp_servers=("192.0.2.7",),
        options=((66, "boot.example"), (121, "198.51.100.0/24,10.66.0.1"), (224, "01:02:ff")),
        reservations=(Reservation(stranger_mac, "10.66.0.77"),),
    )
    port = replace(port_of(1), guards=replace(port_of(1).guards, mac=False, ip=False, arp=False))
    lab.do(lab.runner.ensure(replace(SWITCH, dhcp_policy=dhcp), [port]))
    guest = lab.open(port)
    _, address, options = _dhcp_exchange(guest, _dhcp_broadcast(guest, 1))
    assert address == guest.ip
    assert options[6] == f.ip("192.0.2.53") + f.ip("192.0.2.54") and options[42] == f.ip("192.0.2.7")
    assert options[51] == struct.pack("!I", 600)
    assert options[119] == b"\1a\7example\0" and options[66].rstrip(b"\0") == b"boot.example"
    assert options[121] == bytes([24, 198, 51, 100]) + f.ip("10.66.0.1") and options[224] == b"\1\2\xff"
    stranger = replace(guest, port=replace(guest.port, mac=stranger_mac))
    assert _dhcp_exchange(stranger, _dhcp_broadcast(stranger, 1))[1] == "10.66.0.77"
