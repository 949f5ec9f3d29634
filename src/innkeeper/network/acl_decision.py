"""What access control lists decide about a packet, and by which line: what ``acl_rules`` makes nftables do. Pure.

Bounds of the kernel are left out: how many flows there may be, and how many may begin in a second.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from innkeeper.model.acl import ANY, ICMP, ICMPV6, TCP, UDP, AclEntry, AclRule, is_mac, port_range
from innkeeper.network.acl import AclPolicy, FlowKind, Rule, flow_kinds, flow_origin, flow_protocols
from innkeeper.network.traffic import Direction

Stage = Literal["none", "exempt", "port acl", "flow", "extended acl"]

REQUEST = {ICMP: 8, ICMPV6: 128}
REPLY = {ICMP: 0, ICMPV6: 129}
_DISCOVERY = range(133, 137)


@dataclass(frozen=True, slots=True)
class Packet:
    """An IP packet as it crosses a port. A later ``fragment`` shows no ports, flags, or ICMP type to anybody.

    ``icmp_type`` and ``echo_id`` are of ICMP and ICMPv6; ``reset`` is TCP's flag.
    """

    source: str
    target: str
    protocol: int
    source_port: int | None = None
    target_port: int | None = None
    icmp_type: int | None = None
    echo_id: int | None = None
    reset: bool = False
    fragment: bool = False
    source_mac: str = ""
    target_mac: str = ""
    hop_limit: int = 64

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.source).version


FlowKey = tuple[FlowKind, str, str, int, int]
"""Kind, local and remote address, local and remote port (of echo: its id, 0)."""
Flows = Mapping[FlowKey, float]
"""Flow -> when it ends, in seconds, unless a packet of it passes before."""


@dataclass(frozen=True, slots=True)
class Decision:
    """``line`` is what decided, as people read it; ``stage`` where it stands. ``flows`` are those kept afterwards.

    ``logged``: the rule that decided says so in the journal.
    """

    allowed: bool
    stage: Stage
    line: str
    flows: Flows = field(default_factory=dict)
    logged: bool = False


def decide(
    policy: AclPolicy, direction: Direction, packet: Packet, flows: Flows | None = None, now_s: float = 0.0
) -> Decision:
    """What becomes of ``packet`` at a port with these lists; ``flows`` are those that the port keeps."""
    kept = {key: end for key, end in (flows or {}).items() if end > now_s}
    line = ""
    for entry in policy.entries_of(direction):
        if not is_mac(entry.line.address) and _exempt(direction, packet):
            return Decision(True, "exempt", "discovery and DHCP are for the guards", kept)
        if _entry_matches(entry.line, packet):
            if entry.line.action == "deny":
                return Decision(False, "port acl", str(entry), kept)
            line = str(entry)
            break
    for kind in flow_kinds(policy):
        key = _key(kind, direction, packet)
        if key is not None and key in kept:
            if packet.reset and packet.protocol == TCP:
                del kept[key]
            else:
                kept[key] = now_s + kind.idle_timeout_s
            return Decision(True, "flow", f"of a flow kept for {kind.idle_timeout_s} s", kept)
    rules = policy.rules_of(direction)
    if rules and _exempt(direction, packet):
        return Decision(True, "exempt", "discovery and DHCP are for the guards", kept)
    for rule in rules:
        if _rule_matches(rule.line, packet):
            if rule.line.stateful:
                _keep(rule, direction, packet, kept, now_s)
            return Decision(rule.line.action == "allow", "extended acl", str(rule), kept, rule.line.log)
    if line:
        return Decision(True, "port acl", line, kept)
    return Decision(True, "none", "no line matches, so it passes", kept)


def _exempt(direction: Direction, packet: Packet) -> bool:
    if packet.fragment:
        return False
    if packet.protocol == ICMPV6 and packet.version == 6:
        return packet.icmp_type in _DISCOVERY and packet.hop_limit == 255
    if packet.protocol != UDP:
        return False
    ports, six = (packet.source_port, packet.target_port), packet.version == 6
    if direction == "out":
        client, group = ((546, 547), "ff02::1:2") if six else ((68, 67), "255.255.255.255")
        return ports == client and packet.target == group
    if six:
        return ports == (547, 546) and ipaddress.ip_address(packet.source) in ipaddress.ip_network("fe80::/10")
    return ports == (67, 68)


def _entry_matches(entry: AclEntry, packet: Packet) -> bool:
    of_source = (entry.direction == "out") == (entry.side == "local")
    if is_mac(entry.address):
        return entry.address == (packet.source_mac if of_source else packet.target_mac)
    return _within(packet.source if of_source else packet.target, entry.address)


def _rule_matches(rule: AclRule, packet: Packet) -> bool:
    ends = [(packet.source, packet.source_port), (packet.target, packet.target_port)]
    local, remote = ends if rule.direction == "out" else reversed(ends)
    if packet.version not in rule.versions or rule.number not in (None, packet.protocol):
        return False
    sides = ((local, rule.local, rule.local_ports), (remote, rule.remote, rule.remote_ports))
    for (address, port), prefix, ports in sides:
        if not _within(address, prefix):
            return False
        if ports is not None:
            low, high = port_range(ports)
            if packet.fragment or port is None or not low <= port <= high:
                return False
    return True


def _within(address: str, prefix: str) -> bool:
    return prefix == ANY or ipaddress.ip_address(address) in ipaddress.ip_network(prefix)


def _key(kind: FlowKind, direction: Direction, packet: Packet) -> FlowKey | None:
    """The flow of that kind that the packet would belong to; None when it cannot be of one."""
    if packet.fragment or (packet.protocol, packet.version) != (kind.protocol, kind.version):
        return None
    local, remote = (packet.source, packet.target) if direction == "out" else (packet.target, packet.source)
    if kind.protocol in REQUEST:
        wanted = (REQUEST if kind.origin == direction else REPLY)[kind.protocol]
        return None if packet.icmp_type != wanted else (kind, local, remote, packet.echo_id or 0, 0)
    if packet.source_port is None or packet.target_port is None:
        return None
    ports = (packet.source_port, packet.target_port)
    at_local, at_remote = ports if direction == "out" else reversed(ports)
    return kind, local, remote, at_local, at_remote


def _keep(rule: Rule, direction: Direction, packet: Packet, kept: dict[FlowKey, float], now_s: float) -> None:
    if packet.protocol not in flow_protocols(rule.line) or (packet.reset and packet.protocol == TCP):
        return
    idle_s = rule.line.idle_timeout_s
    kind = FlowKind(packet.protocol, packet.version, idle_s, flow_origin(packet.protocol, direction))
    key = _key(kind, direction, packet)
    if key is not None:
        kept[key] = now_s + idle_s
