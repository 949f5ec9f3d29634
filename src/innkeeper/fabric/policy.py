"""A storage's policy: what is done with the data of the disks that live under it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from innkeeper.fabric.codecs import DEFAULT_LEVEL, MAX_LEVEL
from innkeeper.model.problems import Invalid

COMPRESSIONS = ("lz4", "zstd", "off")


@dataclass(frozen=True, slots=True)
class Policy:
    """``level`` counts for zstd only, and is 0 otherwise."""

    compression: str = "lz4"
    level: int = 0
    dedup: bool = True

    def changed(self, **wanted: Any) -> Policy:
        """This policy with some fields changed; None leaves one as it is, a level is chosen where zstd has none.

        Raises ``Invalid`` (``storage.compression``, ``storage.level``, ``storage.policy``).
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
