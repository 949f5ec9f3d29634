"""The guards of switches and cards: what a port's frames are held to."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

GuardName = Literal["mac", "ip", "arp", "nd", "dhcp", "router", "frame", "storm"]
GUARD_NAMES: tuple[GuardName, ...] = ("mac", "ip", "arp", "nd", "dhcp", "router", "frame", "storm")
TAG_ETHERTYPES = (0x8100, 0x88A8, 0x9100)
"""VLAN tags: behind one, everything would get around the guards."""
_BEFORE_ND = {"mac", "ip", "arp", "dhcp", "router"}
"""The guards of documents from before neighbour discovery had one of its own."""


def _ethertype(value: int) -> int:
    if value in (*TAG_ETHERTYPES, 0x0800, 0x0806, 0x86DD):
        raise ValueError(f"{value:#06x} cannot be allowed: it is a VLAN tag, or passes already")
    return value


Ethertype = Annotated[int, Field(ge=0x0600, le=0xFFFF), AfterValidator(_ethertype)]
Ethertypes = Annotated[list[Ethertype], Field(max_length=32)]
PacketRate = Annotated[int, Field(ge=1, le=10_000_000)]
"""Frames a second."""


class Guards(BaseModel):
    """What holds for the ports of a switch that do not say otherwise.

    ``ethertypes`` pass beside ARP, IPv4 and IPv6. More frames a second than ``broadcast_per_s`` to all and than
    ``multicast_per_s`` to groups are dropped by the storm guard.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    mac: bool = True
    ip: bool = True
    arp: bool = True
    nd: bool = True
    dhcp: bool = True
    router: bool = True
    frame: bool = True
    storm: bool = True
    ethertypes: Ethertypes = Field(default_factory=list)
    broadcast_per_s: PacketRate = 1_000
    multicast_per_s: PacketRate = 10_000


class NicGuards(BaseModel):
    """The guards of a card: None is as its switch has it."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    mac: bool | None = None
    ip: bool | None = None
    arp: bool | None = None
    nd: bool | None = None
    dhcp: bool | None = None
    router: bool | None = None
    frame: bool | None = None
    storm: bool | None = None
    ethertypes: Ethertypes | None = None
    broadcast_per_s: PacketRate | None = None
    multicast_per_s: PacketRate | None = None

    def over(self, switch: Guards) -> Guards:
        """What holds at the card's port on a switch with those guards."""
        return Guards(**{**switch.model_dump(), **self.model_dump(exclude_none=True)})


class GuardsSet(NicGuards):
    """Changes to guards: what is absent stays, ``null`` is as the switch has it (of a switch: as at first)."""

    def applied_to(self, guards: NicGuards) -> NicGuards:
        """A card's guards with these changes."""
        return NicGuards(**{**guards.model_dump(), **self.model_dump(exclude_unset=True)})

    def applied_to_switch(self, guards: Guards) -> Guards:
        """A switch's guards with these changes."""
        wanted = self.model_dump(exclude_unset=True)
        kept = {name: value for name, value in guards.model_dump().items() if name not in wanted}
        return Guards(**kept, **{name: value for name, value in wanted.items() if value is not None})


def from_before(data: Any) -> Any:
    """A card's guards in a document that knows five: ``arp`` was discovery's too, without any all frames were free."""
    if not isinstance(data, dict) or set(data) != _BEFORE_ND:
        return data
    off = {name: False for name, on in data.items() if not on}
    if "arp" in off:
        off["nd"] = False
    return {**off, "frame": False, "storm": False} if len(off) > len(_BEFORE_ND) else off
