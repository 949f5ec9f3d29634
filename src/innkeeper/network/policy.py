"""What a switch and its ports shall be: frozen values, checked once here, that everything else is compiled from."""

from __future__ import annotations

import hashlib
import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal

from innkeeper.model.problems import Invalid
from innkeeper.network.acl import AclPolicy
from innkeeper.network.dhcp_policy import DhcpPolicy
from innkeeper.network.ipv6 import LINK_LOCAL, RaMode, gateway6, interface_address, parse_subnet6
from innkeeper.network.overlay import OverlayPolicy
from innkeeper.network.traffic import TrafficPolicy
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.vlan_policy import UNTAGGED, VlanPolicy

SwitchKindName = Literal["private", "internal", "nat", "external", "virtual"]
APART = ("private", "virtual")
"""Kinds of switch that the host is no part of."""

_DEVICE = re.compile(r"^[a-z][a-z0-9-]{0,14}$")
_MAC = re.compile(r"^[0-9a-f]{2}(:[0-9a-f]{2}){5}$")
_DOMAIN = re.compile(r"^[a-z][a-z0-9.-]{0,62}$")
_NOT_A_LABEL = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class GuardPolicy:
    """What a port's frames are held to; ``ip`` and ``dhcp`` are for both IP versions.

    ``frame``: only untagged Ethernet II frames of ARP, IPv4, IPv6 and ``ethertypes`` with readable headers pass;
    everything else exists to get around the others. ``storm``: no more frames to all and to groups a second than that.
    """

    mac: bool = True
    ip: bool = True
    arp: bool = True
    nd: bool = True
    dhcp: bool = True
    router: bool = True
    frame: bool = True
    storm: bool = True
    ethertypes: tuple[int, ...] = ()
    broadcast_per_s: int = 1_000
    multicast_per_s: int = 10_000

    @property
    def any(self) -> bool:
        on = (self.mac, self.ip, self.arp, self.nd, self.dhcp, self.router, self.frame, self.storm)
        return True in on


@dataclass(frozen=True, slots=True)
class PortPolicy:
    """A port: its tap, the card's mac, and the addresses it may use; the first of ``ipv4`` is what DHCP gives it.

    Without ``ipv4`` its own IPv4 address is unknown, and the arp and ip guards leave IPv4 alone. The IPv6 link-local
    address that is made of the mac is always known; ``ipv6`` adds to it. ``extra`` addresses of both versions (which
    other ports may have too) and ``extra_macs`` hold besides. ``owner_uid`` may open the tap; only root without.
    Raises ``Invalid`` (``nic.tap``, ``nic.mac``, ``nic.address``).
    """

    tap: str
    mac: str
    ipv4: tuple[str, ...] = ()
    ipv6: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    extra_macs: tuple[str, ...] = ()
    guards: GuardPolicy = field(default_factory=GuardPolicy)
    hostname: str = ""
    owner_uid: int | None = None
    mtu: int | None = None
    """Less than the switch's; None: the switch's."""
    acl: AclPolicy = field(default_factory=AclPolicy)
    traffic: TrafficPolicy = field(default_factory=TrafficPolicy)
    vlan: VlanPolicy = UNTAGGED
    learns: bool = False
    """Its IPv4 address is what a DHCP server outside gives it."""

    def __post_init__(self) -> None:
        _check_device(self.tap, "nic.tap")
        for mac in self.macs:
            _check_mac(mac)
        for text in self.ipv4:
            _host_address(text, 4)
        for text in self.ipv6:
            _host_address(text, 6)
        for text in self.extra:
            _host_address(text, 6 if ":" in text else 4)

    @property
    def macs(self) -> tuple[str, ...]:
        """All macs that it may use, its own first."""
        return (self.mac, *self.extra_macs)

    @property
    def known4(self) -> tuple[str, ...]:
        """All IPv4 addresses that it may use."""
        return tuple(dict.fromkeys((*self.ipv4, *(text for text in self.extra if ":" not in text))))

    @property
    def known6(self) -> tuple[str, ...]:
        """All IPv6 addresses that it may use."""
        own = (link_local_of(mac) for mac in self.macs)
        return tuple(dict.fromkeys((*own, *self.ipv6, *(text for text in self.extra if ":" in text))))

    @property
    def link_local(self) -> str:
        """The IPv6 link-local address made of the mac (modified EUI-64, RFC 4291)."""
        return link_local_of(self.mac)


@dataclass(frozen=True, slots=True)
class Forward:
    """What arrives for ``host_port`` of the host goes to a guest; ``host_address`` None means any of the host's."""

    protocol: Literal["tcp", "udp"]
    host_port: int
    address: str
    guest_port: int
    host_address: str | None = None

    def __post_init__(self) -> None:
        _host_address(self.address, self.version)
        if self.host_address is not None:
            _host_address(self.host_address, self.version)
        for port in (self.host_port, self.guest_port):
            if not 0 < port < 65536:
                raise Invalid("switch.forward_port", f"{port} is not a port", remedy="choose one of 1 to 65535")

    @property
    def version(self) -> int:
        """The IP version of both of its addresses."""
        return 6 if ":" in self.address else 4


