"""Access control lists as nftables text. Pure.

Ports with equal lists share the chains of a body, named after what the lists say; verdict maps lead a port's packets
there. So a port costs elements only, libnftables has few chains to read at each change, and a list that changes is a
new body that its ports move to in one transaction, without the flows that the old one let in.

Flows are kept without connection tracking, in dynamic sets keyed by the port's index and local and remote address and
port. A packet of a flow passes in both directions and refreshes it; a reset ends it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache

from innkeeper.model.acl import ANY, ICMP, ICMPV6, TCP, UDP, AclEntry, AclRule, is_mac, port_range
from innkeeper.network.acl import (
    AclPolicy,
    Rule,
    directions_of,
    flow_kinds,
    flow_protocols,
    flow_versions,
)
from innkeeper.network.policy import PortPolicy
from innkeeper.network.ruleset import Element
from innkeeper.network.traffic import Direction

BODY = "acl_body"
"""The container of elements that are bodies: chains and sets; shared by ports, and there as long as a port uses it."""
FLOWS = 524_288
"""Most flows of one protocol and time-out that the ports with one body keep."""
NEW_FLOWS_PER_S = 1_000
"""New flows of one port that are kept a second; a burst may be four times as many."""
MAPS: dict[Direction, str] = {"out": "acl_out", "in": "acl_in"}

LOG_PER_S, LOG_BURST = 10, 50
"""Frames of one port and direction that are logged a second, and at once."""
ALL_LOG_PER_S, ALL_LOG_BURST = 200, 400
"""The same of all ports together."""
LOG_PREFIX = "acl"
"""The first word of what is logged; then come the rule's name in its list, its action, and the list's name."""
_SNAP_BYTES = 128
_INN_GROUP = "INN"
_LOG = re.compile(rf' log prefix "[^"]*" group {_INN_GROUP} snaplen \d+')

_GUARDED, _OWN = "acl_guarded", "acl_own"
_LED = re.compile(r"goto acl_\w+_([0-9a-f]{12})$")

_NOT_DHCP = "@th,16,16 & 0xfff8 != 64"
"""Matches ports that are not those of DHCP, nor their neighbours (64 to 71): cheaper than a range."""
_FREE_UDP = f"@nh,72,8 17 {_NOT_DHCP}"

_TAP: dict[Direction, str] = {"out": "iifname", "in": "oifname"}
_INDEX: dict[Direction, str] = {"out": "iif", "in": "oif"}
_IP = {4: "ip", 6: "ip6"}
_NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6"}
_NAMED = re.compile(r"^  (chain|set) (\w+)", re.MULTILINE)

LATER_FRAGMENTS = ("ip frag-off & 0x1fff != 0", "meta protocol ip6 frag frag-off != 0")
"""Match what has no headers of its own protocol; matches of ports would read them out of its data (Linux 6.18)."""
_LATER_RETURN = "".join(f'    {match} return comment "a later fragment shows no ports"\n' for match in LATER_FRAGMENTS)

_LIMIT = f"limit rate over {NEW_FLOWS_PER_S}/second burst {4 * NEW_FLOWS_PER_S} packets"
_LOG_LIMIT = f"limit rate {LOG_PER_S}/second burst {LOG_BURST} packets"
SCHEMA = f"""\
  map acl_out {{ type ifname : verdict; }}
  map acl_in {{ type ifname : verdict; }}
  set acl_new_out {{ type ifname; {_LIMIT}; }}
  set acl_new_in {{ type ifname; {_LIMIT}; }}
  set acl_log_out {{ type ifname; {_LOG_LIMIT}; }}
  set acl_log_in {{ type ifname; {_LOG_LIMIT}; }}
  set acl_logged_out {{ type ifname; counter; }}
  set acl_logged_in {{ type ifname; counter; }}
  limit acl_log {{ rate {ALL_LOG_PER_S}/second burst {ALL_LOG_BURST} packets; }}
  chain acl_from_port {{
    type filter hook prerouting priority -260; policy accept;
    iifname vmap @acl_out comment "acls of what a vm sends"
  }}
  chain acl_to_port {{
    type filter hook forward priority -200; policy accept;
    oifname vmap @acl_in comment "acls of what comes to a vm"
  }}
  chain acl_from_host {{
    type filter hook output priority -200; policy accept;
    oifname vmap @acl_in comment "acls of what the host sends to a vm"
  }}
  chain acl_exempt_out {{
{_LATER_RETURN}    meta protocol arp accept comment "arp is for the guards"
    meta protocol ip6 icmpv6 type 133-136 ip6 hoplimit 255 accept comment "neighbour discovery is for the guards"
    ip daddr 255.255.255.255 udp sport 68 udp dport 67 accept comment "asks for an address"
    ip6 daddr ff02::1:2 udp sport 546 udp dport 547 accept comment "asks for an ipv6 address"
  }}
  chain acl_exempt_in {{
{_LATER_RETURN}    meta protocol arp accept comment "arp is for the guards"
    meta protocol ip6 icmpv6 type 133-136 ip6 hoplimit 255 accept comment "neighbour discovery is for the guards"
    meta protocol ip udp sport 67 udp dport 68 accept comment "gets an address"
    ip6 saddr fe80::/10 udp sport 547 udp dport 546 accept comment "gets an ipv6 address"
  }}
  chain acl_limit_out {{
    iifname @acl_new_out iifname @acl_flows_out counter name drop_flows drop \
comment "more new flows a second than are kept"
  }}
  chain acl_limit_in {{
    oifname @acl_new_in oifname @acl_flows_in counter name drop_flows drop \
comment "more new flows a second than are kept"
  }}
