"""Which VLAN a port belongs to, and which ports therefore reach each other. Frozen values, checked here. Pure.

The membership is this: ``reaches`` says who may speak to whom, and whatever is compiled must let through exactly that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from innkeeper.model.problems import Invalid

PortMode = Literal["access", "trunk", "isolated", "community", "promiscuous"]
Ranges = tuple[tuple[int, int], ...]
"""(first, last) VLAN ids, ascending, without overlap."""

OWN_VLAN = 1
"""The switch's own: the host and untagged cards are in it."""


@dataclass(frozen=True, slots=True)
class VlanPolicy:
    """``vlan_id``: the VLAN of an access port; a trunk's native one (None: none); a private VLAN's primary.

    ``others``: the tagged VLANs of a trunk, the secondaries of a promiscuous port, the one secondary of others.
    Raises ``Invalid`` (``nic.vlan``).
    """

    mode: PortMode = "access"
    vlan_id: int | None = OWN_VLAN
    others: Ranges = ()

    def __post_init__(self) -> None:
        ids = [*([] if self.vlan_id is None else [self.vlan_id]), *(bound for pair in self.others for bound in pair)]
        if any(not 1 <= one <= 4094 for one in ids):
            raise _invalid(f"{ids} are not VLAN ids", "choose ids of 1 to 4094")
        if self.vlan_id is None and self.mode != "trunk":
            raise _invalid(f"a port of mode {self.mode} has no VLAN", "name its VLAN")
        if (self.mode == "access") != (not self.others) and self.mode != "trunk":
            raise _invalid(f"a port of mode {self.mode} with VLANs {self.others}", "name what the mode needs")
        if self.mode in ("isolated", "community") and self.others != ((self.secondary, self.secondary),):
            raise _invalid(f"a port of mode {self.mode} has more than one secondary VLAN", "name one")

    @property
    def secondary(self) -> int:
        """The secondary VLAN of an isolated or community port."""
        return self.others[0][0]

    @property
    def is_private(self) -> bool:
        return self.mode not in ("access", "trunk")

    @property
    def takes_untagged(self) -> bool:
        return self.vlan_id is not None

    @property
    def with_host(self) -> bool:
        """Whether it is in the VLAN that the host is in."""
        return self.vlan_id == OWN_VLAN or (self.mode == "trunk" and within(self.others, OWN_VLAN))

    def tagged(self) -> Ranges:
        """The VLANs whose frames carry a tag at this port."""
        if self.mode != "trunk":
            return ()
        return self.others if self.vlan_id is None else without(self.others, self.vlan_id)


UNTAGGED = VlanPolicy()
OUTSIDE = VlanPolicy("trunk", OWN_VLAN, ((2, 4094),))
"""What the port that leads outside may carry; it does carry what the switch's cards need (``carried_outside``)."""


def reaches(one: VlanPolicy, other: VlanPolicy) -> bool:
    """Whether two ports of a switch share a VLAN in which they may speak; symmetric."""
    if one.is_private != other.is_private:
        return False
    if one.is_private:
        return one.vlan_id == other.vlan_id and _within_primary(one, other)
    return any(
        first <= other_last and other_first <= last
        for first, last in _carried(one)
        for other_first, other_last in _carried(other)
    )


def carries(policy: VlanPolicy, vlan_id: int) -> bool:
    """Whether frames of that VLAN come to the port from the outside."""
    return policy.vlan_id == vlan_id or (policy.mode == "trunk" and within(policy.others, vlan_id))


def carried_outside(policies: Iterable[VlanPolicy]) -> Ranges:
    """The VLANs whose frames carry a tag at the port that leads outside: all that a card is in, but the switch's own.

    A private VLAN is its primary there, whose members outside are promiscuous ones.
    """
    ids: set[int] = set()
    for policy in policies:
        own = () if policy.vlan_id is None else (policy.vlan_id,)
        ids.update(own, *(range(first, last + 1) for first, last in policy.tagged()))
    return ranges(ids - {OWN_VLAN})


def ranges(ids: Iterable[int]) -> Ranges:
    """Ids as the fewest ranges."""
    found: list[tuple[int, int]] = []
    for one in sorted(ids):
        if found and found[-1][1] + 1 == one:
            found[-1] = found[-1][0], one
        else:
            found.append((one, one))
    return tuple(found)


def _within_primary(one: VlanPolicy, other: VlanPolicy) -> bool:
    if one.mode == "promiscuous":
        return other.mode == "promiscuous" or within(one.others, other.secondary)
    if other.mode == "promiscuous":
        return within(other.others, one.secondary)
    return one.mode == other.mode == "community" and one.secondary == other.secondary


def _carried(policy: VlanPolicy) -> Ranges:
    own = () if policy.vlan_id is None else ((policy.vlan_id, policy.vlan_id),)
    return (*own, *policy.others)


def within(ranges: Ranges, vlan_id: int) -> bool:
    return any(first <= vlan_id <= last for first, last in ranges)


def without(ranges: Ranges, vlan_id: int) -> Ranges:
    """``ranges`` with ``vlan_id`` cut out."""
    cut: list[tuple[int, int]] = []
    for first, last in ranges:
        if first <= vlan_id <= last:
            cut += [pair for pair in ((first, vlan_id - 1), (vlan_id + 1, last)) if pair[0] <= pair[1]]
        else:
            cut.append((first, last))
    return tuple(cut)


def _invalid(detail: str, remedy: str) -> Invalid:
    return Invalid("nic.vlan", detail, remedy=remedy)
