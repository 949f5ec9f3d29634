"""Access control lists of cards, after Hyper-V's. Frozen values, checked here.

Directions are the vm's: ``in`` is towards it, ``out`` is from it. ``local`` is the vm's side of a packet, ``remote``
the other one, whatever the direction. An ``AclEntry`` is a line of a port ACL, an ``AclRule`` one of an extended ACL;
both must let a packet pass, and what nothing in them matches passes.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import Annotated, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Direction = Literal["in", "out"]
Side = Literal["local", "remote"]

ANY = "any"
TCP, UDP, ICMP, ICMPV6, SCTP = 6, 17, 1, 58, 132
PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "icmpv6": ICMPV6, "sctp": SCTP}
WITH_PORTS = (TCP, UDP, SCTP)
KEPT = (TCP, UDP, ICMP, ICMPV6)
"""Protocols whose flows a stateful rule keeps; of ICMP, echo."""
IDLE_TIMEOUT_S = 255
MAX_IDLE_TIMEOUT_S = 86_400
MAX_WEIGHT = 65_535
MAX_LINES = 256
"""Most entries, and most rules, of one list."""
MAX_SETS = 16
"""Most named ACLs of a card."""

_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")


def is_mac(address: str) -> bool:
    return _MAC.match(address) is not None


def _prefix(text: str) -> str:
    wanted = text.strip().lower()
    if wanted == ANY:
        return ANY
    try:
        return str(ipaddress.ip_network(wanted))
    except ValueError as wrong:
        raise ValueError(f"{text!r} is no address ({wrong}); write any, 10.0.0.0/8 or 2001:db8::/32") from wrong


def _address(text: str) -> str:
    wanted = text.strip().lower().replace("-", ":")
    return wanted if is_mac(wanted) else _prefix(text)


def _ports(text: str) -> str:
    first, dash, last = text.strip().partition("-")
    if first.isascii() and first.isdigit() and (not dash or (last.isascii() and last.isdigit())):
        low, high = int(first), int(last) if dash else int(first)
        if 0 <= low <= high <= 65_535:
            return str(low) if low == high else f"{low}-{high}"
    raise ValueError(f"{text!r} is no range of ports; write 443 or 8000-8080, the smaller one first")


def _protocol(text: str) -> str:
    wanted = text.strip().lower()
    if wanted == ANY or wanted in PROTOCOLS:
        return wanted
    if wanted.isascii() and wanted.isdigit() and int(wanted) <= 255:
        return next((name for name, number in PROTOCOLS.items() if number == int(wanted)), str(int(wanted)))
    raise ValueError(f"{text!r} is no protocol; write any, {', '.join(PROTOCOLS)}, or a number to 255")


AclPrefix = Annotated[str, AfterValidator(_prefix)]
"""``any``, or an IPv4 or IPv6 prefix in its shortest form."""
AclAddress = Annotated[str, AfterValidator(_address)]
"""An ``AclPrefix`` or a mac."""
AclPorts = Annotated[str, AfterValidator(_ports)]
"""``443`` or ``8000-8080``."""
AclProtocol = Annotated[str, AfterValidator(_protocol)]


class AclEntry(BaseModel):
    """One line of a port ACL, stateless: of those of its direction that match, the one with the longest prefix decides.

    It names one address, ``local`` or ``remote``: a mac, which comes before any prefix, an IP prefix, or ``any``.
    ``meter`` counts what passes between the card and a remote prefix, and neither allows nor denies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    action: Literal["allow", "deny", "meter"]
    direction: Direction
    local: AclAddress | None = None
    remote: AclAddress | None = None

    @model_validator(mode="after")
    def _one_address(self) -> AclEntry:
        if (self.local is None) == (self.remote is None):
            raise ValueError("name either a local or a remote address")
        if self.action == "meter" and (self.remote is None or is_mac(self.remote)):
            raise ValueError("what is metered is a remote IP prefix, or any")
        return self

    @property
    def side(self) -> Side:
        return "remote" if self.local is None else "local"

    @property
    def address(self) -> str:
        return self.local or self.remote or ANY

    @property
    def line(self) -> str:
        """What names it in its list; meters are lines of their own."""
        return f"{self.direction}/{'meter' if self.action == 'meter' else self.side}/{self.address}"

    def __str__(self) -> str:
        return f"{self.action} {self.direction} {self.side} {self.address}"


