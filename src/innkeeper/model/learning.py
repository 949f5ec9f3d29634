"""Addresses that are known from what a DHCP server outside said."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel, ConfigDict


class LearnedAddress(BaseModel):
    """An address that ``client`` (option 61, hexadecimal) of the card ``mac`` was given.

    ``lease_s`` is for how long: None for ever, 0 when it was over before its time. ``ends_at`` None: never.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    address: str
    mac: str
    client: str = ""
    learned_at: datetime
    lease_s: int | None = None
    ends_at: datetime | None = None
