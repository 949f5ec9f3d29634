"""Measurements of Innkeeper beside its peers, made in one run on one machine: ``make bench``.

Each module has ``rows(context) -> list[Row]``; ``MODULES`` says which there are and in which order they run.
"""

from __future__ import annotations

from collections.abc import Callable

from bench import backup, host, nbd, snapshot
from bench.report import Context, Row

MODULES: dict[str, Callable[[Context], list[Row]]] = {
    "nbd": nbd.rows,
    "snapshot": snapshot.rows,
    "backup": backup.rows,
    "host": host.rows,
}
