"""Which tunnels and forwarding entries a virtual switch has, and what is believed of frames that come by them. Pure.

Nothing is learned and nothing is flooded: a frame leaves the host only for a mac that a lookup record names, to the one
provider address that it names. Who has an address is answered by the bridge itself, from the same records.
"""

from __future__ import annotations

import hashlib
import ipaddress
from dataclasses import dataclass

from innkeeper.network.overlay import OverlayPolicy, Record
from innkeeper.network.policy import SwitchPolicy, link_local_of
from innkeeper.network.ruleset import Element

TUNNEL_PREFIX = "inov-"
VXLAN_PORT = 4789
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True, slots=True, order=True)
class Tunnel:
    """A device that encapsulates. ``remote`` None: its entries say where each mac is (vxlan). ``key``: VNI or GRE key.

    A GRE tap leads to one provider address; a network has one for each.
    """

    device: str
    kind: str
    key: int
    local: str
    remote: str | None = None


@dataclass(frozen=True, slots=True)
class OverlayPlan:
    """What stands for a virtual switch beside its bridge and taps.

    ``forwarding``: mac -> the tunnel that it is behind; ``destinations``: mac -> provider address, of tunnels without
    a remote end of their own; ``neighbours``: customer address -> mac, which the bridge answers for.
    """

    tunnels: tuple[Tunnel, ...]
    forwarding: dict[str, str]
    destinations: dict[str, str]
    neighbours: dict[str, str]


def plan_overlay(bridge: str, overlay: OverlayPolicy) -> OverlayPlan:
    """The tunnels and entries of the switch with that bridge."""
    records = overlay.remote
    if overlay.encapsulation == "vxlan":
        tunnels = [Tunnel(_device(bridge), "vxlan", overlay.vni, overlay.provider)]
        device = {record.provider: tunnels[0].device for record in records}
    else:
        device = {record.provider: _device(bridge, record.provider) for record in records}
        # RFC 7637: the key is the virtual subnet and eight bits of flow, which stay zero.
        tunnels = [
            Tunnel(name, "gretap", overlay.vni << 8, overlay.provider, remote) for remote, name in device.items()
        ]
    return OverlayPlan(
        tunnels=tuple(sorted(tunnels)),
        forwarding={record.mac: device[record.provider] for record in records},
        destinations={record.mac: record.provider for record in records if overlay.encapsulation == "vxlan"},
        neighbours={address: record.mac for record in records for address in _addresses(record)},
    )


def tunnels_of(switch: SwitchPolicy) -> tuple[Tunnel, ...]:
    """The tunnels of a switch; none unless it is virtual."""
    return plan_overlay(switch.bridge, switch.overlay).tunnels if switch.overlay else ()


def sentences(bridge: str, overlay: OverlayPolicy | None) -> list[str]:
    """The plan as sorted readable lines, for differences shown to people."""
    if overlay is None:
        return []
    plan = plan_overlay(bridge, overlay)
    lines = [
        f"{one.kind} {one.device} key {one.key} from {one.local}" + (f" to {one.remote}" if one.remote else "")
        for one in plan.tunnels
    ]
    lines += [f"mac {mac} by {device}" for mac, device in plan.forwarding.items()]
    lines += [f"mac {mac} at {provider}" for mac, provider in plan.destinations.items()]
    lines += [f"address {address} is {mac}" for address, mac in plan.neighbours.items()]
    return sorted(lines)


def _device(bridge: str, remote: str | None = None) -> str:
    """The tunnel of a bridge; with a remote end six digits of a hash, which no switch's number has."""
    inn_id, number = bridge[5:9], bridge[9:]
    if remote is None:
        return f"{TUNNEL_PREFIX}{inn_id}{number}"
    value = int.from_bytes(hashlib.sha256(f"{bridge} {remote}".encode()).digest()[:8], "big")
    digits = ""
    for _ in range(6):
        value, digit = divmod(value, len(_DIGITS))
        digits += _DIGITS[digit]
    return f"{TUNNEL_PREFIX}{inn_id}{digits}"


def _addresses(record: Record) -> tuple[str, ...]:
    own = link_local_of(record.mac)
    return (record.customer,) if record.customer == own else (record.customer, own)


# --- what is believed ------------------------------------------------------------------------------------------------


def overlay_elements(switch: SwitchPolicy) -> frozenset[Element]:
    """The elements that stand for a virtual switch's tunnels in the bridge table."""
    overlay = switch.overlay
    if overlay is None:
        return frozenset()
    plan = plan_overlay(switch.bridge, overlay)
    keys: set[tuple[str, tuple[str, ...]]] = set()
    for tunnel in plan.tunnels:
        keys |= {("overlays", (tunnel.device,)), ("private_ports", (tunnel.device,))}
        keys |= {("overlay_macs", (tunnel.device, overlay.gateway_mac))}
        keys |= {("overlay_gateways", (tunnel.device, overlay.gateway_mac))}
    routers = {route.next_hop for route in overlay.routes}
    for record in overlay.remote:
        if record.customer in routers:
            keys |= {("overlay_gateways", (plan.forwarding[record.mac], record.mac))}
    for address, mac in plan.neighbours.items():
        key = (plan.forwarding[mac], mac, address)
        version = ipaddress.ip_address(address).version
        keys |= {("overlay_macs", key[:2]), (f"overlay_sources{version}", key)}
    return frozenset(Element("bridge", name, key) for name, key in keys)


def schema() -> str:
    """The sets and rules of the bridge table that judge frames from other hosts."""
    return _SCHEMA


_SCHEMA = """\
  counter drop_overlay { }
  set overlays { type ifname; }
  set overlay_macs { type ifname . ether_addr; }
  set overlay_gateways { type ifname . ether_addr; }
  set overlay_sources4 { type ifname . ether_addr . ipv4_addr; }
  set overlay_sources6 { type ifname . ether_addr . ipv6_addr; }
  chain overlay {
    type filter hook prerouting priority -280; policy accept;
    iifname @overlays goto from_overlay comment "frames of a virtual network from other hosts"
  }
  chain from_overlay {
    iifname . ether saddr != @overlay_macs counter name drop_overlay drop comment "no lookup record has this mac"
    arp htype 1 arp ptype 0x0800 arp hlen 6 arp plen 4 iifname . arp saddr ether . arp saddr ip @overlay_sources4 \
accept comment "its record's mac and address"
    udp dport { 68, 546 } counter name drop_overlay drop comment "every host serves its own guests' dhcp"
    icmp type { redirect, router-advertisement } counter name drop_overlay drop comment "a redirect of another host"
    icmpv6 type { 134, 137 } counter name drop_overlay drop comment "another host is not their router"
    ether type ip iifname . ether saddr . ip saddr @overlay_sources4 accept comment "its record's ipv4 address"
    ether type ip6 iifname . ether saddr . ip6 saddr @overlay_sources6 accept comment "its record's ipv6 address"
    ether type { ip, ip6 } iifname . ether saddr @overlay_gateways accept comment "what routes may send for others"
    counter name drop_overlay drop comment "no lookup record has this source"
  }
"""
