"""How things look: tables, details, JSON, sizes and times for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, TypeAdapter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from innkeeper.model.sizes import format_size
from innkeeper.model.views import Plan

T = TypeVar("T")

_HIDDEN = frozenset({"revision", "attachments", "generation_id", "process_start"})
_STATE_STYLES: Mapping[str, str] = {
    "running": "green",
    "succeeded": "green",
    "ok": "green",
    "failed": "red",
    "crashed": "red",
    "warning": "yellow",
    "paused": "yellow",
    "starting": "cyan",
    "stopping": "cyan",
    "creating": "cyan",
}


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """A column of a table: its heading, how a row's cell is found, and its alignment."""

    heading: str
    cell: Callable[[T], object]
    right: bool = False


def stdout() -> Console:
    """A console for data; wide enough not to fold when nobody looks."""
    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000, highlight=False, soft_wrap=False)


def as_json(value: BaseModel | Sequence[BaseModel]) -> str:
    """``value`` as indented JSON."""
    plain = TypeAdapter(Any).dump_python(value, mode="json")
    return json.dumps(plain, indent=2, ensure_ascii=False)


def ago(moment: datetime | None) -> str:
    """How long ago: ``5 s``, ``3 min``, ``2 h``, ``9 d``."""
    if moment is None:
        return ""
    seconds = max(0, int((datetime.now(UTC) - moment).total_seconds()))
    for limit, unit, factor in ((60, "s", 1), (3600, "min", 60), (86400, "h", 3600)):
        if seconds < limit:
            return f"{seconds // factor} {unit}"
    return f"{seconds // 86400} d"


def text(value: object) -> str:
    """One value for people."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={text(item)}" for key, item in value.items()) or "-"
    if isinstance(value, (list, tuple)):
        return ", ".join(text(item) for item in value) or "-"
    return str(value)


def table(columns: Sequence[Column[T]], rows: Iterable[T]) -> None:
    """Print ``rows``; headings in capitals, no lines, so that it can be read by eye and cut by awk."""
    drawn = Table(box=None, show_edge=False, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        drawn.add_column(column.heading.upper(), justify="right" if column.right else "left", no_wrap=True)
    for row in rows:
        cells = [text(column.cell(row)) for column in columns]
        drawn.add_row(*(Text(cell, style=_STATE_STYLES.get(cell, "")) for cell in cells))
    console = stdout()
    with console.capture() as captured:
        console.print(drawn)
    for line in captured.get().splitlines():
        sys.stdout.write(line.rstrip() + "\n")


def _lines(value: BaseModel, prefix: str = "") -> Iterable[tuple[str, str]]:
    for name in type(value).model_fields:
        if name in _HIDDEN:
            continue
        item, label = getattr(value, name), f"{prefix}{name}"
        if name.endswith("_bytes") and isinstance(item, int) and not isinstance(item, bool):
            yield label.removesuffix("_bytes"), f"{format_size(item)} ({item})"
        elif isinstance(item, BaseModel):
            yield from _lines(item, f"{label}." if name not in ("spec", "status") else prefix)
        elif isinstance(item, list) and item and isinstance(item[0], BaseModel):
            for number, part in enumerate(item):
                yield f"{label}[{number}]", brief(part)
        elif isinstance(item, Mapping) and item and all(isinstance(key, str) for key in item):
            for key, inner in item.items():
                yield f"{label}.{key}", text(inner)
        elif item not in (None, "", [], {}):
            yield label, text(item)


def brief(part: BaseModel) -> str:
    """A part in one line."""
    return "  ".join(f"{name}={content}" for name, content in _lines(part) if name not in ("id", "created_at"))


def details(value: BaseModel) -> None:
    """Print every member of ``value`` that says something, one a line."""
    rows = list(_lines(value))
    width = max((len(name) for name, _ in rows), default=0)
    for name, content in rows:
        sys.stdout.write(f"{name:<{width}}  {content}\n")


def plan_text(plan: Plan) -> str:
    """A plan for people."""
    lines = [plan.summary, *(f"  - {step}" for step in plan.steps)]
    if plan.diff:
        lines += ["", plan.diff.rstrip()]
    return "\n".join([*lines, "", "(dry run: nothing has been done)"])
