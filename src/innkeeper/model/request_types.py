"""What request bodies are made of: checked names, sizes, addresses, and what all ``*Set`` share."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

from innkeeper.model.names import check_image_name, check_labels, check_name
from innkeeper.model.problems import Invalid
from innkeeper.model.resources import Part
from innkeeper.model.sizes import MIB, TIB

MAX_DISK_BYTES = 64 * TIB
MAX_MEMORY_BYTES = 16 * TIB


def _name(value: str) -> str:
    try:
        return check_name(value)
    except Invalid as wrong:
        raise ValueError(f"{value!r} is not a valid name: {wrong.cause}") from wrong


def _image_name(value: str) -> str:
    try:
        return check_image_name(value)
    except Invalid as wrong:
        raise ValueError(f"{value!r} is not a valid image name; write for example debian/12") from wrong


def _labels(value: dict[str, str]) -> dict[str, str]:
    try:
        return check_labels(value)
    except Invalid as wrong:
        raise ValueError(wrong.detail) from wrong


def _ipv4(value: str) -> str:
    return str(ipaddress.IPv4Address(value))


def _ipv6(value: str) -> str:
    return str(ipaddress.IPv6Address(value))


def _card_mtu(value: int) -> int:
    if value and not 1280 <= value <= 9216:
        raise ValueError(f"{value} is no MTU: 1280 to 9216, or 0 for the switch's")
    return value


def _ip_address(value: str) -> str:
    return str(ipaddress.ip_address(value))


def _card_address(value: str) -> str:
    address = ipaddress.ip_address(value)
    if address.is_multicast or address.is_unspecified or address.is_loopback or "%" in value:
        raise ValueError(f"{value} cannot be the address of a card")
    return str(address)


def _card_mac(value: str) -> str:
    mac = value.lower()
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise ValueError(f"{value!r} is not a card's mac")
    return mac


def _subnet(value: str) -> str:
    network = ipaddress.IPv4Network(value)
    if not 8 <= network.prefixlen <= 29:
        raise ValueError(f"{value} must be between /8 and /29")
    return str(network)


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"{value!r} is not an absolute path")
    return value


def _device_place(value: str) -> str:
    if "://" not in value:
        return _absolute(value)
    if not re.fullmatch(r"(s3|file)://[^\s?#@\0]+", value):
        raise ValueError(f"{value!r} is no s3://BUCKET/PREFIX")
    return value


Name = Annotated[str, AfterValidator(_name)]
ImageName = Annotated[str, AfterValidator(_image_name)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
Ref = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@/-]*$")]
"""An id or a name."""
Ipv4 = Annotated[str, AfterValidator(_ipv4)]
Ipv6 = Annotated[str, AfterValidator(_ipv6)]
Subnet6Wish = Annotated[str, StringConstraints(min_length=2, max_length=43, pattern=r"^(auto|none|[0-9a-fA-F:]+/\d+)$")]
"""A /64; ``auto``: a free one is chosen; ``none``: no IPv6."""
IpAddress = Annotated[str, AfterValidator(_ip_address)]
CardAddress = Annotated[str, AfterValidator(_card_address)]
CardMac = Annotated[str, AfterValidator(_card_mac)]
Subnet = Annotated[str, AfterValidator(_subnet)]
HostPath = Annotated[str, StringConstraints(min_length=1, max_length=4000), AfterValidator(_absolute)]
DevicePlace = Annotated[str, StringConstraints(min_length=1, max_length=4000), AfterValidator(_device_place)]
DiskBytes = Annotated[int, Field(ge=512, le=MAX_DISK_BYTES, multiple_of=512)]
MemoryBytes = Annotated[int, Field(ge=32 * MIB, le=MAX_MEMORY_BYTES, multiple_of=MIB)]
CacheBytes = Annotated[int, Field(ge=8 * MIB, le=MAX_MEMORY_BYTES)]
ZstdLevel = Annotated[int, Field(ge=1, le=19)]
Cpus = Annotated[int, Field(ge=1, le=512)]
CardMtu = Annotated[int, AfterValidator(_card_mtu)]
"""0: the switch's."""
Port = Annotated[int, Field(ge=1, le=65535)]


class ResourceSet(Part):
    """What can be changed of every resource that has nothing else to set."""

    name: Name | None = None
    labels: Labels | None = None
    """All labels anew, not a difference."""
