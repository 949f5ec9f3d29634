"""The VLAN of a card, as IEEE 802.1Q and Hyper-V's Set-VMNetworkAdapterVlan name its modes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_VLAN_ID = 4094
VlanId = Annotated[int, Field(ge=1, le=MAX_VLAN_ID)]
VlanMode = Literal["untagged", "access", "trunk", "isolated", "community", "promiscuous"]
_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")


def vlan_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """``10,20-30`` as (first, last) pairs, in order, with what overlaps or touches joined. Raises ``ValueError``."""
    found: list[tuple[int, int]] = []
    for part in text.replace(" ", "").split(","):
        match = _RANGE.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no VLAN id and no range of them; write for example 10,20-30")
        first, last = int(match[1]), int(match[2] or match[1])
        if not 1 <= first <= last <= MAX_VLAN_ID:
            raise ValueError(f"{part} is not within 1-{MAX_VLAN_ID}, low to high")
        found.append((first, last))
    joined: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], last))
        else:
            joined.append((first, last))
    return tuple(joined)


def vlan_list(ranges: tuple[tuple[int, int], ...]) -> str:
    """The shortest text of which ``vlan_ranges`` makes them."""
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in ranges)


VlanList = Annotated[str, AfterValidator(lambda text: vlan_list(vlan_ranges(text)))]
"""VLAN ids and ranges of them in order, such as ``10,20-30``."""

_MEMBERS: dict[str, tuple[str, ...]] = {
    "untagged": (),
    "access": ("vlan_id",),
    "trunk": ("allowed_vlan_ids",),
    "isolated": ("primary_vlan_id", "secondary_vlan_id"),
    "community": ("primary_vlan_id", "secondary_vlan_id"),
    "promiscuous": ("primary_vlan_id", "secondary_vlan_ids"),
}
"""Mode -> what it cannot be without; a trunk may have a native VLAN besides."""


class NicVlan(BaseModel):
    """Where a card belongs. VLAN 1 is the switch's own: the host and all untagged cards are in it.

    access: in one VLAN, without knowing. trunk: its frames carry the tags of ``allowed_vlan_ids``; those without a tag
    belong to ``native_vlan_id``, or are dropped. isolated, community, promiscuous: a private VLAN within the primary:
    promiscuous cards reach all of their secondaries, a community its own, isolated ones nobody else.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: VlanMode = "untagged"
    vlan_id: VlanId | None = None
    allowed_vlan_ids: VlanList | None = None
    native_vlan_id: VlanId | None = None
    primary_vlan_id: VlanId | None = None
    secondary_vlan_id: VlanId | None = None
    secondary_vlan_ids: VlanList | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = {name for name, value in self.model_dump(exclude={"mode"}).items() if value is not None}
        needed = set(_MEMBERS[self.mode])
        if missing := needed - given:
            raise ValueError(f"mode {self.mode} needs {', '.join(sorted(missing))}")
        optional = {"native_vlan_id"} if self.mode == "trunk" else set[str]()
        if surplus := given - needed - optional:
            raise ValueError(f"mode {self.mode} has no {', '.join(sorted(surplus))}")
        secondaries = vlan_ranges(self.secondary_vlan_ids or str(self.secondary_vlan_id or MAX_VLAN_ID))
        primary = self.primary_vlan_id
        if primary is not None and any(first <= primary <= last for first, last in secondaries):
            raise ValueError(f"{primary} cannot be the primary VLAN and a secondary one")
        return self

    def __str__(self) -> str:
        """As it is typed: ``access:10``, ``trunk:10,20-30,native=1``, ``isolated:100,101``."""
        members = [str(value) for name in _MEMBERS[self.mode] if (value := getattr(self, name)) is not None]
        members += [f"native={self.native_vlan_id}"] if self.native_vlan_id is not None else []
        return f"{self.mode}:{','.join(members)}" if members else self.mode


def parse_vlan(text: str) -> NicVlan:
    """What ``NicVlan.__str__`` writes. Raises ``ValueError`` (pydantic's too)."""
    mode, _, rest = text.partition(":")
    if mode not in _MEMBERS:
        raise ValueError(f"{mode!r} is no mode; choose one of {', '.join(_MEMBERS)}")
    parts = [part.strip() for part in rest.split(",")] if rest else []
    members: dict[str, Any] = {}
    natives = [part for part in parts if part.startswith("native=")]
    if natives:
        members["native_vlan_id"] = natives[-1].removeprefix("native=")
        parts = [part for part in parts if not part.startswith("native=")]
    names = list(_MEMBERS[mode])
    while names and parts:
        name = names.pop(0)
        if name.endswith("_ids"):
            members[name], parts = ",".join(parts), []
        else:
            members[name] = parts.pop(0)
    if parts:
        raise ValueError(f"{','.join(parts)!r} is too much for mode {mode}")
    return NicVlan.model_validate({"mode": mode, **members})
