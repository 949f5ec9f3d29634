"""What request bodies are made of: checked names, sizes, addresses, and what all ``*Set`` share."""

from __future__ import annotations

import ipaddress
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


def _subnet(value: str) -> str:
    network = ipaddress.IPv4Network(value)
    if not 8 <= network.prefixlen <= 29:
        raise ValueError(f"{value} must be between /8 and /29")
    return str(network)


def _absolute(value: str) -> str:
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"{value!r} is not an absolute path")
    return value


Name = Annotated[str, AfterValidator(_name)]
ImageName = Annotated[str, AfterValidator(_image_name)]
Labels = Annotated[dict[str, str], AfterValidator(_labels)]
Ref = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@/-]*$")]
"""An id or a name."""
Ipv4 = Annotated[str, AfterValidator(_ipv4)]
Subnet = Annotated[str, AfterValidator(_subnet)]
HostPath = Annotated[str, StringConstraints(min_length=1, max_length=4000), AfterValidator(_absolute)]
DiskBytes = Annotated[int, Field(ge=512, le=MAX_DISK_BYTES, multiple_of=512)]
MemoryBytes = Annotated[int, Field(ge=32 * MIB, le=MAX_MEMORY_BYTES, multiple_of=MIB)]
CacheBytes = Annotated[int, Field(ge=8 * MIB, le=MAX_MEMORY_BYTES)]
ZstdLevel = Annotated[int, Field(ge=1, le=19)]
Cpus = Annotated[int, Field(ge=1, le=512)]
Port = Annotated[int, Field(ge=1, le=65535)]


class ResourceSet(Part):
    """What can be changed of every resource that has nothing else to set."""

    name: Name | None = None
    labels: Labels | None = None
    """All labels anew, not a difference."""
