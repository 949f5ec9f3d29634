"""Frames a second and TCP through a bridge whose ports are guarded, beside the same bridge without rules and beside
what others load for as many ports.

All bridges stand at once and take turns, so that what else the machine does falls on each of them; a ratio is the
median of those of the turns. The two ports in use are in the middle of all: a list that is walked is walked half.
"""

from __future__ import annotations

import socket
import statistics
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack

from bench.network import peers
from bench.network.world import Ends, Load, World, guard, new_world, no_guard, ports_of, within
from bench.report import Context, Row

SIZES = (1, 100, 1000, 4000)
PEER_PORTS = 1000
_LEAST_RATE = 0.75
_LEAST_TCP = 0.9
_PORT = 5001
_PIECE_BYTES = 1 << 20


def _middle(count: int) -> Ends:
    ports = ports_of(max(2, count))
    return ports[(len(ports) - 1) // 2], ports[(len(ports) - 1) // 2 + 1]


def packets(context: Context) -> list[Row]:
    """Frames of 60 bytes a second."""
    turns, seconds = (5, 0.1) if context.quick else (15, 0.2)
    plans: dict[str, tuple[Ends, Load]] = {"none": (_middle(2), no_guard)}
    for count in SIZES:
        # one guarded port sends to one that is not
        plans[f"inn-{count}"] = _middle(count), guard(ports_of(count))
    others = {"Incus' list": ("incus", peers.incus, 50.0)}
    if peers.has_ebtables():
        others["libvirt's ebtables"] = ("libvirt", peers.libvirt, 8.0)
    else:
        print(f"{peers.EBTABLES} is not installed: no row of libvirt's rules", flush=True)
    for name, load, _ in others.values():
        plans[name] = _middle(PEER_PORTS), load(ports_of(PEER_PORTS))
    with ExitStack() as closing:
        worlds = {name: closing.enter_context(new_world(name, *plan)) for name, plan in plans.items()}
        found: dict[str, list[float]] = {name: [] for name in worlds}
        for turn in range(turns + 1):
            for name, world in worlds.items():
                rate = world.rate(seconds)
                if turn:
                    found[name].append(rate)
    rows = [
        _row(
            f"frames through the bridge, {count:,} guarded ports",
            found[f"inn-{count}"],
            "no guard",
            found["none"],
            _LEAST_RATE,
        )
        for count in SIZES
    ]
    slowest, fastest = (each(statistics.median(found[f"inn-{count}"]) for count in SIZES) for each in (min, max))
    rows.append(
        Row("the slowest of these sizes beside the fastest", slowest, "frames/s", "fastest", fastest, slowest / fastest)
    )
    for title, (name, _, goal) in others.items():
        mine = found[f"inn-{PEER_PORTS}"]
        rows.append(_row(f"frames through the bridge, {PEER_PORTS:,} ports", mine, title, found[name], goal))
    return rows


def _row(
    name: str, mine: Sequence[float], peer: str, others: Sequence[float], goal: float, unit: str = "frames/s"
) -> Row:
    ratio = statistics.median(one / other for one, other in zip(mine, others, strict=True))
    values = statistics.median(mine), statistics.median(others)
    return Row(name, values[0], unit, peer, values[1], ratio, f">= {goal:g} x", ratio >= goal)


def tcp(context: Context) -> list[Row]:
    """A TCP stream between two guests."""
    turns, seconds = (3, 0.5) if context.quick else (8, 1.0)
    most = SIZES[-1]
    with (
        new_world("tcp-none", _middle(most), no_guard) as plain,
        new_world("tcp-inn", _middle(most), guard(ports_of(most))) as guarded,
    ):
        pairs = [(_stream(guarded, seconds), _stream(plain, seconds)) for _ in range(turns + 1)][1:]
    mine, others = zip(*pairs, strict=True)
    return [_row(f"TCP, {most:,} guarded ports", mine, "no guard", others, _LEAST_TCP, "Gbit/s")]


def _stream(world: World, seconds: float) -> float:
    """Gbit/s of payload that reach the receiver."""
    listener = within(world.receiver, lambda: socket.create_server(("", _PORT)))
    taken: list[float] = []
    taker = threading.Thread(target=_take, args=(listener, taken))
    taker.start()
    try:
        with within(
            world.sender, lambda: socket.create_connection((world.ends[1].ipv4[0], _PORT), timeout=10)
        ) as given:
            piece = bytes(_PIECE_BYTES)
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                given.sendall(piece)
    finally:
        taker.join()
        listener.close()
    return taken[0]


def _take(listener: socket.socket, taken: list[float]) -> None:
    connection, _ = listener.accept()
    space, octets, began = bytearray(_PIECE_BYTES), 0, time.perf_counter()
    with connection:
        while got := connection.recv_into(space):
            octets += got
    taken.append(octets * 8 / 1e9 / (time.perf_counter() - began))
