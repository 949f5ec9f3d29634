"""What access control lists hold for a port, in the order in which they decide. Pure.

Both kinds of list must let a packet pass. Of a port ACL the longest prefix of the packet's direction decides (a mac is
longer than any prefix, ``any`` shorter than any), of an extended ACL the largest weight. Between equals the port's own
lines come before those of the ACLs that it was given, in their order.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from innkeeper.model.acl import ANY, ICMP, ICMPV6, TCP, UDP, AclEntry, AclLists, AclRule, is_mac
from innkeeper.network.traffic import DIRECTIONS, Direction, Meter


class Entry(NamedTuple):
    """A line of a port ACL with the name of the ACL that it is from; "" is the port's own."""

    of: str
    line: AclEntry

    def __str__(self) -> str:
        return _named(self.of, str(self.line))


class Rule(NamedTuple):
    """The same of an extended ACL."""

    of: str
    line: AclRule

    def __str__(self) -> str:
        return _named(self.of, str(self.line))


@dataclass(frozen=True, slots=True)
class AclPolicy:
    """What allows and denies, of each direction in the order in which it decides; make it by ``policy_of``."""

    entries: tuple[Entry, ...] = ()
    rules: tuple[Rule, ...] = ()
    digest: str = field(init=False, compare=False)
    """Names what it says: equal for equal policies."""

    def __post_init__(self) -> None:
        text = "\n".join(map(str, (*self.entries, "", *self.rules)))
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest()[:12])

    def __hash__(self) -> int:
        return hash(self.digest)

    def __bool__(self) -> bool:
        return bool(self.entries or self.rules)

    def entries_of(self, direction: Direction) -> tuple[Entry, ...]:
        return tuple(entry for entry in self.entries if entry.line.direction == direction)

    def rules_of(self, direction: Direction) -> tuple[Rule, ...]:
        return tuple(rule for rule in self.rules if rule.line.direction == direction)

    def logs(self, direction: Direction) -> bool:
        """Whether a rule of that direction logs."""
        return any(rule.line.log for rule in self.rules_of(direction))

    @property
    def stateful(self) -> tuple[AclRule, ...]:
        return tuple(rule.line for rule in self.rules if rule.line.stateful)


def policy_of(lists: Iterable[tuple[str, AclLists]]) -> AclPolicy:
    """The policy of named lists, the port's own (named "") first."""
    entries: list[tuple[tuple[object, ...], Entry]] = []
    rules: list[tuple[tuple[object, ...], Rule]] = []
    for number, (name, listed) in enumerate(lists):
        for entry in listed.entries:
            if entry.action != "meter":
                order = (entry.direction, -_length(entry.address), number, entry.action == "allow", entry.line)
                entries.append((order, Entry(name, entry)))
        for rule in listed.rules:
            rules.append(((rule.direction, -rule.weight, number), Rule(name, rule)))
    return AclPolicy(
        tuple(entry for _, entry in sorted(entries, key=lambda pair: pair[0])),
        tuple(rule for _, rule in sorted(rules, key=lambda pair: pair[0])),
    )


def meters_of(lists: Iterable[tuple[str, AclLists]]) -> tuple[Meter, ...]:
    """What the lists meter; ``any`` is both IP versions."""
    found = set()
    for _, listed in lists:
        for entry in listed.entries:
            if entry.action == "meter":
                prefixes = ("0.0.0.0/0", "::/0") if entry.address == ANY else (entry.address,)
                found |= {Meter(entry.direction, prefix) for prefix in prefixes}
    return tuple(sorted(found))


def directions_of(policy: AclPolicy) -> tuple[Direction, ...]:
    """The directions in which packets have to be looked at: both where flows are kept."""
    if policy.stateful:
        return DIRECTIONS
    return tuple(one for one in DIRECTIONS if policy.entries_of(one) or policy.rules_of(one))


class FlowKind(NamedTuple):
    """Flows that are kept together. ``origin`` is who asks, for echo; ``out`` for what needs no telling apart."""

    protocol: int
    version: int
    idle_timeout_s: int
    origin: Direction


def flow_kinds(policy: AclPolicy) -> list[FlowKind]:
    """The kinds of flows that a policy's rules keep, in the order in which they are looked up."""
    found = {
        FlowKind(protocol, version, rule.idle_timeout_s, flow_origin(protocol, rule.direction))
        for rule in policy.stateful
        for protocol in flow_protocols(rule)
        for version in flow_versions(protocol)
    }
    return sorted(found)


def flow_protocols(rule: AclRule) -> list[int]:
    """The protocols whose flows a stateful rule keeps."""
    if rule.number is not None:
        return [rule.number]
    return [TCP, UDP] + [ICMP] * (4 in rule.versions) + [ICMPV6] * (6 in rule.versions)


def flow_versions(protocol: int) -> tuple[int, ...]:
    return (4,) if protocol == ICMP else (6,) if protocol == ICMPV6 else (4, 6)


def flow_origin(protocol: int, direction: Direction) -> Direction:
    return direction if protocol in (ICMP, ICMPV6) else "out"


def _length(address: str) -> int:
    if address == ANY:
        return -1
    return 1_000 if is_mac(address) else ipaddress.ip_network(address).prefixlen


def _named(of: str, line: str) -> str:
    return f"{of}: {line}" if of else line
