"""A measurement beside its peer, and how a run of them is shown and kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True)
class Context:
    """How this run is made."""

    work: Path
    """An empty directory on the file system under test."""
    quick: bool
    """Short runs: they show that everything works, their figures are rough."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``ratio`` is how many times better than the peer, whatever better means."""

    name: str
    value: float
    unit: str
    peer: str | None = None
    peer_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None


def higher(name: str, value: float, unit: str, peer: str, peer_value: float, goal: float) -> Row:
    """A row where more is better and ``goal`` is the ratio wanted."""
    ratio = value / peer_value if peer_value else 0.0
    return Row(name, value, unit, peer, peer_value, ratio, f">= {goal:g} x", ratio >= goal)


def lower(name: str, value: float, unit: str, peer: str, peer_value: float, goal: float) -> Row:
    """A row where less is better and ``goal`` is how many times less is wanted."""
    ratio = peer_value / value if value else 0.0
    return Row(name, value, unit, peer, peer_value, ratio, f">= {goal:g} x", ratio >= goal)


def at_most(
    name: str, value: float, unit: str, limit: float, peer: str | None = None, peer_value: float | None = None
) -> Row:
    """A row that has a limit; a peer only shows what others take."""
    ratio = peer_value / value if peer_value is not None and value else None
    return Row(name, value, unit, peer, peer_value, ratio, f"<= {limit:g} {unit}", value <= limit)


def _cells(row: Row) -> tuple[str, ...]:
    def number(value: float | None, suffix: str = "") -> str:
        return "" if value is None else f"{value:,.0f}{suffix}" if abs(value) >= 100 else f"{value:,.2f}{suffix}"

    met = "" if row.met is None else "yes" if row.met else "NO"
    peer = f"{row.peer} {number(row.peer_value)}" if row.peer else ""
    return row.name, f"{number(row.value)} {row.unit}", peer, number(row.ratio, " x"), row.goal or "", met


def table(rows: Sequence[Row]) -> str:
    """The rows as text in columns."""
    lines = [("work", "innkeeper", "peer", "ratio", "goal", "met"), *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def keep(rows: Sequence[Row], path: Path = RESULTS / "latest.json") -> None:
    """Write the rows as a JSON list of ``{name, value, unit, peer, peer_value, ratio, goal, met}``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
