"""Measurements of Innkeeper beside its peers, made in one run on one machine: ``make bench``.

Each module has ``rows(context) -> list[Row]``; ``MODULES`` says which there are and in which order they run.
"""

from __future__ import annotations

from collections.abc import Callable

from bench import (
    backup,
    changes,
    cold,
    host,
    latency,
    many,
    memory,
    nbd,
    network,
    recovery,
    sequential,
    snapshot,
    space,
    stages,
)
from bench.report import Context, Row

MODULES: dict[str, Callable[[Context], list[Row]]] = {
    "nbd": nbd.rows,
    "many": many.rows,
    "cold": cold.rows,
    "sequential": sequential.rows,
    "snapshot": snapshot.rows,
    "changes": changes.rows,
    "latency": latency.rows,
    "recovery": recovery.rows,
    "memory": memory.rows,
    "space": space.rows,
    "stages": stages.rows,
    "backup": backup.rows,
    "host": host.rows,
    "network": network.rows,
}
