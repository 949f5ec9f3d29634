"""What a card may take of the network, and what is done with its frames; directions are the vm's."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

BitRate = Annotated[int, Field(ge=64_000, le=32_000_000_000)]
"""Bits a second, of whole frames."""
Burst = Annotated[int, Field(ge=2048, le=256 * 1024 * 1024)]


Weight = Annotated[int, Field(ge=1, le=100)]
Dscp = Annotated[int, Field(ge=0, le=63)]
Pcp = Annotated[int, Field(ge=0, le=7)]


def _prefix(value: str) -> str:
    return str(ipaddress.ip_network(value, strict=False))


Prefix = Annotated[str, AfterValidator(_prefix)]
"""An IPv4 or IPv6 prefix, in its shortest form."""
Meters = Annotated[list[Prefix], Field(max_length=64)]


class NicTraffic(BaseModel):
    """Bandwidth, mirroring, marks and meters of a card.

    ``max_in`` is towards the vm, ``max_out`` from it; ``burst_bytes`` may pass at once before they hold (10 ms of them
    when absent). A switch's mirror destinations get copies of all frames of its sources. ``dscp`` is
    set on what the vm sends, ``pcp`` (802.1p) on what of that leaves by an external switch's uplink with a tag; None
    trusts its own. ``meters`` are the remote prefixes that are counted, in both
    directions: of several that hold an address, the longest. On the uplink of an external switch the card is sure of
    ``min_out`` bits a second, or of its ``min_weight`` in a hundred; what others leave it may use besides.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    max_in_bits_per_s: BitRate | None = None
    max_out_bits_per_s: BitRate | None = None
    burst_bytes: Burst | None = None
    mirror: Literal["none", "source", "destination"] = "none"
    dscp: Dscp | None = None
    pcp: Pcp | None = None
    meters: Meters = Field(default_factory=list)
    min_weight: Weight | None = None
    min_out_bits_per_s: BitRate | None = None

    @model_validator(mode="after")
    def _one_minimum(self) -> NicTraffic:
        if self.min_weight is not None and self.min_out_bits_per_s is not None:
            raise ValueError("a minimum is a weight or a rate, not both")
        return self


class NicTrafficSet(BaseModel):
    """Changes to it: what is absent stays, ``null`` clears; ``meters`` replaces all."""

    model_config = ConfigDict(extra="forbid")

    max_in_bits_per_s: BitRate | None = None
    max_out_bits_per_s: BitRate | None = None
    burst_bytes: Burst | None = None
    mirror: Literal["none", "source", "destination"] | None = None
    dscp: Dscp | None = None
    pcp: Pcp | None = None
    meters: Meters | None = None
    min_weight: Weight | None = None
    min_out_bits_per_s: BitRate | None = None

    @model_validator(mode="after")
    def _one_minimum(self) -> NicTrafficSet:
        if self.min_weight is not None and self.min_out_bits_per_s is not None:
            raise ValueError("a minimum is a weight or a rate, not both")
        return self

    def applied_to(self, traffic: NicTraffic) -> NicTraffic:
        """``traffic`` with these changes."""
        changes = self.model_dump(exclude_unset=True)
        if "mirror" in changes and changes["mirror"] is None:
            changes["mirror"] = "none"
        if changes.get("min_weight") is not None:
            changes.setdefault("min_out_bits_per_s", None)
        elif changes.get("min_out_bits_per_s") is not None:
            changes.setdefault("min_weight", None)
        if "meters" in changes and changes["meters"] is None:
            changes["meters"] = []
        return NicTraffic(**{**traffic.model_dump(), **changes})
