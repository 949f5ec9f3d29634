"""A guest's memory on disk: what save leaves and what a standard checkpoint holds.

A directory with two files, both written whole or not at all:

    memory.bin     QEMU's migration stream of memory and devices
    machine.json   {"format": 1, "layout": {...}}: what the machine that reads it must be like

``machine.json`` is written last; an image without it does not exist.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from innkeeper.compute.inputs import MachineInputs
from innkeeper.model.problems import Conflict, Corrupt, NotFound

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """The machine that a memory image belongs to. ``disks`` and ``nics`` map id -> root port."""

    machine: str
    accelerator: str
    cpus: int
    memory_bytes: int
    uefi: bool
    tpm: bool
    seed: bool
    disks: Mapping[str, int]
    nics: Mapping[str, int]

    @classmethod
    def of(cls, machine: MachineInputs) -> Layout:
        return cls(
            machine.machine,
            machine.accelerator,
            machine.cpus,
            machine.memory_bytes,
            machine.uefi is not None,
            machine.tpm,
            machine.seed is not None,
            {disk.disk_id: disk.port for disk in machine.disks},
            {nic.nic_id: nic.port for nic in machine.nics},
        )

    @classmethod
    def unknown(cls) -> Layout:
        """Before the layout of an adopted guest has been read."""
        return cls("", "", 0, 0, False, False, False, {}, {})

    def differences(self, machine: MachineInputs) -> list[str]:
        """Why ``machine`` cannot read the image, in words; empty when it can."""
        mine, other = asdict(self), asdict(Layout.of(machine))
        return [f"{name} was {mine[name]}, is {other[name]}" for name in mine if mine[name] != other[name]]


@dataclass(frozen=True, slots=True)
class MemoryImage:
    """A memory image at ``directory``, existing or to be."""

    directory: Path

    @property
    def stream(self) -> Path:
        return self.directory / "memory.bin"

    @property
    def _facts(self) -> Path:
        return self.directory / "machine.json"

    def exists(self) -> bool:
        return self._facts.exists()

    @property
    def size_bytes(self) -> int:
        return self.stream.stat().st_size

    def layout(self) -> Layout:
        """The machine it needs.

        Raises ``NotFound`` (``memory.absent``), ``Corrupt`` (``memory.format``).
        """
        try:
            facts: dict[str, Any] = json.loads(self._facts.read_text())
            if facts["format"] != FORMAT_VERSION:
                raise Corrupt("memory.format", f"{self._facts} has format {facts['format']}, not {FORMAT_VERSION}")
            return Layout(**facts["layout"])
        except FileNotFoundError:
            raise NotFound("memory.absent", f"there is no memory image at {self.directory}") from None
        except (ValueError, KeyError, TypeError) as broken:
            raise Corrupt("memory.format", f"{self._facts} cannot be read", cause=str(broken)) from broken

    def check(self, machine: MachineInputs) -> None:
        """Raises ``Conflict`` (``memory.mismatch``) when ``machine`` is not what the image was taken from."""
        differences = self.layout().differences(machine)
        if differences:
            raise Conflict(
                "memory.mismatch",
                "the vm's saved memory does not fit the vm as it is now",
                cause="; ".join(differences),
                remedy="set the vm back to what it was, or give the saved memory up with 'inn vm poweroff'",
            )

    def begin(self) -> int:
        """A descriptor for writing the stream; the old image is gone from here on. The caller closes it."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._facts.unlink(missing_ok=True)
        return os.open(self.stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def finish_blocking(self, layout: Layout) -> None:
        """Make the image durable and existing."""
        for path in (self.stream, self.directory):
            _sync(path)
        fresh = self._facts.with_suffix(".new")
        fresh.write_text(json.dumps({"format": FORMAT_VERSION, "layout": asdict(layout)}))
        _sync(fresh)
        fresh.rename(self._facts)
        _sync(self.directory)

    def discard(self) -> None:
        """Remove the two files; the directory stays. May be repeated."""
        for path in (self._facts, self.stream):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
