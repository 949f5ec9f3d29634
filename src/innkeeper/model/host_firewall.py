"""What of the host is reached, and from where: services and sources as people write them, and the host's firewall.

    tcp/22                          from everywhere
    tcp/8000-8100                   the same of a range of ports
    icmp, icmpv6, gre, esp          all packets of a protocol without ports
    tcp/22@192.168.7.0/24           from addresses of that prefix, IPv4 or IPv6; a single address is one, too
    tcp/22@192.168.7.0/24%eth1      and only where they come in at that interface or external switch
    tcp/22%eth1                     from everything that comes in there

Sources alone (of a management network) are ``192.168.7.0/24``, ``192.168.7.0/24%eth1`` or ``eth1``. In documents a
switch is named by its id, so that another name of it changes nothing.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from innkeeper.model.acl import ICMP, ICMPV6, PROTOCOLS, WITH_PORTS

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_PORT = re.compile(r"[1-9][0-9]{0,4}")
NUMBERS = PROTOCOLS | {"gre": 47, "esp": 50, "ah": 51, "ospf": 89, "vrrp": 112}
"""The protocols that services have, by the names that people know."""
_LIKE = (
    "not like tcp/3142, udp/8000-8100, tcp/22@192.168.7.0/24 or "
    f"{', '.join(name for name, number in NUMBERS.items() if number not in WITH_PORTS)}"
)
_PLACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,62}")
_EMBEDDED = (ipaddress.IPv6Network("::/96"), ipaddress.IPv6Network("::ffff:0:0/96"))
"""IPv6 spellings of IPv4 addresses: no packet has them as its source."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where something comes from; ``on`` is an interface's name or a switch's name or id. None: any."""

    prefix: Network | None = None
    on: str | None = None

    def __str__(self) -> str:
        place = f"%{self.on}" if self.on else ""
        return f"{prefix_text(self.prefix)}{place}" if self.prefix else self.on or ""


@dataclass(frozen=True, slots=True)
class Service:
    """What is reached, and from where; ``ports`` are the first and the last, None of a protocol without any."""

    protocol: str
    ports: tuple[int, int] | None
    source: Source = Source()

    @property
    def number(self) -> int:
        """The protocol's number."""
        return NUMBERS[self.protocol]

    @property
    def version(self) -> int | None:
        """The IP version that alone has the protocol; None: both have it."""
        return {ICMP: 4, ICMPV6: 6}.get(self.number)

    def covers(self, number: int, port: int | None) -> bool:
        """Whether a packet of that protocol, to that port, is for the service."""
        if number != self.number or self.ports is None:
            return number == self.number
        return port is not None and self.ports[0] <= port <= self.ports[1]

    def __str__(self) -> str:
        first, last = self.ports or (0, 0)
        port = f"/{first}" if self.ports else ""
        if last > first:
            port += f"-{last}"
        at = f"@{prefix_text(self.source.prefix)}" if self.source.prefix else ""
        place = f"%{self.source.on}" if self.source.on else ""
        return f"{self.protocol}{port}{at}{place}"


def prefix_text(prefix: Network) -> str:
    """A prefix as people and nftables write it: a single address without its length."""
    return str(prefix.network_address) if prefix.prefixlen == prefix.max_prefixlen else str(prefix)


def read_service(text: str) -> Service:
    """The service that ``text`` names. Raises ``ValueError``."""
    rest, percent, place = text.partition("%")
    what, at, prefix = rest.partition("@")
    protocol, slash, port = what.partition("/")
    source = Source(_prefix(prefix) if at else None, _place(place) if percent else None)
    if protocol not in NUMBERS or (NUMBERS[protocol] in WITH_PORTS) != bool(slash):
        raise ValueError(f"{text!r} is {_LIKE}")
    service = Service(protocol, _port_range(port, text) if slash else None, source)
    if service.version is not None and source.prefix is not None and source.prefix.version != service.version:
        raise ValueError(f"{text!r}: {protocol} is of IPv{service.version}")
    return service


def _port_range(port: str, text: str) -> tuple[int, int]:
    first, dash, last = port.partition("-")
    if not _PORT.fullmatch(first) or (dash and not _PORT.fullmatch(last)):
        raise ValueError(f"{text!r} is {_LIKE}")
    found = int(first), int(last or first)
    if found[1] > 65535 or found[0] > found[1]:
        raise ValueError(f"{text!r}: ports go to 65535, and the smaller one comes first")
    return found


