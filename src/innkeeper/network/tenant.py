"""The gateway of a tenant on one host: a network namespace that routes between its subnets, and out if it may. Pure.

Tenants have the same addresses, so none of them can be the host's: each routing domain has a namespace of its own, with
the first address of each of its subnets, its customer routes, and DHCP and DNS. Every host has the same gateways.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from innkeeper.network.overlay import CustomerRoute, OverlayPolicy
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.ruleset import Element

NAMESPACE_PREFIX = "intn-"
GATEWAY_PREFIX = "ingw-"
"""The end of a gateway's wire that is in its switch's bridge."""
UPLINK_PREFIX = "intu-"
"""The host's end of the wire by which a tenant's packets leave it."""
UPLINK = "uplink"
"""The tenant's end of that wire."""
UPLINK_METRIC = 1_000_000
"""Customer routes win over the way out, also one for everything."""
UPLINKS = ipaddress.IPv4Network("169.254.64.0/18")
"""Addresses of those wires, four for each: seen by nobody but the two ends."""
LAST_DOMAIN = UPLINKS.num_addresses // 4 - 1
TABLE = "inn_tenant"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A subnet's gateway: ``device`` in bridge ``bridge``, ``inner`` with ``address``/``length`` in the namespace."""

    bridge: str
    device: str
    inner: str
    mac: str
    address: str
    length: int
    mtu: int
    routes: tuple[CustomerRoute, ...]


@dataclass(frozen=True, slots=True)
class Uplink:
    """The wire between a tenant and the host, with both ends' addresses of a /30."""

    device: str
    host: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Tenant:
    """A routing domain on this host. ``ways``: inner devices of the subnets that may go out by ``uplink``."""

    namespace: str
    gateways: tuple[Gateway, ...]
    ways: tuple[str, ...]
    uplink: Uplink | None


def plan_tenant(switches: Iterable[SwitchPolicy]) -> Tenant:
    """The tenant that has these virtual switches, one at least."""
    members = sorted(switches, key=lambda switch: switch.bridge)
    overlays = [switch.overlay for switch in members if switch.overlay is not None]
    first = members[0]
    ways = tuple(inner_device(one) for one in members if one.overlay is not None and one.overlay.gateway)
    return Tenant(
        namespace=namespace_of(first.bridge, overlays[0]),
        gateways=tuple(gateway_of(switch) for switch in members),
        ways=ways,
        uplink=uplink_of(first.bridge, overlays[0]) if ways else None,
    )


def gateway_of(switch: SwitchPolicy) -> Gateway:
    """The gateway of a virtual switch."""
    overlay, network, address = switch.overlay, switch.network, switch.gateway
    assert overlay is not None and network is not None and address is not None
    return Gateway(
        bridge=switch.bridge,
        device=GATEWAY_PREFIX + switch.bridge[5:],
        inner=inner_device(switch),
        mac=overlay.gateway_mac,
        address=address,
        length=network.prefixlen,
        mtu=switch.mtu,
        routes=overlay.routes,
    )


def inner_device(switch: SwitchPolicy) -> str:
    """A gateway's device in its namespace."""
    return f"gw-{switch.bridge[9:]}"


def namespace_of(bridge: str, overlay: OverlayPolicy) -> str:
    return f"{NAMESPACE_PREFIX}{bridge[5:9]}{overlay.domain}"


def uplink_of(bridge: str, overlay: OverlayPolicy) -> Uplink:
    """The wire of a routing domain; its addresses begin at another place for each inn."""
    inn_id = bridge[5:9]
    places = UPLINKS.num_addresses // 4
    start = int.from_bytes(hashlib.sha256(inn_id.encode()).digest()[:4], "big")
    base = UPLINKS.network_address + 4 * ((start + overlay.domain) % places)
    return Uplink(f"{UPLINK_PREFIX}{inn_id}{overlay.domain}", str(base + 1), str(base + 2))


def tenant_elements(switch: SwitchPolicy) -> frozenset[Element]:
    """What the host's rules must know: the gateway's end of a bridge is no way to the host, the uplink is one out."""
    overlay = switch.overlay
    if overlay is None:
        return frozenset()
    elements = {Element("bridge", "private_ports", (gateway_of(switch).device,))}
    if overlay.gateway:
        uplink = uplink_of(switch.bridge, overlay)
        subnet = ipaddress.IPv4Interface(f"{uplink.host}/30").network
        elements |= {
            Element("inet", "bridges", (uplink.device,)),
            Element("inet", "nat_bridges", (uplink.device,)),
            Element("inet", "nat_subnets", (str(subnet),)),
        }
    return frozenset(elements)


def sentences(switch: SwitchPolicy) -> list[str]:
    """A switch's part of it as readable lines, for differences shown to people."""
    if switch.overlay is None:
        return []
    gateway = gateway_of(switch)
    lines = [f"gateway {gateway.address}/{gateway.length} in namespace {namespace_of(switch.bridge, switch.overlay)}"]
    lines += [f"route {route.prefix} by {route.next_hop} metric {route.metric}" for route in gateway.routes]
    return lines + (["a way out behind the host's address"] if switch.overlay.gateway else [])


def ruleset(tenant: Tenant) -> str:
    """The namespace's rules: nothing comes in unasked, and only what may goes out."""
    ways = f"elements = {{ {', '.join(tenant.ways)} }}" if tenant.ways else ""
    body = _RULES.replace("WAYS", ways).replace("UPLINK", UPLINK)
    mark = hashlib.sha256(body.encode()).hexdigest()[:12]
    return f"table inet {TABLE} {{\n{body}  chain schema_{mark} {{ }}\n}}\n"


_RULES = """\
  set ways { type ifname; WAYS }
  chain forward {
    type filter hook forward priority 0; policy drop;
    ct state established,related accept comment "answers"
    iifname @ways oifname "UPLINK" accept comment "subnets with a way out"
    iifname != "UPLINK" oifname != "UPLINK" accept comment "between the tenant's subnets"
  }
  chain input {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept comment "itself"
    ct state established,related accept comment "answers to its own questions"
    iifname != "UPLINK" udp dport { 53, 67 } accept comment "dns and dhcp"
    iifname != "UPLINK" tcp dport 53 accept comment "dns"
    iifname != "UPLINK" icmp type echo-request accept comment "is the gateway there"
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    oifname "UPLINK" masquerade comment "the host knows the uplink only"
  }
"""
