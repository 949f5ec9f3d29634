"""What guests may ask of the host itself, as nftables text: DHCP and DNS, and what their switch names. Pure.

These rules stand in the inet table's input, where every frame comes that the host takes for itself, whatever address of
the host it was sent to.
"""

from __future__ import annotations

from innkeeper.model.host_firewall import read_service
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.ruleset import Element
from innkeeper.network.sources import service_rows, source_elements

PROTOCOLS = {"tcp": "6", "udp": "17"}


def host_elements(switch: SwitchPolicy) -> frozenset[Element]:
    """The elements that stand for ``switch`` in these rules; where the host is no part of it, none."""
    if switch.host_address is None:
        return frozenset()
    services = [((switch.bridge,), read_service(service)) for service in switch.host_services]
    to_all = [each for each in services if each[1].source.prefix is None]
    to_some = [each for each in services if each[1].source.prefix is not None]
    six = [Element("inet", "gateways6", (switch.bridge, switch.gateway6))] if switch.gateway6 is not None else []
    return frozenset(
        [
            *six,
            Element("inet", "gateways", (switch.bridge, switch.host_address)),
            Element("inet", "gateway_addresses", (switch.host_address,)),
            *(Element("inet", "host_services", fields) for fields, _ in service_rows(to_all)),
        ]
    ) | source_elements("host_services", service_rows(to_some))


DROPPED_OF_GUESTS = "drop_host"
"""The counter of what was dropped."""

HOST_SCHEMA = """\
  counter drop_host { }
  set gateways { type ifname . ipv4_addr; }
  set gateways6 { type ifname . ipv6_addr; }
  set gateway_addresses { type ipv4_addr; }
  set host_services { type ifname . inet_proto . inet_service; flags interval; }
  set host_services4 { type ifname . inet_proto . inet_service . ipv4_addr; flags interval; }
  set host_services6 { type ifname . inet_proto . inet_service . ipv6_addr; flags interval; }
  chain input {
    type filter hook input priority -10; policy accept;
    iifname @bridges jump from_guests comment "guests speak to the host"
    iifname != "lo" ip daddr @gateway_addresses meta l4proto . th dport { 6 . 53, 17 . 53, 17 . 67 } \\
      counter name drop_host drop comment "a switch's DHCP and DNS are for its guests"
  }
  chain from_guests {
    ct state established,related accept comment "answers"
    meta l4proto . th dport { 17 . 67, 17 . 547 } fib daddr type { broadcast, multicast } accept comment "DHCP"
    iifname . ip daddr @gateways meta l4proto . th dport { 6 . 53, 17 . 53, 17 . 67 } accept comment "DNS and DHCP"
    iifname . ip daddr @gateways icmp type echo-request accept comment "is the gateway there?"
    iifname . ip6 daddr @gateways6 meta l4proto . th dport { 6 . 53, 17 . 53, 17 . 547 } accept comment "so in IPv6"
    iifname . ip6 daddr @gateways6 icmpv6 type 128 accept comment "is the IPv6 gateway there?"
    ip6 daddr fe80::/10 meta l4proto . th dport { 6 . 53, 17 . 53, 17 . 547 } accept comment "at its link-local address"
    ip6 daddr fe80::/10 icmpv6 type 128 accept comment "is it there at all?"
    icmpv6 type { 130, 131, 132, 133, 135, 136, 143 } accept comment "neighbours, routers and groups are found"
    iifname . meta l4proto . th dport @host_services accept comment "what the switch names"
    iifname . meta l4proto . th dport . ip saddr @host_services4 accept comment "what it names for some guests"
    iifname . meta l4proto . th dport . ip6 saddr @host_services6 accept comment "likewise in IPv6"
    counter name drop_host drop comment "the host's services are not for guests"
  }
"""
