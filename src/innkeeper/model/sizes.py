"""Byte sizes as people write them.

Suffixes are binary: ``512M`` is 512 MiB, as QEMU, Proxmox and Incus read them.
"""

from __future__ import annotations

import re

from innkeeper.model.problems import Invalid

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": TIB}
_PATTERN = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*$", re.IGNORECASE)


def parse_size(text: str, *, field: str = "size") -> int:
    """Bytes meant by ``text`` such as ``4G``, ``1.5T``, ``512MiB`` or ``65536``.

    Raises ``Invalid`` (``size.invalid``) naming ``field``.
    """
    match = _PATTERN.match(text)
    if not match:
        raise Invalid("size.invalid", f"{field}: {text!r} is not a size", remedy="write for example 512M, 4G or 1.5T")
    value = float(match[1]) * _FACTORS[match[2].upper()]
    if value != int(value):
        raise Invalid("size.invalid", f"{field}: {text!r} is not a whole number of bytes", remedy="use a smaller unit")
    return int(value)


def format_size(size_bytes: int) -> str:
    """``size_bytes`` for people: ``4.0 GiB``, ``512 B``."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{int(value)} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
