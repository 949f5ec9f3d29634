"""What an inn could leave on its host, found and cleared: processes, mounts, devices, tables, cgroups, sockets."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from innkeeper.cli import processes
from innkeeper.compute import cgroups
from innkeeper.model.problems import Problem
from innkeeper.network.links import Links
from innkeeper.network.namespace import NAMESPACES
from innkeeper.network.nft import Nft
from innkeeper.network.overlay_plan import TUNNEL_PREFIX
from innkeeper.network.tenant import GATEWAY_PREFIX, NAMESPACE_PREFIX, UPLINK_PREFIX
from innkeeper.network.uplink_policy import DEVICE_PREFIXES
from innkeeper.network.uplink_record import records
from innkeeper.network.uplinks import Uplinks
from innkeeper.system import process
from innkeeper.system.paths import Paths

_FAMILIES = ("bridge", "inet")
_PREFIXES = ("intp-", "inbr-", TUNNEL_PREFIX, GATEWAY_PREFIX, UPLINK_PREFIX)


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something of the inn that is still there, and how to take it away."""

    what: str
    clear: Callable[[], object]


def find(paths: Paths) -> list[Leftover]:
    """All that is left of the inn outside its state directory, in the order in which it can be cleared."""
    network = [*_devices(paths), *_namespaces(paths), *_tables(paths)]
    return [*_processes(paths), *_mounts(paths), *network, *_groups(paths), *_run(paths)]


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
    return [Leftover(f"process {one.pid}: {one.command[:80]}", partial(kill, one.pid)) for one in found]


def _mounts(paths: Paths) -> list[Leftover]:
    """File systems of pools' block devices, and the converter's jail, where its mounts could not be private (see
    ``compute.images.jail``)."""
    points = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inner_first = sorted((point for point in points if paths.state in point.parents), reverse=True)
    return [Leftover(f"mount {point}", partial(process.run, ["umount", "--lazy", str(point)])) for point in inner_first]


def _devices(paths: Paths) -> list[Leftover]:
    def remove(name: str, kind: str) -> None:
        if kind == "bridge":
            uplinks = Uplinks(records(paths.run / "switches"))
            try:
                uplinks.release(name, None)  # before its bridge goes, the host must have its network back
            finally:
                uplinks.close()
        links = Links()
        try:
            links.remove(name, kind)
        finally:
            links.close()

    links = Links()
    try:
        devices = links.devices(*(f"{prefix}{paths.inn_id}" for prefix in (*_PREFIXES, *DEVICE_PREFIXES)))
    finally:
        links.close()
    ordered = sorted(devices, reverse=True)
    ordered.sort(key=lambda name: name.startswith(DEVICE_PREFIXES))  # taps before their bridges, those before the rest
    return [Leftover(f"device {name}", partial(remove, name, devices[name].kind)) for name in ordered]


def _namespaces(paths: Paths) -> list[Leftover]:
    """Those of tenants of virtual networks, whose names other tools list too."""
    names = sorted(path.name for path in NAMESPACES.glob(f"{NAMESPACE_PREFIX}{paths.inn_id}*"))
    return [Leftover(f"namespace {name}", partial(process.run, ["ip", "netns", "del", name])) for name in names]


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
    return [Leftover(f"nft table {family} {paths.nft_table}", partial(remove, family)) for family in present]


def _groups(paths: Paths) -> list[Leftover]:
    def remove(place: Path) -> None:
        for inner in sorted(place.rglob("*"), reverse=True):
            if inner.is_dir():
                inner.rmdir()
        place.rmdir()

    places = [root / paths.cgroup for root in cgroups.detect().roots]
    return [Leftover(f"control group {place}", partial(remove, place)) for place in places if place.is_dir()]


def _run(paths: Paths) -> list[Leftover]:
    if not paths.run.exists():
        return []
    return [Leftover(f"directory {paths.run}", lambda: shutil.rmtree(paths.run))]