def read_source(text: str) -> Source:
    """The source that ``text`` names. Raises ``ValueError``."""
    first, percent, place = text.partition("%")
    if percent or "/" in first or _is_address(first):
        return Source(_prefix(first), _place(place) if percent else None)
    return Source(on=_place(first))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _prefix(text: str) -> Network:
    try:
        prefix = ipaddress.ip_network(text)
    except ValueError as wrong:
        raise ValueError(f"{text!r} is no prefix such as 192.168.7.0/24 or 2001:db8::/64: {wrong}") from wrong
    embedded = isinstance(prefix, ipaddress.IPv6Network) and any(prefix.subnet_of(one) for one in _EMBEDDED)
    if prefix.is_multicast or embedded:
        raise ValueError(f"nothing comes from {text}")
    return prefix


def _place(text: str) -> str:
    if not _PLACE.fullmatch(text):
        raise ValueError(f"{text!r} is no name of an interface or a switch")
    return text


def _kept(read: Callable[[str], Source | Service]) -> AfterValidator:
    return AfterValidator(lambda text: str(read(text)))


def _of_guests(text: str) -> str:
    service = read_service(text)
    if service.source.on is not None:
        raise ValueError(f"{text!r}: it is for the guests of this switch; leave out %{service.source.on}")
    return str(service)


HostService = Annotated[str, StringConstraints(max_length=60), AfterValidator(_of_guests)]
"""What guests of a switch may use of the host, all of them or those of a prefix."""
FirewallSource = Annotated[str, StringConstraints(max_length=110), _kept(read_source)]
FirewallService = Annotated[str, StringConstraints(max_length=120), _kept(read_service)]


class _Part(BaseModel):
    """As ``resources.Part``, which has parts of this module."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class HostFirewall(_Part):
    """What may reach the host from outside: everything from ``management``, else ``allow``; with ``echo`` pings."""

    enabled: bool = False
    management: list[FirewallSource] = Field(default_factory=list, max_length=100)
    allow: list[FirewallService] = Field(default_factory=list, max_length=500)
    echo: bool = True

    def placed(self, name: Callable[[str], str]) -> HostFirewall:
        """The same with every interface or switch called what ``name`` says."""
        management, allow = map(read_source, self.management), map(read_service, self.allow)
        return self.model_copy(
            update={
                "management": list(dict.fromkeys(str(_renamed(one, name)) for one in management)),
                "allow": list(
                    dict.fromkeys(str(replace(one, source=_renamed(one.source, name))) for one in allow),
                ),
            }
        )

    @property
    def places(self) -> list[str]:
        """The interfaces and switches that it names, each once."""
        sources = [*map(read_source, self.management), *(read_service(one).source for one in self.allow)]
        return list(dict.fromkeys(one.on for one in sources if one.on is not None))


def _renamed(source: Source, name: Callable[[str], str]) -> Source:
    return source if source.on is None else replace(source, on=name(source.on))


class FirewallTrial(_Part):
    """A firewall that holds until ``confirm_by`` unless it is confirmed; ``returned``: it was not."""

    wish: HostFirewall
    confirm_by: datetime
    returned: bool = False


class HostFirewallSet(_Part):
    """Changes to the host's firewall: of what is named all of it anew.

    Where it is enabled then, the former one comes back after ``confirm_within_s`` unless the change is confirmed.
    """

    enabled: bool | None = None
    management: list[FirewallSource] | None = Field(default=None, max_length=100)
    allow: list[FirewallService] | None = Field(default=None, max_length=500)
    echo: bool | None = None
    confirm_within_s: float = Field(default=30.0, ge=1, le=3600)

    def applied_to(self, firewall: HostFirewall, name: Callable[[str], str]) -> HostFirewall:
        """``firewall`` with these changes, whose interfaces and switches are called what ``name`` says."""
        said = self.model_dump(exclude={"confirm_within_s"}, exclude_none=True)
        asked = HostFirewall().model_copy(update=said).placed(name)
        return firewall.model_copy(update={member: getattr(asked, member) for member in said})
