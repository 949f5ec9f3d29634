"""What a change of the switch costs: rules of one port among thousands, many ports at once, meters, compiling."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from bench.network.world import INN_ID, SWITCH, new_namespace, port_of, ports_of, within
from bench.report import Context, Row, at_most
from innkeeper.network import meter_dump
from innkeeper.network.elements import Elements
from innkeeper.network.kernel import Kernel
from innkeeper.network.nft import Nft
from innkeeper.network.policy import PortPolicy
from innkeeper.network.traffic import Meter, TrafficPolicy
from innkeeper.network.transaction import Schema, change, compile_elements, elements_of, replace as replace_all
from innkeeper.system import process

T = TypeVar("T")
PORTS = 4000
MADE = 1000
_CHANGE_MS, _COMPILE_S, _METERS_MS, _MAKE_S, _REMOVE_S = 2.0, 1.0, 50.0, 5.0, 3.0
_SCHEMA = Schema(INN_ID)
_COMPILE_ROUNDS, _READ_ROUNDS = 3, 5


def compiling(_: Context) -> list[Row]:
    """From policies to the text of a transaction."""
    ports, took = ports_of(PORTS), []
    for _round in range(_COMPILE_ROUNDS):
        began = time.perf_counter()
        replace_all(_SCHEMA, compile_elements([(SWITCH, ports)]))
        took.append(time.perf_counter() - began)
    return [at_most(f"compile {PORTS:,} ports", min(took), "s", _COMPILE_S)]


@contextmanager
def _loaded(namespace: str, ports: list[PortPolicy]) -> Iterator[tuple[Nft, Elements]]:
    """Rules of those ports in a namespace, and nftables open there: for calls within it."""
    nft, elements = within(namespace, Nft), compile_elements([(SWITCH, ports)])
    try:
        nft.apply(replace_all(_SCHEMA, elements))
        yield nft, Elements(elements)
    finally:
        nft.close()


def one_port(context: Context) -> list[Row]:
    """The rules of one port added, changed and removed while thousands stand, beside a process of nft for the same."""
    rounds = 20 if context.quick else 100
    new = port_of(PORTS)
    changed = replace(new, guards=replace(new.guards, arp=False), ipv4=(*new.ipv4, "10.64.250.1"))
    with new_namespace("change") as namespace, _loaded(namespace, ports_of(PORTS)) as (nft, elements):
        mine: dict[str, list[float]] = {"add": [], "change": [], "remove": []}
        forked: dict[str, list[float]] = {name: [] for name in mine}
        for _ in range(rounds):
            steps: dict[str, tuple[PortPolicy | None, PortPolicy | None]] = {
                "add": (None, new),
                "change": (new, changed),
                "remove": (changed, None),
            }
            for name, step in steps.items():
                began = time.perf_counter()
                gone, come = elements.difference(*(elements_of(SWITCH, one) if one else frozenset() for one in step))
                nft.apply(change(_SCHEMA, gone, come))
                elements.move(gone, come)
                mine[name].append(1000 * (time.perf_counter() - began))
            for name, step in steps.items():
                text = change(_SCHEMA, *(elements_of(SWITCH, one) if one else frozenset() for one in step))
                took, _ = within(
                    namespace, partial(_timed, partial(process.run, ["nft", "-f", "-"], stdin=text.encode()))
                )
                forked[name].append(took)
    return [
        at_most(
            f"{name} one port at {PORTS:,}, rules",
            statistics.median(mine[name]),
            "ms",
            _CHANGE_MS,
            "process of nft",
            statistics.median(forked[name]),
        )
        for name in mine
    ]


def meters(_: Context) -> list[Row]:
    """Counters of thousands of meters read, beside a listing by nft as JSON."""
    meter = TrafficPolicy(meters=(Meter("in", "0.0.0.0/0"),))
    ports = [replace(port, traffic=meter) for port in ports_of(PORTS)]
    with new_namespace("meters") as namespace, _loaded(namespace, ports):
        mine, listed = [], []
        for _round in range(_READ_ROUNDS):
            took, counts = within(namespace, partial(_timed, partial(meter_dump.read_counters, _SCHEMA.table)))
            assert sum("/" in name for name in counts) == PORTS
            mine.append(took)
            command = ["nft", "-j", "list", "counters", "table", "bridge", _SCHEMA.table]
            took, _text = within(namespace, partial(_timed, partial(process.run, command)))
            listed.append(took)
    return [at_most(f"{PORTS:,} meters read", min(mine), "ms", _METERS_MS, "nft -j list counters", min(listed))]


def many_ports(context: Context) -> list[Row]:
    """Ports made and removed by what the daemon uses: rules, taps, bridge, dnsmasq."""
    ports = ports_of(MADE)

    def work(directory: Path) -> tuple[float, float, float]:
        kernel = Kernel(INN_ID, directory)
        try:
            kernel.start([])
            kernel.ensure(SWITCH, [])
            made, _ = _timed(lambda: kernel.ensure(SWITCH, ports))
            removed, _ = _timed(lambda: kernel.ensure(SWITCH, []))
            kernel.ensure(SWITCH, ports)
            whole, _ = _timed(lambda: kernel.remove(SWITCH.bridge))
        finally:
            kernel.remove_all()
            kernel.close()
        return made / 1000, removed / 1000, whole / 1000

    context.work.chmod(0o755)
    with new_namespace("many") as namespace:
        made, removed, whole = within(namespace, lambda: work(context.work / "switches"))
    return [
        at_most(f"{MADE:,} ports made", made, "s", _MAKE_S),
        at_most(f"{MADE:,} ports removed", removed, "s", _REMOVE_S),
        at_most(f"a switch of {MADE:,} ports removed", whole, "s", _REMOVE_S),
    ]


def _timed(function: Callable[[], T]) -> tuple[float, T]:
    began = time.perf_counter()
    result = function()
    return 1000 * (time.perf_counter() - began), result
