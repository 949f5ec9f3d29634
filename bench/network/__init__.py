"""The virtual switch: what guards cost a frame, a stream, a change; how well bounds of bandwidth hold. Needs root."""

from __future__ import annotations

from bench.network import changes, lists, packets, rates
from bench.report import Context, Row


def rows(context: Context) -> list[Row]:
    """The rows of the virtual switch."""
    found = []
    parts = (
        packets.packets,
        packets.tcp,
        lists.stateful,
        rates.rates,
        changes.compiling,
        changes.one_port,
        changes.meters,
    )
    for part in (*parts, changes.many_ports):
        found += part(context)
    return found