"""


def acl_elements(port: PortPolicy) -> frozenset[Element]:
    """What stands for a port's lists; nothing when it has none."""
    if not port.acl:
        return frozenset()
    found = [body(port.acl)]
    for direction in directions_of(port.acl):
        chain = f"{MAPS[direction]}_{port.acl.digest}"
        found.append(Element("bridge", MAPS[direction], (port.tap,), (f"goto {chain}",)))
        found.append(Element("bridge", f"acl_denied_{direction}", (port.tap,)))
        if port.acl.stateful:
            found += [Element("bridge", f"acl_{each}_{direction}", (port.tap,)) for each in ("new", "flows")]
        if port.acl.logs(direction):
            found += [Element("bridge", f"acl_{each}_{direction}", (port.tap,)) for each in ("log", "logged")]
    return frozenset(found)


def with_group(text: str, group: int | None) -> str:
    """A body as it is written for an inn whose log has that group; None logs nothing."""

    def written(found: re.Match[str]) -> str:
        return "" if group is None else found[0].replace(f"group {_INN_GROUP}", f"group {group}")

    return _LOG.sub(written, text)


def entrance(policy: AclPolicy) -> tuple[str, str]:
    """The verdicts for what ports with these lists send: for any frame, and for IPv4 from an own mac and address."""
    return f"goto {_GUARDED}_{policy.digest}", f"goto {_OWN}_{policy.digest}"


def body_of(element: Element) -> str | None:
    """The body that an element of the verdict maps leads to."""
    led = _LED.match(element.value[0]) if element.value else None
    return led[1] if led else None


def members(bodies: Iterable[Element], kind: str) -> list[str]:
    """The names of the chains, or sets, of bodies."""
    return [name for each in bodies for found, name in _NAMED.findall(each.value[0]) if found == kind]


@lru_cache(maxsize=8192)
def body(policy: AclPolicy) -> Element:
    """The chains and sets that all ports with these lists share, as one element."""
    writer = _Writer(policy)
    chains = "".join(
        f"  chain {name} {{\n" + "".join(f"    {rule}\n" for rule in rules) + "  }\n" for name, rules in writer.chains()
    )
    sets = "".join(f"  set {name} {{ {specification} }}\n" for name, specification in writer.sets.items())
    return Element("bridge", BODY, (policy.digest,), (sets + chains,))


