"""What a capture of a card's frames may be."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from innkeeper.model.sizes import GIB, MIB


class CaptureStart(BaseModel):
    """``filter`` as pcap-filter(7) says, empty for all frames.

    It ends after ``seconds``, ``max_bytes`` of pcap or ``count`` frames.
    """

    model_config = ConfigDict(extra="forbid")

    filter: Annotated[str, Field(max_length=2000)] = ""
    seconds: Annotated[float, Field(gt=0, le=3600)] = 10.0
    count: Annotated[int, Field(ge=1)] | None = None
    max_bytes: Annotated[int, Field(ge=1024, le=GIB)] = 64 * MIB