@dataclass(frozen=True, slots=True)
class SwitchPolicy:
    """A switch. ``subnet`` (IPv4, CIDR) None: no addresses are known on it; only a private switch can be without.

    ``subnet6`` is a /64, None for no IPv6 but link-local; ``ra_mode`` is how guests get addresses of it.
    private: guests reach each other only, the host is no part of it. internal: the host is there as ``gateway``, with
    DHCP and DNS. nat: internal, and guests reach the host's networks behind the host's address. external: guests are
    in the network that ``uplink`` leads to, whose DHCP and DNS serve them; so is the host, through the bridge.
    virtual: the network is on other hosts too, as ``overlay`` says, and no host is part of it.
    Raises ``Invalid`` (``switch.bridge``, ``switch.subnet``, ``switch.domain``, ``switch.forward``).
    """

    name: str
    bridge: str
    kind: SwitchKindName = "nat"
    subnet: str | None = None
    subnet6: str | None = None
    ra_mode: RaMode = "managed"
    dhcp: bool = True
    dns_domain: str = "inn"
    mtu: int = 1500
    forwards: tuple[Forward, ...] = ()
    dhcp_policy: DhcpPolicy = field(default_factory=DhcpPolicy)
    uplink: UplinkPolicy | None = None
    overlay: OverlayPolicy | None = None
    host_services: tuple[str, ...] = ()
    """What guests may use of the host beside DHCP and DNS: ``tcp/3142``, ``tcp/22@10.77.0.0/28``."""
    vlans: bool = False
    """Whether any of its cards has a VLAN, so that untagged ones are held to theirs."""
    uplink_rate_bits_per_s: int | None = None

    def __post_init__(self) -> None:
        _check_device(self.bridge, "switch.bridge")
        if self.subnet is None and self.kind in ("internal", "nat", "virtual"):
            raise Invalid("switch.subnet", f"switch {self.name} has no subnet", remedy="give one, such as 10.77.0.0/24")
        if self.subnet is not None:
            parse_subnet(self.subnet)
        if self.subnet6 is not None:
            parse_subnet6(self.subnet6)
        if not _DOMAIN.match(self.dns_domain):
            raise Invalid("switch.domain", f"{self.dns_domain!r} is not a DNS domain", remedy="use lower-case letters")
        if (self.overlay is not None) != (self.kind == "virtual"):
            raise Invalid(
                "switch.overlay",
                f"switch {self.name} is {self.kind}: a virtual switch, and no other, has an overlay",
                remedy="make it with --kind virtual --vni N --provider ADDRESS",
            )
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
        """The first address of the subnet, which routes; the host's own unless the switch is virtual."""
        if self.network is None or self.kind in ("private", "external"):
            return None
        return str(self.network.network_address + 1)

    @property
    def way_out(self) -> bool:
        """Whether guests reach the host's networks."""
        return self.kind == "nat" or (self.overlay is not None and self.overlay.gateway)

    @property
    def host_address(self) -> str | None:
        """The host's address on the switch; None where it is no part of it."""
        return self.gateway if self.kind != "virtual" else None

    @property
    def network6(self) -> ipaddress.IPv6Network | None:
        return None if self.subnet6 is None else ipaddress.IPv6Network(self.subnet6)

    @property
    def gateway6(self) -> str | None:
        """The host's IPv6 address on the switch, likewise."""
        return gateway6(self.network6) if self.network6 is not None and self.host_address is not None else None

    @property
    def serves_dhcp(self) -> bool:
        return self.dhcp and self.gateway is not None

    @property
    def outside(self) -> str | None:
        """The bridge port that leads outside: DHCP servers and routers there are trusted. None without an uplink."""
        return self.uplink.port(self.bridge) if self.uplink is not None else None

    @property
    def mac(self) -> str:
        """The bridge's own mac: always the same for the same bridge, so that guests' neighbour caches stay true.

        With an uplink its mac: the outside knows the host by it.
        """
        if self.uplink is not None and self.uplink.mac is not None and self.uplink.via != "cable":
            return self.uplink.mac
        digest = hashlib.sha256(self.bridge.encode()).digest()
        return ":".join(f"{octet:02x}" for octet in (0x0A, *digest[:5]))


def link_local_of(mac: str) -> str:
    """The IPv6 link-local address made of a mac (modified EUI-64, RFC 4291)."""
    return interface_address(LINK_LOCAL, mac)


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


def _check_mac(mac: str) -> None:
    if not _MAC.match(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise Invalid(
            "nic.mac",
            f"{mac!r} is not a card's mac",
            cause="a mac is six lower-case octets such as 52:54:00:12:34:56, not a group address",
            remedy="leave the mac out, so that one is chosen",
        )


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
