"""What carries a virtual switch's frames between hosts: frozen values, checked once here. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from innkeeper.model.problems import Invalid

Encapsulation = Literal["vxlan", "nvgre"]
OVERHEAD_BYTES = {"vxlan": 50, "nvgre": 42}
"""What an encapsulation adds to a packet: outer IPv4, its own headers, and the guest's Ethernet header."""
FIRST_VNI, LAST_VNI = 4096, 16_777_214


@dataclass(frozen=True, slots=True, order=True)
class Record:
    """The guest with ``customer`` address (IPv4 or IPv6) and ``mac`` is behind the host with ``provider`` address."""

    customer: str
    mac: str
    provider: str


@dataclass(frozen=True, slots=True, order=True)
class CustomerRoute:
    """Packets for ``prefix`` (IPv4) go to ``next_hop``, an address of the switch; the least metric wins."""

    prefix: str
    next_hop: str
    metric: int = 0


@dataclass(frozen=True, slots=True)
class OverlayPolicy:
    """``vni`` names the network on the wire, ``provider`` is this host's IPv4 address there.

    ``domain``: number of the routing domain; ``gateway``: it has a way out through the host.
    Raises ``Invalid`` (``switch.vni``, ``switch.record``, ``switch.route``).
    """

    vni: int
    provider: str
    encapsulation: Encapsulation = "vxlan"
    domain: int = 0
    records: tuple[Record, ...] = ()
    routes: tuple[CustomerRoute, ...] = ()
    gateway: bool = False

    def __post_init__(self) -> None:
        if not FIRST_VNI <= self.vni <= LAST_VNI:
            raise Invalid(
                "switch.vni",
                f"{self.vni} cannot be a virtual network's identifier",
                remedy=f"choose one of {FIRST_VNI} to {LAST_VNI}",
            )
        if len({(route.prefix, route.metric) for route in self.routes}) != len(self.routes):
            raise Invalid(
                "switch.route",
                "customer routes name a prefix twice",
                remedy="give the routes of one prefix different metrics: the least wins",
            )
        macs: dict[str, str] = {}
        customers: set[str] = set()
        for record in self.records:
            if macs.setdefault(record.mac, record.provider) != record.provider:
                raise _contradiction(f"mac {record.mac}", "to be behind two provider addresses")
            if record.customer in customers:
                raise _contradiction(f"customer address {record.customer}", "twice")
            if record.mac == self.gateway_mac:
                raise _contradiction(f"mac {record.mac}", "for a guest, but it is the network's gateway's own")
            customers.add(record.customer)

    @property
    def remote(self) -> tuple[Record, ...]:
        """The records of other hosts; one list of records can so be given to all hosts."""
        return tuple(record for record in self.records if record.provider != self.provider)

    @property
    def gateway_mac(self) -> str:
        """The mac of the network's gateway: the same on every host, made of the identifier."""
        digest = hashlib.sha256(f"gateway of {self.vni}".encode()).digest()
        return ":".join(f"{octet:02x}" for octet in (0x0A, *digest[:5]))


def _contradiction(what: str, how: str) -> Invalid:
    return Invalid(
        "switch.record",
        f"lookup records name {what} {how}",
        remedy="give one record for each customer address, and each mac one provider address",
    )
