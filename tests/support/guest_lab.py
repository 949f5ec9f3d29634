"""Real guests for tests without the fabric: disks are plain files served by qemu-nbd, everything else is the product's.

Booting takes seconds under TCG, so a guest is booted once a session and its memory and disk are kept; each test goes on
from there in a fraction of a second.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from probe import copy_probe

from innkeeper.compute import cgroups, qemu
from innkeeper.compute.guest import Guest, GuestChange
from innkeeper.compute.inputs import DISK_PORTS, DiskInput, MachineInputs, NbdExport
from innkeeper.compute.launcher import GuestPlace
from innkeeper.compute.memory import MemoryImage

T = TypeVar("T")

VM_ID = "11111111-2222-4333-8444-555555555555"
ROOT_DISK = "aaaaaaaa-0000-4000-8000-000000000001"
DATA_DISK = "aaaaaaaa-0000-4000-8000-000000000002"
GENERATION = "99999999-0000-4000-8000-000000000000"
UID = 299_001
MIB = 1024 * 1024


class BackgroundLoop:
    """An event loop in a thread of its own, so that a guest lives on between steps of a test."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def __call__(self, work: Coroutine[Any, Any, T], timeout_s: float = 120.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@dataclass
class NbdFile:
    """A plain file served by qemu-nbd, which can be killed and started again."""

    file: Path
    source: NbdExport
    process: subprocess.Popen[bytes]

    def start(self) -> None:
        self.process = _serve(self.file, self.source)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _serve(file: Path, source: NbdExport) -> subprocess.Popen[bytes]:
    source.socket.unlink(missing_ok=True)
    command = ["qemu-nbd", "-f", "raw", "-k", str(source.socket), "-x", source.export, "-e", "8", "-t", str(file)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 30
    while not source.socket.exists():
        assert process.poll() is None and time.monotonic() < deadline, "qemu-nbd does not start"
        time.sleep(0.01)
    source.socket.chmod(0o666)
    return process


@dataclass
class GuestLab:
    """A directory that vms' uids can reach, the disks in it, and the guests started there."""

    base: Path
    run: BackgroundLoop
    exports: list[NbdFile] = field(default_factory=list)
    guests: list[Guest] = field(default_factory=list)
    changes: list[GuestChange] = field(default_factory=list)

    def place(self, vm_id: str = VM_ID) -> GuestPlace:
        group = f"innkeeper-test{os.getpid()}/{self.base.name}"
        return GuestPlace(self.base / "vms" / vm_id[:8], self.base / "state" / vm_id, UID, group)

    def serve(self, file: Path) -> NbdFile:
        source = NbdExport(self.base / f"nbd{len(self.exports)}.sock", "export")
        self.exports.append(NbdFile(file, source, _serve(file, source)))
        return self.exports[-1]

    def empty_disk(self, size_bytes: int = 64 * MIB) -> NbdFile:
        file = self.base / f"empty{len(self.exports)}.raw"
        file.touch()
        os.truncate(file, size_bytes)
        return self.serve(file)

    def machine(self, root: NbdFile, **parts: Any) -> MachineInputs:
        machine = MachineInputs(
            vm_id=VM_ID,
            name="web",
            machine=qemu.installed().machine,
            cpus=1,
            memory_bytes=192 * MIB,
            generation_id=GENERATION,
            disks=(DiskInput(ROOT_DISK, root.source, DISK_PORTS[0], 1),),
        )
        return replace(machine, **parts)

    def start(self, machine: MachineInputs) -> Guest:
        return self.keep(self.run(Guest.start(machine, self.place(machine.vm_id), self.changes.append)))

    def restore(self, machine: MachineInputs, image: MemoryImage) -> Guest:
        return self.keep(self.run(Guest.restore(machine, self.place(machine.vm_id), image, self.changes.append)))

    def keep(self, guest: Guest) -> Guest:
        self.guests.append(guest)
        return guest

    def sh(self, guest: Guest, script: str, **options: Any) -> str:
        """What a shell script in the guest prints; it must succeed."""
        result = self.run(guest.agent.exec(["sh", "-c", script], **options))
        assert result.status == 0, (script, result)
        return result.stdout.decode().strip()

    def close(self) -> None:
        for guest in self.guests:
            if not guest.gone:
                self.run(guest.poweroff())
        for export in self.exports:
            export.kill()
        cgroups.remove(cgroups.detect(), self.place().cgroup)
        shutil.rmtree(self.base)


@contextmanager
def guest_lab(run: BackgroundLoop) -> Iterator[GuestLab]:
    base = Path(tempfile.mkdtemp(prefix="inn-lab-", dir="/run"))
    base.chmod(0o711)
    lab = GuestLab(base, run)
    try:
        yield lab
    finally:
        lab.close()


@dataclass(frozen=True)
class Golden:
    """A guest that has booted, its agent ready: its disk and its memory of one instant."""

    disk: Path
    image: MemoryImage

    def restore(self, lab: GuestLab) -> Guest:
        root = lab.serve(copy_probe(self.disk, lab.base / "root.raw"))
        guest = lab.restore(lab.machine(root), self.image)
        lab.run(guest.agent.ready(30))
        return guest


def make_golden(lab: GuestLab, probe_image: Path, directory: Path) -> Golden:
    golden = Golden(directory / "disk.raw", MemoryImage(directory / "memory"))
    root = lab.serve(copy_probe(probe_image, lab.base / "root.raw"))
    guest = lab.start(lab.machine(root))
    lab.run(guest.agent.ready(90))

    async def at_instant() -> None:
        await asyncio.to_thread(copy_probe, root.file, golden.disk)

    lab.run(guest.capture(golden.image, at_instant))
    lab.run(guest.poweroff())
    return golden