class AclRule(BaseModel):
    """One line of an extended ACL: of those of its direction that match, the one with the largest weight decides.

    ``stateful`` keeps the flow until it has been idle for ``idle_timeout_s``; its packets pass in both directions.
    What a rule with ``log`` decides is told in the journal, at a limited rate. What is left out is any.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    weight: int = Field(ge=0, le=MAX_WEIGHT)
    action: Literal["allow", "deny"]
    direction: Direction
    protocol: AclProtocol = ANY
    local: AclPrefix = ANY
    remote: AclPrefix = ANY
    local_ports: AclPorts | None = None
    remote_ports: AclPorts | None = None
    stateful: bool = False
    idle_timeout_s: int = Field(default=IDLE_TIMEOUT_S, ge=1, le=MAX_IDLE_TIMEOUT_S)
    log: bool = False

    @model_validator(mode="after")
    def _sensible(self) -> AclRule:
        if (self.local_ports or self.remote_ports) and self.number not in WITH_PORTS:
            raise ValueError(f"protocol {self.protocol} has no ports; name tcp, udp or sctp")
        versions = {ipaddress.ip_network(one).version for one in (self.local, self.remote) if one != ANY}
        if len(versions) > 1:
            raise ValueError(f"{self.local} and {self.remote} never meet: one is IPv4, the other IPv6")
        if (4 in versions and self.number == ICMPV6) or (6 in versions and self.number == ICMP):
            raise ValueError(f"{self.protocol} does not go between such addresses")
        if self.stateful and self.action == "deny":
            raise ValueError("a denial cannot be stateful")
        if self.stateful and self.number not in (None, *KEPT):
            raise ValueError(f"protocol {self.protocol} has no flows; stateful is for tcp, udp, icmp, icmpv6 or any")
        return self

    @property
    def number(self) -> int | None:
        """The protocol's number; None is any."""
        return protocol_number(self.protocol)

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that it can match."""
        for address in (self.local, self.remote):
            if address != ANY:
                return (ipaddress.ip_network(address).version,)
        return (4,) if self.number == ICMP else (6,) if self.number == ICMPV6 else (4, 6)

    @property
    def line(self) -> str:
        """What names it in its list."""
        return f"{self.direction}/{self.weight}"

    def __str__(self) -> str:
        words = [self.action, self.direction, self.protocol]
        for side, address, ports in (
            ("local", self.local, self.local_ports),
            ("remote", self.remote, self.remote_ports),
        ):
            words += [f"{side} {address}"] if address != ANY else []
            words += [f"{side} port {ports}"] if ports else []
        words += [f"stateful {self.idle_timeout_s} s"] if self.stateful else []
        words += ["log"] if self.log else []
        return f"weight {self.weight}: " + " ".join(words)


def protocol_number(protocol: str) -> int | None:
    """The number of an ``AclProtocol``; None is any."""
    return None if protocol == ANY else PROTOCOLS[protocol] if protocol in PROTOCOLS else int(protocol)


def port_range(ports: str) -> tuple[int, int]:
    """First and last of an ``AclPorts``."""
    first, _, last = ports.partition("-")
    return int(first), int(last or first)


L = TypeVar("L", bound=AclEntry | AclRule)


def _each_once(items: list[L]) -> list[L]:
    known: set[str] = set()
    for item in items:
        if item.line in known:
            raise ValueError(f"there are two lines {item.line}: an address, or a weight, stands once in a direction")
        known.add(item.line)
    return items


AclEntries = Annotated[list[AclEntry], Field(max_length=MAX_LINES), AfterValidator(_each_once)]
AclRules = Annotated[list[AclRule], Field(max_length=MAX_LINES), AfterValidator(_each_once)]


class AclLists(BaseModel):
    """Lines of both kinds."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    entries: AclEntries = Field(default_factory=list)
    rules: AclRules = Field(default_factory=list)


class NamedAcl(Protocol):
    """A named ACL, as far as a card has to know it."""

    id: str
    entries: list[AclEntry]
    rules: list[AclRule]


class NicAcl(AclLists):
    """A card's own lines, and the named ACLs that hold for it: ids (in requests, names too), in that order.

    Of rules with equal weight the card's own come first, then those of its ACLs in their order.
    """

    sets: list[str] = Field(default_factory=list, max_length=MAX_SETS)

    def with_lines_of(self, gone: Iterable[NamedAcl]) -> NicAcl:
        """Without the named ACLs ``gone``, but with their lines, where the card or an earlier one has none so named."""
        entries = {entry.line: entry for entry in self.entries}
        rules = {rule.line: rule for rule in self.rules}
        sets = list(self.sets)
        for acl in gone:
            entries = {entry.line: entry for entry in acl.entries} | entries
            rules = {rule.line: rule for rule in acl.rules} | rules
            sets.remove(acl.id)
        return NicAcl(entries=list(entries.values()), rules=list(rules.values()), sets=sets)


class NicAclSet(BaseModel):
    """Changes to it: what is absent stays; what is given replaces all."""

    model_config = ConfigDict(extra="forbid")

    entries: AclEntries | None = None
    rules: AclRules | None = None
    sets: list[str] | None = Field(default=None, max_length=MAX_SETS)

    def applied_to(self, acl: NicAcl) -> NicAcl:
        """``acl`` with these changes."""
        changes = {name: value for name in NicAclSet.model_fields if (value := getattr(self, name)) is not None}
        return acl.model_copy(update=changes)
