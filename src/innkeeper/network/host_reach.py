"""What becomes of a guest's packet to its gateway: what ``host_input`` makes nftables do, and why. Pure."""

from __future__ import annotations

import ipaddress

from innkeeper.model.acl import ICMP, ICMPV6, TCP, UDP
from innkeeper.model.host_firewall import read_service
from innkeeper.network.acl_decision import REQUEST, Packet
from innkeeper.network.policy import Forward, SwitchPolicy

_NUMBERS = {"tcp": TCP, "udp": UDP}
_ALWAYS = {
    4: {(TCP, 53): "DNS", (UDP, 53): "DNS", (UDP, 67): "DHCP"},
    6: {(TCP, 53): "DNS", (UDP, 53): "DNS", (UDP, 547): "DHCPv6"},
}


def is_gateway(switch: SwitchPolicy, address: str) -> bool:
    """Whether the host has that address on the switch."""
    return address in (switch.host_address, switch.gateway6)


def judged(switch: SwitchPolicy, packet: Packet) -> tuple[bool, str]:
    """Whether a packet from a guest to the gateway passes, and by what; an answer to the host's own passes anyway."""
    forward = _forward(switch, packet)
    if forward is not None:
        return True, f"the port forward leads on to {forward.address} port {forward.guest_port}: ask about that card"
    if served := _ALWAYS[packet.version].get((packet.protocol, packet.target_port or 0)):
        return True, f"the gateway's {served}"
    if packet.protocol in (ICMP, ICMPV6) and packet.icmp_type == REQUEST[packet.protocol]:
        return True, "the gateway answers pings"
    source = ipaddress.ip_address(packet.source)
    for text in switch.host_services:
        service = read_service(text)
        from_there = service.source.prefix is None or source in service.source.prefix
        if from_there and service.covers(packet.protocol, packet.target_port):
            return True, f"--host-service {text}"
    return False, "the host's services are not for guests; --host-service opens one"


def _forward(switch: SwitchPolicy, packet: Packet) -> Forward | None:
    """The port forward of this switch that takes the packet, one at that address before one at any."""
    found = [
        one
        for one in switch.forwards
        if (_NUMBERS[one.protocol], one.host_port, one.version) == (packet.protocol, packet.target_port, packet.version)
        and one.host_address in (None, packet.target)
    ]
    return min(found, key=lambda one: one.host_address is None, default=None)
