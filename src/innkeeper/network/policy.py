"""What a switch and its ports shall be: frozen values, checked once here, that everything else is compiled from."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, field, fields
from typing import Literal

from innkeeper.model.problems import Invalid

SwitchKindName = Literal["private", "internal", "nat"]

_DEVICE = re.compile(r"^[a-z][a-z0-9-]{0,14}$")
_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
_DOMAIN = re.compile(r"^[a-z][a-z0-9.-]{0,62}$")
_NOT_A_LABEL = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """What a port's frames are held to. ``arp`` covers neighbour discovery too, ``ip`` and ``dhcp`` both IP versions.

    While any guard is on, only untagged Ethernet II frames of ARP, IPv4 and IPv6 with readable headers pass the port:
    everything else exists to get around the guards.
    """

    mac: bool = True
    ip: bool = True
    arp: bool = True
    dhcp: bool = True
    router: bool = True

    @property
    def any(self) -> bool:
        return any(getattr(self, guard.name) for guard in fields(self))


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """A port: its tap, the card's mac, and the addresses it may use; the first of ``ipv4`` is what DHCP gives it.

    Without ``ipv4`` its IPv4 address is unknown, and the arp and ip guards leave IPv4 alone. The IPv6 link-local
    address that is made of the mac is always known; ``ipv6`` adds to it. ``owner_uid`` may open the tap; only
    root without.
    Raises ``Invalid`` (``nic.tap``, ``nic.mac``, ``nic.address``).
    """

    tap: str
    mac: str
    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()
    guards: GuardPolicy = field(default_factory=GuardPolicy)
    hostname: str = ""
    owner_uid: int | None = None

    def __post_init__(self) -> None:
        _check_device(self.tap, "nic.tap")
        if not _MAC.match(self.mac) or int(self.mac[:2], 16) & 1 or self.mac == "00:00:00:00:00:00":
            raise Invalid(
                "nic.mac",
                f"{self.mac!r} is not a card's mac",
                cause="a mac is six lower-case octets such as 52:54:00:12:34:56, not a group address",
                remedy="leave the mac out, so that one is chosen",
            )
        for text in self.ipv4:
            _host_address(text, 4)
        for text in self.ipv6:
            _host_address(text, 6)

    @property
    def link_local(self) -> str:
        """The IPv6 link-local address made of the mac (modified EUI-64, RFC 4291)."""
        octets = bytes.fromhex(self.mac.replace(":", ""))
        interface = bytes([octets[0] ^ 2, *octets[1:3], 0xFF, 0xFE, *octets[3:]])
        return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + interface))


@dataclass(frozen=True, slots=True)
class Forward:
    """What arrives for ``host_port`` of the host goes to a guest; ``host_address`` None means any of the host's."""

    protocol: Literal["tcp", "udp"]
    host_port: int
    address: str
    guest_port: int
    host_address: str | None = None

    def __post_init__(self) -> None:
        _host_address(self.address, 4)
        if self.host_address is not None:
            _host_address(self.host_address, 4)
        for port in (self.host_port, self.guest_port):
            if not 0 < port < 65536:
                raise Invalid("switch.forward_port", f"{port} is not a port", remedy="choose one of 1 to 65535")


@dataclass(frozen=True, slots=True)
class SwitchPolicy:
    """A switch. ``subnet`` (IPv4, CIDR) None: no addresses are known on it; only a private switch can be without.

    private: guests reach each other only, the host is no part of it. internal: the host is there as ``gateway``, with
    DHCP and DNS. nat: internal, and guests reach the host's networks behind the host's address.
    Raises ``Invalid`` (``switch.bridge``, ``switch.subnet``, ``switch.domain``, ``switch.forward``).
    """

    name: str
    bridge: str
    kind: SwitchKindName = "nat"
    subnet: str | None = None
    dhcp: bool = True
    dns_domain: str = "inn"
    mtu: int = 1500
    forwards: tuple[Forward, ...] = ()

    def __post_init__(self) -> None:
        _check_device(self.bridge, "switch.bridge")
        if self.subnet is None and self.kind != "private":
            raise Invalid("switch.subnet", f"switch {self.name} has no subnet", remedy="give one, such as 10.77.0.0/24")
        if self.subnet is not None:
            parse_subnet(self.subnet)
        if not _DOMAIN.match(self.dns_domain):
            raise Invalid("switch.domain", f"{self.dns_domain!r} is not a DNS domain", remedy="use lower-case letters")
        if self.forwards and self.kind != "nat":
            raise Invalid(
                "switch.forward",
                f"switch {self.name} is {self.kind}: only a nat switch forwards ports",
                remedy="make a nat switch and plug the vm into it",
            )

    @property
    def network(self) -> ipaddress.IPv4Network | None:
        return None if self.subnet is None else ipaddress.IPv4Network(self.subnet)

    @property
    def gateway(self) -> str | None:
        """The host's address on the switch: the subnet's first; None on a private switch."""
        if self.network is None or self.kind == "private":
            return None
        return str(self.network.network_address + 1)

    @property
    def serves_dhcp(self) -> bool:
        return self.dhcp and self.gateway is not None

    @property
    def mac(self) -> str:
        """The bridge's own mac: always the same for the same bridge, so that guests' neighbour caches stay true."""
        digest = hashlib.sha256(self.bridge.encode()).digest()
        return ":".join(f"{octet:02x}" for octet in (0x0A, *digest[:5]))


def parse_subnet(text: str) -> ipaddress.IPv4Network:
    """The IPv4 network ``text``, which must leave room for the host and a guest.

    Raises ``Invalid`` (``switch.subnet``).
    """
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as wrong:
        raise Invalid(
            "switch.subnet", f"{text!r} is not an IPv4 subnet", cause=str(wrong), remedy="write it like 10.77.0.0/24"
        ) from wrong
    if not 8 <= network.prefixlen <= 29 or network.is_multicast or network.is_loopback or network.is_link_local:
        raise Invalid(
            "switch.subnet",
            f"{text} cannot be a switch's subnet",
            remedy="take a /8 to /29 of private addresses, such as 10.77.0.0/24",
        )
    return network


def dns_label(name: str) -> str:
    """``name`` as a DNS host label (RFC 1123): lower case, other characters than letters and digits as ``-``."""
    return _NOT_A_LABEL.sub("-", name.lower()).strip("-")[:63].strip("-")


def _check_device(name: str, code: str) -> None:
    if not _DEVICE.match(name):
        raise Invalid(code, f"{name!r} is not a device name", cause="a device name has at most 15 characters")


def _host_address(text: str, version: int) -> None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError as wrong:
        raise Invalid("nic.address", f"{text!r} is not an address", cause=str(wrong)) from wrong
    if address.version != version or address.is_multicast or address.is_unspecified or str(address) != text:
        raise Invalid(
            "nic.address",
            f"{text!r} cannot be the address of a card",
            remedy=f"give a single IPv{version} address in its shortest form",
        )
