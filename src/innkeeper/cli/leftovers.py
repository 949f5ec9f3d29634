"""What an inn could leave on its host, found and cleared: processes, mounts, devices, tables, cgroups, sockets."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from innkeeper.cli import processes
from innkeeper.compute import cgroups
from innkeeper.model.problems import Problem
from innkeeper.network.links import Links
from innkeeper.network.nft import Nft
from innkeeper.system import process
from innkeeper.system.paths import Paths

_FAMILIES = ("bridge", "inet")


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of the inn that is still there, and how to take it away."""

    what: str
    clear: Callable[[], object]


def find(paths: Paths) -> list[Leftover]:
    """All that is left of the inn outside its state directory, in the order in which it can be cleared."""
    return [*_processes(paths), *_mounts(paths), *_devices(paths), *_tables(paths), *_groups(paths), *_run(paths)]


def clear(paths: Paths) -> tuple[list[str], list[str]]:
    """Take everything away; returns in words what went, and what stayed with the reason."""
    gone: list[str] = []
    stayed: list[str] = []
    for leftover in find(paths):
        try:
            leftover.clear()
            gone.append(leftover.what)
        except (OSError, Problem) as reason:
            stayed.append(f"{leftover.what}: {reason}")
    return gone, stayed


def _processes(paths: Paths) -> list[Leftover]:
    def kill(pid: int) -> None:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        processes.wait_end(pid, 10.0)

    found = sorted(processes.of_inn(paths), key=lambda one: "keeper" not in one.command)  # it would restart the fabric
    return [Leftover(f"process {one.pid}: {one.command[:80]}", lambda pid=one.pid: kill(pid)) for one in found]  # type: ignore[misc]


def _mounts(paths: Paths) -> list[Leftover]:
    """The converter's jail, where its mounts could not be private (see ``compute.images.jail``)."""
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inner_first = sorted((point for point in points if paths.state in point.parents), reverse=True)
    return [
        Leftover(f"mount {point}", lambda point=point: process.run(["umount", "--lazy", str(point)]))  # type: ignore[misc]
        for point in inner_first
    ]


def _devices(paths: Paths) -> list[Leftover]:
    def remove(name: str, kind: str) -> None:
        links = Links()
        try:
            links.remove(name, kind)
        finally:
            links.close()

    links = Links()
    try:
        devices = links.devices(f"intp-{paths.inn_id}", f"inbr-{paths.inn_id}")
    finally:
        links.close()
    ordered = sorted(devices, reverse=True)  # taps before their bridges
    return [
        Leftover(f"device {name}", lambda name=name: remove(name, devices[name].kind))  # type: ignore[misc]
        for name in ordered
    ]


def _tables(paths: Paths) -> list[Leftover]:
    def remove(family: str) -> None:
        nft = Nft()
        try:
            nft.apply(f"delete table {family} {paths.nft_table}")
        finally:
            nft.close()

    nft = Nft()
    try:
        present = [family for family in _FAMILIES if nft.table_exists(family, paths.nft_table)]
    finally:
        nft.close()
    return [
        Leftover(f"nft table {family} {paths.nft_table}", lambda family=family: remove(family))  # type: ignore[misc]
        for family in present
    ]


def _groups(paths: Paths) -> list[Leftover]:
    def remove(place: Path) -> None:
        for inner in sorted(place.rglob("*"), reverse=True):
            if inner.is_dir():
                inner.rmdir()
        place.rmdir()

    places = [root / paths.cgroup for root in cgroups.detect().roots]
    return [
        Leftover(f"control group {place}", lambda place=place: remove(place))  # type: ignore[misc]
        for place in places
        if place.is_dir()
    ]


def _run(paths: Paths) -> list[Leftover]:
    if not paths.run.exists():
        return []
    return [Leftover(f"directory {paths.run}", lambda: shutil.rmtree(paths.run))]
