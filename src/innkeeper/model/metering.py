"""What the meters of cards have counted."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class MeterCount(BaseModel):
    """Packets and bytes (of frames, without their Ethernet headers) between a card and a remote prefix, one way."""

    model_config = ConfigDict(extra="forbid")

    direction: Literal["in", "out"]
    remote: str
    packets: int = 0
    bytes: int = 0
    seen_packets: int = 0
    """What the kernel's own counter showed last: it starts again when the port does."""
    seen_bytes: int = 0


class MeterReport(BaseModel):
    """What the meters of a card have counted since ``since``, over restarts of its vm, the inn and the host."""

    model_config = ConfigDict(extra="forbid")

    nic_id: str
    nic_name: str
    since: datetime
    counts: list[MeterCount] = Field(default_factory=list)