class _Writer:
    """Writes one body; callees come before their callers."""

    def __init__(self, policy: AclPolicy) -> None:
        self._policy = policy
        self.sets: dict[str, str] = {}
        self._keeps: dict[str, tuple[str, ...]] = {}
        self._logs: dict[str, tuple[str, ...]] = {}

    def chains(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        mains = {one: (tuple(self._entries(one)), tuple(self._main(one))) for one in directions_of(self._policy)}
        yield from self._keeps.items()
        yield from self._logs.items()
        for direction, (entries, main) in mains.items():
            if entries:
                yield self._at(f"acl_entries_{direction}"), entries
            if later := tuple(self._later(direction)):
                yield self._at(f"acl_later_{direction}"), later
            yield self._at(MAPS[direction]), main
        if "out" in mains:
            lists = f"goto {self._at(MAPS['out'])}"
            guarded = (_rule("jump from_port", "guards come before lists"), _rule(lists, "then come the lists"))
            yield self._at(_GUARDED), guarded
            yield self._at(_OWN), tuple(self._own(lists))

    def _own(self, lists: str) -> Iterator[str]:
        """IPv4 from the port's own mac and address: what no guard looks into goes on to the lists at once."""
        if not self._policy.entries_of("out"):
            yield from self._seen_first("out", known_ipv4=True)
        yield _rule(f"{_FREE_UDP} {lists}", "no guard looks into this udp")
        yield _rule("meta l4proto != tcp jump from_ipv4", "nor into tcp, but into what else there is")
        yield _rule(lists, "then come the lists")

    def _at(self, part: str) -> str:
        return f"{part}_{self._policy.digest}"

    def _main(self, direction: Direction) -> Iterator[str]:
        if self._policy.entries_of(direction):
            yield _rule(f"jump {self._at(f'acl_entries_{direction}')}", "port acl")
        yield from self._seen_first(direction)
        on = f"goto {self._at(f'acl_later_{direction}')}" if any(self._later(direction)) else "return"
        for match in LATER_FRAGMENTS:
            yield _rule(f"{match} {on}", "a later fragment shows no ports and is of no flow")
        yield from self._seen(direction)
        if rules := self._policy.rules_of(direction):
            yield _rule(f"jump acl_exempt_{direction}", "what acls leave to the guards")
            for rule in rules:
                yield from self._extended(direction, rule)

    def _entries(self, direction: Direction) -> Iterator[str]:
        exempt = False
        for entry in self._policy.entries_of(direction):
            if not exempt and not is_mac(entry.line.address):
                exempt = True
                yield _rule(f"jump acl_exempt_{direction}", "what acls leave to the guards")
            verdict = "return" if entry.line.action == "allow" else _deny(direction)
            for match in _entry_matches(entry.line):
                yield _rule(f"{match} {verdict}", str(entry))

    def _later(self, direction: Direction) -> Iterator[str]:
        """What rules say of later fragments: those that name no ports."""
        for rule in self._policy.rules_of(direction):
            if rule.line.local_ports is None and rule.line.remote_ports is None:
                yield from self._logged(direction, rule)
                verdict = "accept" if rule.line.action == "allow" else _deny(direction)
                for match in _rule_matches(rule.line):
                    yield _rule(f"{match} {verdict}", str(rule))

    def _extended(self, direction: Direction, rule: Rule) -> Iterator[str]:
        verdict = "accept" if rule.line.action == "allow" else _deny(direction)
        kept = flow_protocols(rule.line) if rule.line.stateful else []
        yield from self._logged(direction, rule)
        for match in _rule_matches(rule.line):
            for protocol in kept:
                of = "" if rule.line.number else f" meta l4proto {protocol}"
                keep = self._keep(direction, rule.line.idle_timeout_s, protocol)
                yield _rule(f"{match}{of} goto {keep}", str(rule))
            if not kept or not rule.line.number:
                yield _rule(f"{match} {verdict}", str(rule))

    def _logged(self, direction: Direction, rule: Rule) -> Iterator[str]:
        """What reports packets of a rule that logs, before it decides about them."""
        if not rule.line.log:
            return
        name = self._at(f"acl_log_{direction}_{self._policy.rules_of(direction).index(rule)}")
        tap, said = _TAP[direction], f"{LOG_PREFIX} {rule.line.line} {rule.line.action} {rule.of}".rstrip()
        self._logs[name] = (
            _rule(f"{tap} @acl_logged_{direction}", "counts what rules that log decide"),
            _rule(
                f"{tap} @acl_log_{direction} limit name acl_log "
                f'log prefix "{said}" group {_INN_GROUP} snaplen {_SNAP_BYTES}',
                f"logs {rule.line.line}, so many a second",
            ),
        )
        for match in _rule_matches(rule.line):
            yield _rule(f"{match} jump {name}", "logs what the next rule decides")

    # --- flows ---

    def _flow_set(self, protocol: int, version: int, idle_s: int, origin: Direction) -> str:
        """The set of flows; echo has one for each direction that asks."""
        echo = protocol in (ICMP, ICMPV6)
        name = self._at(f"acl_flows_{_NAMES[protocol]}{version}_{idle_s}" + (f"_{origin}" if echo else ""))
        gc_s = min(10, max(1, idle_s // 4))
        self.sets[name] = (
            f"typeof {_key(protocol, version, 'out')}; size {FLOWS}; flags dynamic,timeout; "
            f"timeout {idle_s}s; gc-interval {gc_s}s;"
        )
        return name

    def _keep(self, direction: Direction, idle_s: int, protocol: int) -> str:
        """The chain of packets that a stateful rule allows and that belong to no flow yet."""
        name = self._at(f"acl_keep_{direction}_{_NAMES[protocol]}_{idle_s}")
        self._keeps[name] = tuple(self._keep_rules(direction, idle_s, protocol))
        return name

    def _keep_rules(self, direction: Direction, idle_s: int, protocol: int) -> Iterator[str]:
        begins = _begins(protocol)
        if protocol == TCP:
            yield _rule("tcp flags & rst == rst accept", "a reset begins no flow")
        yield _rule(f"{begins} jump acl_limit_{direction}", "new flows a second")
        for version in flow_versions(protocol):
            held = self._flow_set(protocol, version, idle_s, direction)
            key = _key(protocol, version, direction)
            asks = f"{begins} " if protocol in (ICMP, ICMPV6) else "meta protocol ip " if version == 4 else ""
            yield _rule(f"{asks}add @{held} {{ {key} }} accept", "a new flow")
        yield _rule(f"{begins} {_deny(direction)}", "no room for one more flow")
        yield _rule("accept", "allowed, and nothing to keep")

    def _seen_first(self, direction: Direction, known_ipv4: bool = False) -> Iterator[str]:
        """What lets packets of flows of most traffic pass, before they are asked anything else.

        The word that is looked at holds the place of a fragment and the protocol: later fragments do not match. Where
        it is known already that this is IPv4, guards have not looked yet whether it is DHCP.
        """
        for protocol, version, idle_s, origin in flow_kinds(self._policy):
            if not _is_raw(protocol, version):
                continue
            held, key = self._flow_set(protocol, version, idle_s, origin), _key(protocol, version, direction)
            match = f"@nh,48,32 & 0x1fff00ff == {protocol}"
            if not known_ipv4:
                match = f"meta protocol ip {match}"
            elif protocol == UDP:
                match = f"{match} {_NOT_DHCP}"
            going = f"{match} @th,104,8 & 4 == 0" if protocol == TCP else match
            yield _rule(f"{going} {key} @{held} update @{held} {{ {key} }} accept", "of a flow")
            if protocol == TCP:
                yield _rule(f"{match} {key} @{held} delete @{held} {{ {key} }} accept", "a reset ends its flow")

    def _seen(self, direction: Direction) -> Iterator[str]:
        """What lets packets of other flows pass."""
        for protocol, version, idle_s, origin in flow_kinds(self._policy):
            if _is_raw(protocol, version):
                continue
            held, key = self._flow_set(protocol, version, idle_s, origin), _key(protocol, version, direction)
            if protocol == TCP:
                ends = f"tcp flags & rst == rst {key} @{held} delete @{held} {{ {key} }} accept"
                yield _rule(ends, "a reset ends its flow")
            asks = ""
            if protocol in (ICMP, ICMPV6):
                asks = f"{_icmp_type(protocol, 'echo-request' if origin == direction else 'echo-reply')} "
            yield _rule(f"{asks}{key} @{held} update @{held} {{ {key} }} accept", "of a flow")


def _is_raw(protocol: int, version: int) -> bool:
    """Whether the key of such flows is of raw fields, which need no look at what the packet is."""
    return version == 4 and protocol in (TCP, UDP)


def _begins(protocol: int) -> str:
    """Matches packets of that protocol that can begin a flow: their ports can be read."""
    if protocol in (ICMP, ICMPV6):
        return _icmp_type(protocol, "echo-request")
    return f"{_NAMES[protocol]} dport 0-65535"


def _icmp_type(protocol: int, name: str) -> str:
    """Matches ICMP or ICMPv6 of that type; alone they would not match behind a trunk's tag."""
    return f"meta protocol {'ip' if protocol == ICMP else 'ip6'} {_NAMES[protocol]} type {name}"


def _key(protocol: int, version: int, direction: Direction) -> str:
    """Port's index, local and remote address, and ports or echo id, of a packet in that direction."""
    ip, name, index = _IP[version], _NAMES[protocol], _INDEX[direction]
    addresses = f"{ip} saddr . {ip} daddr" if direction == "out" else f"{ip} daddr . {ip} saddr"
    if protocol in (ICMP, ICMPV6):
        return f"{index} . {addresses} . {name} id"
    source, target = ("@th,0,16", "@th,16,16") if _is_raw(protocol, version) else (f"{name} sport", f"{name} dport")
    ports = f"{source} . {target}" if direction == "out" else f"{target} . {source}"
    return f"{index} . {addresses} . {ports}"


def _entry_matches(entry: AclEntry) -> list[str]:
    field = "saddr" if (entry.direction == "out") == (entry.side == "local") else "daddr"
    if entry.address == ANY:
        return ["meta protocol ip", "meta protocol ip6"]
    if is_mac(entry.address):
        return [f"ether {field} {entry.address}"]
    return [_address(field, entry.address)]


def _rule_matches(rule: AclRule) -> list[str]:
    local, remote = ("s", "d") if rule.direction == "out" else ("d", "s")
    words = []
    for side, address in ((local, rule.local), (remote, rule.remote)):
        if address != ANY:
            words.append(_address(f"{side}addr", address))
    if rule.number is not None:
        words.append(f"meta l4proto {rule.number}")
    for side, ports in ((local, rule.local_ports), (remote, rule.remote_ports)):
        if ports is not None:
            low, high = port_range(ports)
            words.append(f"th {side}port {low}" + (f"-{high}" if high != low else ""))
    if rule.local != ANY or rule.remote != ANY:
        return [" ".join(words)]
    return [" ".join([f"meta protocol {_IP[version]}", *words]) for version in rule.versions]


def _address(field: str, prefix: str) -> str:
    network = ipaddress.ip_network(prefix)
    if network.prefixlen == 0:
        return f"meta protocol {_IP[network.version]}"
    if network.prefixlen == network.max_prefixlen:
        return f"{_IP[network.version]} {field} {network.network_address}"
    return f"{_IP[network.version]} {field} {network}"


def _deny(direction: Direction) -> str:
    return f"{_TAP[direction]} @acl_denied_{direction} counter name drop_acl drop"


def _rule(text: str, comment: str) -> str:
    """A rule with its reason and a mark of what it says, by which it is known when rules are read back."""
    mark = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f'{text} comment "{comment[:110]} #{mark}"'
