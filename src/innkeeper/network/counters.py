"""What the guards dropped and the meters counted, read from the kernel."""

from __future__ import annotations

import re
from collections.abc import Iterable

from innkeeper.network import meter_dump, meters
from innkeeper.network.nft import Nft
from innkeeper.network.ruleset import COUNTED, Element
from innkeeper.network.traffic import DIRECTIONS, Direction, Meter
from innkeeper.network.transaction import read_counters

_COUNTER = re.compile(r"counter packets (\d+) bytes")


def port_counters(nft: Nft, table: str, elements: Iterable[Element], tap: str) -> dict[str, int]:
    """Guard -> packets dropped at ``tap``, whose elements are given, since it was plugged in.

    A guard that is off counts nothing. Raises ``Failed`` (``nft.refused``) when the rules are not there.
    """
    counting = {name: guard for guard, names in COUNTED.items() for name in names}
    dropped = dict.fromkeys(COUNTED, 0)
    for element in elements:
        if guard := counting.get(element.container):
            answer = nft.read_text(f"get element bridge {table} {element.container} {{ {tap} }}")
            dropped[guard] += sum(int(packets) for packets in _COUNTER.findall(answer))
    return dropped


def all_counters(nft: Nft, table: str) -> dict[str, dict[str, int]]:
    """Tap -> guard -> packets dropped, of all ports at once."""
    names = [name for names in COUNTED.values() for name in names]
    return read_counters([item for name in names for item in nft.read(f"list set bridge {table} {name}")])


def logged(nft: Nft, table: str) -> dict[str, dict[Direction, int]]:
    """Tap -> direction -> frames that rules that log have decided, logged or left out, of all ports with such rules."""
    found: dict[str, dict[Direction, int]] = {}
    for direction in DIRECTIONS:
        for item in nft.read(f"list set bridge {table} acl_logged_{direction}"):
            for entry in item.get("set", {}).get("elem", ()):
                counted = entry["elem"]
                found.setdefault(counted["val"], {})[direction] = counted["counter"]["packets"]
    return found


def metered(table: str) -> dict[str, dict[Meter, meter_dump.Count]]:
    """What the meters of all ports have counted, by tap."""
    found: dict[str, dict[Meter, meter_dump.Count]] = {}
    for name, count in meter_dump.read_counters(table).items():
        if "/" in name:
            tap, direction, remote = meters.read_name(name)
            found.setdefault(tap, {})[Meter(direction, remote)] = count
    return found
