"""How a switch is connected to the host's own network, and what of the host's network moved to its bridge.

Stored in a switch's document, so that what was moved can be moved again after a reboot and given back at the end.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

TeamMode = Literal["active-backup", "balance-xor", "802.3ad"]
"""How several uplinks are one: one at a time; by a hash of addresses; the same, agreed with the outside switch."""
DeviceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,14}$")]
UplinkState = Literal["pending", "taken", "returned"]
UplinkVia = Literal["card", "cable", "team"]
"""The card is a port of the bridge; a cable leads to a bridge of the host's own; a team of cards is the port."""

RA_PROTOCOL = 9
"""The routing protocol number of what a router advertisement gave (rtnetlink(7): RTPROT_RA)."""


class Fact(BaseModel):
    """Something that the kernel says of the host's network; never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class HostAddress(Fact):
    """An address of the host. ``lifetime_s`` None: for ever; otherwise it was leased (DHCP) or advertised (SLAAC).

    ``prefix_route`` False: the address brought no route to its network with it.
    """

    address: str
    prefix_length: int
    peer: str | None = None
    broadcast: str | None = None
    scope: int = 0
    prefix_route: bool = True
    autoconf: bool = False
    """Temporary addresses are made beside it (mngtmpaddr)."""
    metric: int | None = None
    label: str | None = None
    lifetime_s: int | None = None
    preferred_s: int | None = None

    @property
    def version(self) -> int:
        return ipaddress.ip_address(self.address).version

    @property
    def network(self) -> str:
        """The network that it is in, CIDR."""
        return str(ipaddress.ip_interface(f"{self.peer or self.address}/{self.prefix_length}").network)

    @property
    def link_local(self) -> bool:
        return self.version == 6 and ipaddress.ip_address(self.address).is_link_local

    @property
    def leased(self) -> bool:
        """Whether it lasts only for as long as a DHCP client asks for it again."""
        return self.lifetime_s is not None and (self.version == 4 or self.prefix_length == 128)

    def __str__(self) -> str:
        return f"{self.address}/{self.prefix_length}"


class HostHop(Fact):
    """One way of a route with several; ``device`` None is the uplink itself."""

    device: str | None = None
    gateway: str | None = None
    weight: int = 1
    onlink: bool = False


class HostRoute(Fact):
    """A route through the uplink. Numbers as in rtnetlink(7); ``metrics`` by the names of ip-route(8)."""

    destination: str
    table: int = 254
    protocol: int = 3
    scope: int = 0
    route_type: int = 1
    tos: int = 0
    metric: int = 0
    gateway: str | None = None
    source: str | None = None
    onlink: bool = False
    preference: int | None = None
    expires_s: int | None = None
    metrics: tuple[tuple[str, int], ...] = ()
    hops: tuple[HostHop, ...] = ()

    @property
    def version(self) -> int:
        return ipaddress.ip_network(self.destination).version

    @property
    def direct(self) -> bool:
        return self.gateway is None and all(hop.gateway is None for hop in self.hops)

    @property
    def advertised(self) -> bool:
        return self.protocol == RA_PROTOCOL and self.version == 6

    def __str__(self) -> str:
        is_default = ipaddress.ip_network(self.destination).prefixlen == 0
        where = ("default" if is_default else self.destination) + (f" via {self.gateway}" if self.gateway else "")
        where += "".join(f" via {hop.gateway or hop.device or 'the link'}" for hop in self.hops)
        return where + (f" table {self.table}" if self.table != 254 else "")


class HostRule(Fact):
    """A policy rule that names the uplink as the device in or out."""

    version: int
    priority: int
    table: int
    is_in: bool = False
    is_out: bool = False
    source: str | None = None
    destination: str | None = None
    mark: int | None = None
    mask: int | None = None
    invert: bool = False

    def __str__(self) -> str:
        devices = " ".join(["iif"] * self.is_in + ["oif"] * self.is_out)
        return f"{self.priority}: {devices} lookup {self.table}"


class HostNeighbour(Fact):
    """A neighbour that the administrator fixed."""

    address: str
    mac: str


class HostNetwork(Fact):
    """What of the host's network was on the uplink. ``settings``: sysctl below ``net/`` without the device -> value."""

    addresses: tuple[HostAddress, ...] = ()
    routes: tuple[HostRoute, ...] = ()
    rules: tuple[HostRule, ...] = ()
    neighbours: tuple[HostNeighbour, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    manager: str = ""
    """What set it up, in words; empty when nothing that is known."""

    @property
    def moves(self) -> bool:
        """Whether the host is reached through it."""
        return bool(self.routes or self.rules or any(not one.link_local for one in self.addresses))

    def setting(self, key: str) -> str | None:
        return dict(self.settings).get(key)


class Uplink(BaseModel):
    """How an external switch reaches the outside.

    ``pending``: the host's addresses have moved and will be given back at ``confirm_by`` unless that is confirmed.
    ``taken``: for good. ``returned``: it was not confirmed; the switch stands without an uplink.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    devices: list[DeviceName] = Field(min_length=1, max_length=8)
    team: TeamMode | None = None
    via: UplinkVia = "card"
    state: UplinkState = "taken"
    confirm_by: datetime | None = None
    confirm_within_s: float = 30.0
    moved: HostNetwork | None = None
    mac: str | None = None
    """The uplink's own mac, which the bridge has too."""
