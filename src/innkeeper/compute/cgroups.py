"""A control group for each guest, on the unified hierarchy (v2) or on the older ones (v1): memory is limited there.

The group is ``<inn's cgroup>/<first 8 of the vm's id>`` in every hierarchy used.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

log = logging.getLogger(__name__)

MOUNTS = Path("/proc/self/mounts")
OVERHEAD_BYTES = 1024 * 1024 * 1024
"""What QEMU may use beyond the guest's memory: devices, translation buffer, and the page cache of a memory image."""

Version = Literal["v2", "v1", "none"]


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Where cpu and memory are controlled: one root under v2, one for each controller under v1."""

    version: Version
    roots: tuple[Path, ...]


def find_hierarchies(mounts: str) -> Hierarchies:
    """The hierarchies to use, from the text of ``/proc/self/mounts``; v2 counts when it controls cpu and memory."""
    old: dict[str, Path] = {}
    for line in mounts.splitlines():
        _, place, kind, options, *_ = line.split(" ")
        if kind == "cgroup2":
            controllers = Path(place) / "cgroup.controllers"
            if controllers.exists() and {"cpu", "memory"} <= set(controllers.read_text().split()):
                return Hierarchies("v2", (Path(place),))
        if kind == "cgroup":
            for controller in {"cpu", "memory"} & set(options.split(",")):
                old[controller] = Path(place)
    roots = tuple(dict.fromkeys(old.values()))
    return Hierarchies("v1", roots) if roots else Hierarchies("none", ())


def detect() -> Hierarchies:
    """The hierarchies of this host."""
    return find_hierarchies(MOUNTS.read_text())


def prepare(hierarchies: Hierarchies, group: str, memory_bytes: int) -> list[Path]:
    """Make the guest's group with its memory limit; returns the ``cgroup.procs`` files that its process joins.

    A host that forbids it (a container) is no reason not to run the guest: then fewer files, and a line in the log.
    """
    joined = []
    for root in hierarchies.roots:
        place = root / group
        try:
            place.mkdir(parents=True, exist_ok=True)
            if hierarchies.version == "v2":
                for above in (root, place.parent):
                    (above / "cgroup.subtree_control").write_text("+cpu +memory")
                (place / "memory.max").write_text(str(memory_bytes + OVERHEAD_BYTES))
            elif (place / "memory.limit_in_bytes").exists():
                (place / "memory.limit_in_bytes").write_text(str(memory_bytes + OVERHEAD_BYTES))
        except OSError as refused:
            log.warning("no control group %s: %s", place, refused)
            continue
        joined.append(place / "cgroup.procs")
    return joined


def remove(hierarchies: Hierarchies, group: str) -> None:
    """Remove the guest's group, and the inn's when it was the last; nothing happens where they are absent."""
    for root in hierarchies.roots:
        for place in (root / group, (root / group).parent):
            if place == root:
                continue
            try:
                place.rmdir()
            except OSError:
                break
