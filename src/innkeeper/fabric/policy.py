"""A storage's policy: what is done with the data of the disks that live under it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from innkeeper.fabric.codecs import DEFAULT_LEVEL, MAX_LEVEL
from innkeeper.model.problems import Invalid

COMPRESSIONS = ("lz4", "zstd", "off")
TIERS = ("", "fast", "slow")


@dataclass(frozen=True, slots=True)
class Policy:
    """``level`` counts for zstd only, and is 0 otherwise.

    ``cold_level``: data that was not read for ``cold_after_s`` is packed again with zstd at that level; 0: it is not.
    ``quota_bytes`` bounds what the storage's disks hold together (holes left out, before deduplication and compression;
    0: no bound), ``reservation_bytes`` is kept free for them. ``tier`` and ``qos_id`` are for disks without their own.
    """

    compression: str = "lz4"
    level: int = 0
    dedup: bool = True
    cold_level: int = 0
    cold_after_s: float = 3 * 86400.0
    quota_bytes: int = 0
    reservation_bytes: int = 0
    tier: str = ""
    qos_id: str = ""

    @property
    def code(self) -> str:
        """What data is packed by."""
        return f"{self.compression}:{self.level}" if self.level else self.compression

    @property
    def cold_code(self) -> str:
        """What data that got cold is packed by."""
        return f"zstd:{self.cold_level}" if self.cold_level else self.code

    def changed(self, **wanted: Any) -> Policy:
        """This policy with some fields changed; None leaves one as it is, a level is chosen where zstd has none.

        Raises ``Invalid`` (``storage.compression``, ``storage.level``, ``storage.policy``, ``storage.quota``).
        """
        known = {field.name for field in fields(self)}
        if strange := sorted(set(wanted) - known):
            raise Invalid("storage.policy", f"a storage has no {', '.join(strange)}", remedy=f"it has {sorted(known)}")
        result = replace(self, **{name: value for name, value in wanted.items() if value is not None})
        if result.compression not in COMPRESSIONS:
            raise Invalid(
                "storage.compression",
                f"compression {result.compression!r} is unknown",
                remedy=f"use one of {', '.join(COMPRESSIONS)}",
            )
        _check_tier(result.tier)
        if not 0 <= result.cold_level <= MAX_LEVEL or result.cold_after_s < 0:
            raise Invalid(
                "storage.level",
                f"zstd has no level {result.cold_level} for data {result.cold_after_s} s cold",
                remedy=f"use a level from 1 to {MAX_LEVEL}, or 0 to leave cold data as it is",
            )
        if result.quota_bytes < 0 or result.reservation_bytes < 0:
            raise Invalid("storage.quota", "a quota or reservation cannot be negative", remedy="use 0 for none")
        if 0 < result.quota_bytes < result.reservation_bytes:
            raise Invalid(
                "storage.quota",
                f"{result.reservation_bytes} bytes cannot be reserved under a quota of {result.quota_bytes}",
                remedy="raise the quota or lower the reservation",
            )
        if result.compression != "zstd":
            if wanted.get("level"):
                raise Invalid(
                    "storage.level", f"{result.compression} has no levels", remedy="leave the level out, or use zstd"
                )
            return replace(result, level=0)
        result = replace(result, level=result.level or DEFAULT_LEVEL)
        if not 1 <= result.level <= MAX_LEVEL:
            raise Invalid(
                "storage.level", f"zstd has no level {result.level}", remedy=f"use a level from 1 to {MAX_LEVEL}"
            )
        return result

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Policy:
        """As meta has it; fields of later versions are refused there, so every field is known."""
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class DiskSettings:
    """What a disk has for itself: ``tier`` and ``qos_id`` go before the storage's; ``thick``: all of its size is kept
    free for what it does not hold yet."""

    tier: str = ""
    thick: bool = False
    qos_id: str = ""

    def changed(self, **wanted: Any) -> DiskSettings:
        """These settings with some changed; None leaves one as it is. Raises ``Invalid`` (``disk.tier``)."""
        result = replace(self, **{name: value for name, value in wanted.items() if value is not None})
        _check_tier(result.tier)
        return result

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> DiskSettings:
        return cls(**json.loads(text))


def _check_tier(tier: str) -> None:
    if tier not in TIERS:
        raise Invalid("disk.tier", f"there is no tier {tier!r}", remedy="use fast, slow, or none for what heat decides")
