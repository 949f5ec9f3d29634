"""The QEMU that is installed: its version, whether it is new enough, and the machine type that new vms are given."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from innkeeper.model.problems import Unavailable
from innkeeper.system import process

PROGRAM = "qemu-system-x86_64"
OLDEST = (9, 1)
"""7.2 corrupts memory in migration without KVM; ``file:`` to a descriptor and ``exit-on-error`` came with 9.1."""


@dataclass(frozen=True, slots=True)
class Qemu:
    """An installed QEMU."""

    program: str
    version: str
    """Such as ``10.0.2 (Debian 1:10.0.2+ds-2)``: tells two builds apart."""
    number: tuple[int, int]
    machine: str
    """The machine type of this version, such as ``pc-q35-10.0``."""


def installed() -> Qemu:
    """The host's QEMU.

    Raises ``Unavailable`` (``tool.missing``, ``qemu.too_old``).
    """
    program = process.which(PROGRAM)
    status = Path(program).stat()
    return _ask(program, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _ask(program: str, mtime_ns: int, size_bytes: int) -> Qemu:
    """Ask the program once; the other arguments tell a replaced program apart."""
    return parse_version(program, process.run([program, "--version"]).stdout.decode(errors="replace"))


def parse_version(program: str, text: str) -> Qemu:
    """``Qemu`` from the output of ``--version``. Raises ``Unavailable`` (``qemu.too_old``)."""
    match = re.search(r"version ((\d+)\.(\d+)\S*(?: \([^)]*\))?)", text)
    if match is None:
        raise Unavailable("qemu.too_old", f"{program} does not tell its version", cause=text[:200])
    number = (int(match[2]), int(match[3]))
    if number < OLDEST:
        raise Unavailable(
            "qemu.too_old",
            f"QEMU {match[1]} is too old, {OLDEST[0]}.{OLDEST[1]} or newer is needed",
            remedy="run 'make setup': it installs QEMU from the release's backports",
        )
    return Qemu(program, match[1], number, f"pc-q35-{number[0]}.{number[1]}")
