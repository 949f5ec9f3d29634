"""What routes between switches and the host's networks as nftables text: address translation, port forwards. Pure.

The inet table's rules are fixed; a switch is a handful of elements. Where br_netfilter is active, frames between ports
of one bridge come through here too (in and out by the same bridge) and are let be.
"""

from __future__ import annotations

from innkeeper.network.host_firewall import firewall_schema
from innkeeper.network.host_input import HOST_SCHEMA, PROTOCOLS, host_elements
from innkeeper.network.policy import Forward, SwitchPolicy
from innkeeper.network.ruleset import Element


def switch_elements(switch: SwitchPolicy) -> frozenset[Element]:
    """The elements that stand for ``switch`` in the inet table."""
    elements = [Element("inet", "within", (switch.bridge, switch.bridge))]
    if switch.kind != "external":  # which is the host's own network: it reaches there and back as the host says
        elements.append(Element("inet", "bridges", (switch.bridge,)))
    if switch.kind == "nat" and switch.subnet is not None:
        elements += [
            Element("inet", "nat_bridges", (switch.bridge,)),
            Element("inet", "nat_subnets", (switch.subnet,)),
        ]
    if switch.kind == "nat" and switch.subnet6 is not None:
        elements += [
            Element("inet", "nat_bridges6", (switch.bridge,)),
            Element("inet", "nat_subnets6", (switch.subnet6,)),
        ]
    return frozenset([*elements, *(_forward(forward) for forward in switch.forwards)]) | host_elements(switch)


def _forward(forward: Forward) -> Element:
    service = (PROTOCOLS[forward.protocol], str(forward.host_port))
    target = (forward.address, str(forward.guest_port))
    version = "6" if forward.version == 6 else ""
    if forward.host_address is None:
        return Element("inet", f"forwards{version}", service, target)
    return Element("inet", f"forwards{version}_at", (forward.host_address, *service), target)


def inet_schema() -> str:
    """The body of table ``inet inn_<id>``: sets, maps and rules, without elements."""
    return _SCHEMA + HOST_SCHEMA + firewall_schema()


_SCHEMA = """\
  counter drop_unasked { }
  counter drop_between { }
  set bridges { type ifname; }
  set nat_bridges { type ifname; }
  set nat_subnets { type ipv4_addr; flags interval; }
  set nat_bridges6 { type ifname; }
  set nat_subnets6 { type ipv6_addr; flags interval; }
  set within { type ifname . ifname; }
  map forwards { type inet_proto . inet_service : ipv4_addr . inet_service; }
  map forwards_at { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service; }
  map forwards6 { type inet_proto . inet_service : ipv6_addr . inet_service; }
  map forwards6_at { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service; }
  chain prerouting {
    type nat hook prerouting priority -100; policy accept;
    jump forwarded comment "from outside and from guests"
  }
  chain output {
    type nat hook output priority -100; policy accept;
    ip daddr != 127.0.0.0/8 jump forwarded comment "from the host itself"
    ip6 daddr != ::1 jump forwarded comment "from the host itself"
  }
  chain forwarded {
    fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @forwards_at comment "to one host address"
    fib daddr type local dnat ip to meta l4proto . th dport map @forwards comment "to any host address"
    fib daddr type local dnat ip6 to ip6 daddr . meta l4proto . th dport map @forwards6_at comment "to one host address"
    fib daddr type local dnat ip6 to meta l4proto . th dport map @forwards6 comment "to any host address"
  }
  chain postrouting {
    type nat hook postrouting priority 100; policy accept;
    oifname != @bridges ip saddr @nat_subnets masquerade comment "guests leave behind the host's address"
    oifname @nat_bridges ct status dnat ip saddr @nat_subnets masquerade comment "a guest uses a port forward"
    oifname != @bridges ip6 saddr @nat_subnets6 masquerade comment "guests leave behind the host's address"
    oifname @nat_bridges6 ct status dnat ip6 saddr @nat_subnets6 masquerade comment "a guest uses a port forward"
  }
  chain forward {
    type filter hook forward priority 0; policy accept;
    iifname . oifname @within accept comment "bridged, seen because of br_netfilter"
    meta nfproto ipv6 iifname @bridges iifname != @nat_bridges6 counter name drop_between drop \
comment "ipv6 is routed where the switch has a subnet of it"
    meta nfproto ipv6 oifname @bridges oifname != @nat_bridges6 counter name drop_between drop \
comment "ipv6 is routed where the switch has a subnet of it"
    oifname @nat_bridges ct status dnat accept comment "port forwards"
    iifname @bridges oifname @bridges counter name drop_between drop comment "switches do not reach each other"
    iifname @nat_bridges accept comment "guests reach the host's networks"
    oifname @nat_bridges ct state established,related accept comment "answers"
    iifname @bridges counter name drop_between drop comment "an internal switch has no way out"
    oifname @bridges counter name drop_unasked drop comment "nothing comes in unasked"
  }
"""
