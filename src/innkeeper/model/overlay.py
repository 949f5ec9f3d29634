"""Virtual networks: what a switch of kind ``virtual`` is told of the other hosts that carry its network.

The words are those of Hyper-V's network virtualisation: the *customer* addresses are the guests', the *provider*
addresses the hosts'; a *lookup record* says behind which provider address a customer address is.
"""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, field_validator

from innkeeper.model.traffic import Prefix

Encapsulation = Literal["vxlan", "nvgre"]
Vni = Annotated[int, Field(ge=4096, le=16_777_214)]
"""Virtual network identifier (VXLAN), virtual subnet identifier (NVGRE, RFC 7637, which keeps those below 4096)."""


def _one_address(value: str) -> str:
    return str(_usable(ipaddress.ip_address(value)))


def _one_ipv4(value: str) -> str:
    return str(_usable(ipaddress.IPv4Address(value)))


def _usable(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    if address.is_multicast or address.is_unspecified or address.is_loopback or str(address) == "255.255.255.255":
        raise ValueError(f"{address} is not the address of one machine")
    return address


CustomerAddress = Annotated[str, AfterValidator(_one_address)]
ProviderAddress = Annotated[str, AfterValidator(_one_ipv4)]
UnicastMac = Annotated[str, StringConstraints(pattern=r"^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$")]
RoutingDomain = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")]


class LookupRecord(BaseModel):
    """A guest's address on another host: ``customer_address`` has ``mac`` and is behind ``provider_address``."""

    model_config = ConfigDict(extra="forbid")

    customer_address: CustomerAddress
    mac: UnicastMac
    provider_address: ProviderAddress


class CustomerRoute(BaseModel):
    """Packets of the routing domain for ``prefix`` go to ``next_hop``, a customer address; the least metric wins."""

    model_config = ConfigDict(extra="forbid")

    prefix: Prefix
    next_hop: Annotated[str, AfterValidator(_one_ipv4)]
    metric: int = Field(default=0, ge=0, le=999_999)

    @field_validator("prefix")
    @classmethod
    def _ipv4(cls, value: str) -> str:
        return str(ipaddress.IPv4Network(value))


class Overlay(BaseModel):
    """How a virtual switch reaches its network's part on other hosts.

    Switches of one ``routing_domain`` belong to one tenant: their subnets do not overlap. ``domain_number`` is small
    and unique in the inn. Records of ``provider_address`` itself are this host's own and count for nothing here.
    ``gateway``: guests have a way out behind the host's address.
    """

    model_config = ConfigDict(extra="forbid")

    vni: Vni
    provider_address: ProviderAddress
    encapsulation: Encapsulation = "vxlan"
    routing_domain: RoutingDomain
    domain_number: int = 0
    gateway: bool = False
    records: list[LookupRecord] = Field(default_factory=list)
    routes: list[CustomerRoute] = Field(default_factory=list)


class OverlayCreate(BaseModel):
    """The overlay of a new switch; its routing domain is its own when none is named."""

    model_config = ConfigDict(extra="forbid")

    vni: Vni
    provider_address: ProviderAddress
    encapsulation: Encapsulation = "vxlan"
    routing_domain: RoutingDomain | None = None
    gateway: bool = False


class OverlaySet(BaseModel):
    """Changes to it: ``records`` replaces all records, ``routes`` all routes."""

    model_config = ConfigDict(extra="forbid")

    provider_address: ProviderAddress | None = None
    gateway: bool | None = None
    records: list[LookupRecord] | None = Field(default=None, max_length=100_000)
    routes: list[CustomerRoute] | None = Field(default=None, max_length=1000)
