"""The host's firewall as nftables text: what reaches the host from outside its switches. Pure.

Two generations of the same sets and rules: ``standing`` is what holds, ``trial`` is what holds instead while it waits
to be confirmed. The kernel itself ends a trial: it is judged by only while the set ``armed`` has elements, which are
given a time to live (``firewall_trial``), so that nobody needs to be alive to take it back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from innkeeper.model.host_firewall import HostFirewall, Source, read_service, read_source
from innkeeper.network.overlay_plan import VXLAN_PORT
from innkeeper.network.ruleset import Element
from innkeeper.network.sources import Row, service_rows, source_elements

Generation = Literal["standing", "trial"]
DROPPED = "drop_outside"
"""The counter of what was dropped."""
ARMED = "armed"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a firewall is compiled with.

    ``devices``: the interfaces where packets come in that a place stands for, such as a card that is the port of an
    external switch; a place that is not among them stands for itself. ``peers``: hosts that virtual switches have
    tunnels to.
    """

    devices: Mapping[str, tuple[str, ...]]
    peers: frozenset[str] = frozenset()

    def of(self, source: Source) -> tuple[str | None, ...]:
        """The interfaces that a source may come in at; None: any."""
        return (None,) if source.on is None else self.devices.get(source.on, (source.on,))


def firewall_elements(generation: Generation, wish: HostFirewall, around: Surroundings) -> frozenset[Element]:
    """The elements that stand for ``wish`` in one generation; none where it is not enabled."""
    if not wish.enabled:
        return frozenset()
    both = ("ipv4", "ipv6")
    found = {Element("inet", f"{generation}_closed", (version,)) for version in both}
    found |= {Element("inet", f"{generation}_echo", (version,)) for version in both if wish.echo}
    found |= {Element("inet", "tunnel_peers", (peer,)) for peer in around.peers}
    everything: list[tuple[str | None, Row]] = []
    for source in map(read_source, wish.management):
        everything += [(device, ((), source.prefix)) for device in around.of(source)]
    services = [(around.of(service.source), service) for service in map(read_service, wish.allow)]
    anywhere = service_rows(((), service) for devices, service in services if devices == (None,))
    at_one = service_rows(
        ((device,), service) for devices, service in services for device in devices if device is not None
    )
    allowed = source_elements(f"{generation}_allow", anywhere) | source_elements(f"{generation}_allow_on", at_one)
    return frozenset(found) | _placed(f"{generation}_management", everything) | allowed


def _placed(container: str, rows: Iterable[tuple[str | None, Row]]) -> frozenset[Element]:
    """Elements for sources from anywhere, and for those that come in at an interface."""
    anywhere, at_one = [], []
    for device, (fields, prefix) in rows:
        if device is None:
            anywhere.append((fields, prefix))
        else:
            at_one.append(((device, *fields), prefix))
    return source_elements(container, anywhere) | source_elements(f"{container}_on", at_one)


def begins_with_a_name(container: str) -> bool:
    """Whether an element's first field is an interface of the host's own, whose name may be a word of nftables."""
    return "_on" in container and container.startswith(("standing_", "trial_"))


def contradictions(wish: HostFirewall, masters: Mapping[str, str | None]) -> list[str]:
    """What an administrator will not have meant, in sentences.

    ``masters``: of the interfaces that are there now the bridge or team that each is a part of, if any.
    """
    if not wish.enabled:
        return []
    found = []
    if not wish.management and not wish.allow:
        found.append("nothing of the host is reached from outside: it has no management network and allows no service")
    for place in wish.places:
        if place not in masters:
            found.append(f"there is no interface or external switch {place} now, so nothing comes in there")
        elif (master := masters[place]) is not None:
            found.append(f"{place} is a part of {master}, so nothing comes in at {place} but all at {master}")
    return found


def firewall_schema() -> str:
    """The part of table ``inet inn_<id>`` that is the host's firewall."""
    return _SCHEMA + _generation("standing") + _generation("trial")


_SCHEMA = f"""\
  counter {DROPPED} {{ }}
  set {ARMED} {{ type nf_proto; flags timeout; }}
  set tunnel_peers {{ type ipv4_addr; }}
  chain host_firewall {{
    type filter hook input priority -9; policy accept;
    iifname "lo" accept comment "the host itself"
    iifname @bridges accept comment "guests have been judged"
    ct state established,related accept comment "answers"
    icmp type {{ 3, 11, 12 }} accept comment "what went wrong on the way, and how large packets may be"
    icmpv6 type {{ 1-4, 130-137, 141-143, 148-149, 151-153 }} accept comment "likewise; neighbours, routers, groups"
    ip protocol 2 accept comment "groups are found"
    udp sport 67 udp dport 68 accept comment "answers to the host's DHCP clients"
    ip6 saddr fe80::/10 udp dport 546 accept comment "likewise in IPv6"
    ip saddr @tunnel_peers udp dport {VXLAN_PORT} accept comment "tunnels of virtual switches"
    ip saddr @tunnel_peers meta l4proto 47 accept comment "likewise by GRE"
    meta nfproto @trial_closed meta nfproto @{ARMED} goto trial comment "what waits to be confirmed"
    goto standing comment "what holds"
  }}
"""


def _generation(name: Generation) -> str:
    return f"""\
  set {name}_closed {{ type nf_proto; }}
  set {name}_echo {{ type nf_proto; }}
  set {name}_management4 {{ type ipv4_addr; flags interval; }}
  set {name}_management6 {{ type ipv6_addr; flags interval; }}
  set {name}_management_on4 {{ type ifname . ipv4_addr; flags interval; }}
  set {name}_management_on6 {{ type ifname . ipv6_addr; flags interval; }}
  set {name}_allow4 {{ type inet_proto . inet_service . ipv4_addr; flags interval; }}
  set {name}_allow6 {{ type inet_proto . inet_service . ipv6_addr; flags interval; }}
  set {name}_allow_on4 {{ type ifname . inet_proto . inet_service . ipv4_addr; flags interval; }}
  set {name}_allow_on6 {{ type ifname . inet_proto . inet_service . ipv6_addr; flags interval; }}
  chain {name} {{
    iifname . ip saddr @{name}_management_on4 accept comment "a management network, by where it comes in"
    iifname . ip6 saddr @{name}_management_on6 accept comment "likewise in IPv6"
    ip saddr @{name}_management4 accept comment "a management network, by its addresses"
    ip6 saddr @{name}_management6 accept comment "likewise in IPv6"
    meta l4proto . th dport . ip saddr @{name}_allow4 accept comment "a service that is allowed"
    meta l4proto . th dport . ip6 saddr @{name}_allow6 accept comment "likewise in IPv6"
    iifname . meta l4proto . th dport . ip saddr @{name}_allow_on4 accept comment "one that is allowed there"
    iifname . meta l4proto . th dport . ip6 saddr @{name}_allow_on6 accept comment "likewise in IPv6"
    icmp type echo-request meta nfproto @{name}_echo accept comment "is the host there?"
    icmpv6 type echo-request meta nfproto @{name}_echo accept comment "likewise in IPv6"
    meta nfproto @{name}_closed counter name {DROPPED} drop comment "nothing else of the host is for the outside"
  }}
"""
