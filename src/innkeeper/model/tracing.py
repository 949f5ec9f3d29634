"""Asking which line decides about a packet, and whether one end of a switch reaches another."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from innkeeper.model.acl import WITH_PORTS, AclProtocol, protocol_number

_Port = Annotated[int, Field(ge=0, le=65_535)]


def _address(text: str) -> str:
    return str(ipaddress.ip_address(text))


IpAddress = Annotated[str, AfterValidator(_address)]


class _Ask(BaseModel):
    model_config = ConfigDict(extra="forbid")

    protocol: AclProtocol

    @model_validator(mode="after")
    def _one_protocol(self) -> _Ask:
        if self.number is None:
            raise ValueError("name one protocol")
        return self

    @property
    def number(self) -> int | None:
        return protocol_number(self.protocol)


class PacketAsk(_Ask):
    """A packet at a card's port, ``in`` towards the vm or ``out`` from it; of ICMP an echo request unless said.

    ``local`` is the card's address when absent. ``fragment``: a later one, which shows no ports.
    """

    direction: Literal["in", "out"]
    protocol: AclProtocol = "tcp"
    remote: IpAddress
    local: IpAddress | None = None
    remote_port: _Port | None = None
    local_port: _Port | None = None
    remote_mac: Annotated[str, Field(pattern=r"^([0-9a-f]{2}:){5}[0-9a-f]{2}$")] | None = None
    icmp_type: Annotated[int, Field(ge=0, le=255)] | None = None
    fragment: bool = False

    @model_validator(mode="after")
    def _with_ports(self) -> PacketAsk:
        ports = (self.remote_port, self.local_port)
        if self.number not in WITH_PORTS and ports != (None, None):
            raise ValueError(f"protocol {self.protocol} has no ports")
        if self.number in WITH_PORTS and not self.fragment and None in ports:
            raise ValueError(f"a packet of {self.protocol} has a local and a remote port")
        return self


class ReachAsk(_Ask):
    """Whether ``source`` reaches ``target``: each a vm, a card, or an address of the host or beyond it.

    ``port`` is the target's; of ICMP an echo is asked for.
    """

    source: str = Field(min_length=1, max_length=200)
    target: str = Field(min_length=1, max_length=200)
    protocol: AclProtocol
    port: _Port | None = None

    @model_validator(mode="after")
    def _with_port(self) -> ReachAsk:
        if (self.number in WITH_PORTS) != (self.port is not None):
            raise ValueError("name a port of tcp, udp and sctp, and of nothing else: tcp/443, icmp")
        return self


class TraceStep(BaseModel):
    """What a packet comes by: where, whether it passes, which line or guard says so, and whether that is logged."""

    where: str
    allowed: bool
    line: str
    logged: bool = False


class Trace(BaseModel):
    """The steps up to the one that it does not pass, if there is one."""

    allowed: bool
    steps: list[TraceStep] = Field(default_factory=list)
