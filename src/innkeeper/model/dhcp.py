"""What the DHCP of a switch gives besides addresses of cards: ranges, options, reservations for other macs."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints


def _address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _ipv4(value: str) -> str:
    return str(ipaddress.IPv4Address(value))


IpAddress = Annotated[str, AfterValidator(_address)]
_Ipv4 = Annotated[str, AfterValidator(_ipv4)]
_Mac = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")]
_Domain = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
_Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]

OWN_OPTIONS = {
    1: "the subnet says it",
    6: "set it with --dns",
    12: "a card's name is its vm's",
    15: "set it with --dns-domain",
    26: "set it with --mtu",
    28: "the subnet says it",
    42: "set it with --ntp",
    51: "set it with --lease",
    119: "set it with --search",
}
"""Options that have a setting of their own, and which."""
_PROTOCOL = frozenset((0, 50, 52, 53, 54, 55, 56, 57, 58, 59, 61, 81, 82, 90, 118, 255))
"""Options that the protocol itself uses (RFC 2132 and later)."""


class DhcpRange(BaseModel):
    """Addresses from ``first`` to ``last``, both included."""

    model_config = ConfigDict(extra="forbid")

    first: _Ipv4
    last: _Ipv4


class DhcpReservation(BaseModel):
    """An address for a mac that is no card's: a container's, a nested vm's."""

    model_config = ConfigDict(extra="forbid")

    mac: _Mac
    address: _Ipv4
    hostname: _Label | None = None


def _number(value: int) -> int:
    if value in OWN_OPTIONS:
        raise ValueError(f"option {value} cannot be given: {OWN_OPTIONS[value]}")
    if not 1 <= value <= 254 or value in _PROTOCOL:
        raise ValueError(f"option {value} cannot be given: numbers are 1 to 254 without those that DHCP itself uses")
    return value


class DhcpOption(BaseModel):
    """Any other option by its number. ``value``: text, or addresses, numbers or octets (``0a:ff``) parted by commas."""

    model_config = ConfigDict(extra="forbid")

    number: Annotated[int, AfterValidator(_number)]
    value: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9 .,:/_@+=%-]{1,255}$")]


Ranges = Annotated[list[DhcpRange], Field(max_length=64)]
LeaseTime = Annotated[int, Field(ge=120, le=30 * 86_400)]
Servers = Annotated[list[IpAddress], Field(max_length=8)]
Domains = Annotated[list[_Domain], Field(max_length=16)]
Options = Annotated[list[DhcpOption], Field(max_length=64)]
Reservations = Annotated[list[DhcpReservation], Field(max_length=4096)]


class DhcpSettings(BaseModel):
    """DHCP of a switch. Addresses are chosen from ``ranges`` (the whole subnet when empty) and always reserved.

    Guests are given ``dns_servers`` and ``ntp_servers`` by the protocol of their IP version; without ``dns_servers`` of
    one the switch answers itself. ``search_domains`` without any is the switch's own domain.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    ranges: Ranges = Field(default_factory=list)
    lease_s: LeaseTime = 3600
    dns_servers: Servers = Field(default_factory=list)
    search_domains: Domains = Field(default_factory=list)
    ntp_servers: Servers = Field(default_factory=list)
    options: Options = Field(default_factory=list)
    reservations: Reservations = Field(default_factory=list)


class DhcpSettingsSet(BaseModel):
    """Changes to it: what is absent stays, ``null`` clears; each list replaces all."""

    model_config = ConfigDict(extra="forbid")

    ranges: Ranges | None = None
    lease_s: LeaseTime | None = None
    dns_servers: Servers | None = None
    search_domains: Domains | None = None
    ntp_servers: Servers | None = None
    options: Options | None = None
    reservations: Reservations | None = None

    def applied_to(self, settings: DhcpSettings) -> DhcpSettings:
        """``settings`` with these changes."""
        changes = self.model_dump(exclude_unset=True)
        kept = {name: value for name, value in settings.model_dump().items() if name not in changes}
        return DhcpSettings(**kept, **{name: value for name, value in changes.items() if value is not None})
