"""Programme 7: guests on ext4 while the fabric is killed, the pool fills, the medium fails or loses its power.

A guest that lives through a fault never sees an error; one that dies finds, when it comes back, every file that it had
synced, on a file system in which ``e2fsck`` finds nothing.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import ext4_load
import pytest
from fabric_process import FabricProcess, eventually, fabric_process
from guest_lab import DATA_DISK, MIB, UID, BackgroundLoop, Golden, GuestLab, guest_lab
from power import Mains, mains
from programme import report, size
from seeds import chosen_seed

from innkeeper.compute.guest import Guest
from innkeeper.compute.inputs import NbdExport
from innkeeper.model.resources import VmState

pytestmark = [pytest.mark.guest, pytest.mark.root, pytest.mark.slow, pytest.mark.programme]

HEADROOM_BYTES = 256 * MIB
"""What a pool keeps free of what guests write."""


class Scene:
    """One disk of one fabric, used by one guest after the other: each ``round`` is a guest's life."""

    def __init__(self, medium: Mains, fabric: FabricProcess, golden: Golden, loop: BackgroundLoop, directory: Path):
        self.medium, self.fabric, self.golden, self.loop, self.directory = medium, fabric, golden, loop, directory
        self.disk_id = str(uuid4())
        fabric.ask("disk_create", self.disk_id, 256 * MIB, fabric.storage_id)
        self.round = 0
        self.faults: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.before = ext4_load.Found()

    # --- a guest's life ---

    @contextmanager
    def guest(self) -> Iterator[GuestLife]:
        """A guest that has mounted the disk and writes to it."""
        self.round += 1
        export = self.fabric.attach(disk_id=self.disk_id, role="writer", uid=UID)
        with guest_lab(self.loop) as lab:
            yield GuestLife(self, lab, self.golden.restore(lab), export)
        self.fabric.ask("detach", export)

    def live(self, faults: Sequence[str], end: str, chance: random.Random) -> None:
        """A guest that lives through those faults, and dies of the last one; then its disk is looked at."""
        with self.guest() as life:
            for fault in faults:
                getattr(life, fault)()
                self.faults[fault.replace("_", " ")] += 1
            time.sleep(chance.random())
            noted = getattr(life, end)()
            self.faults[end.replace("_", " ")] += 1
        self.check(noted)

    def check(self, noted: int) -> None:
        """Look at the disk from outside: this round's files, and that those of the round before are as they were."""
        reader = self.fabric.attach(disk_id=self.disk_id, role="reader", uid=os.geteuid())
        found = ext4_load.read_disk(self.fabric.uri(reader), self.directory)
        self.fabric.ask("detach", reader)
        self.done["files compared"] += ext4_load.check_round(found, self.round, noted)
        self.done["files synced"] += noted
        old = f"r{self.round - 1}/"
        assert {name: data for name, data in found.files.items() if name.startswith(old)} == {
            name: data for name, data in self.before.files.items() if name.startswith(old)
        }
        self.before = found


class GuestLife:
    """A guest under load, the faults that it lives through, and those that end it."""

    def __init__(self, scene: Scene, lab: GuestLab, guest: Guest, export: str) -> None:
        self.scene, self.fabric, self.lab, self.machine = scene, scene.fabric, lab, guest
        lab.run(guest.attach_disk(DATA_DISK, NbdExport(scene.fabric.paths.nbd_socket, export)))
        disk = "while ! [ -b /dev/vdb ]; do sleep 0.05; done"
        make = "mkfs.ext4 -q -E nodiscard /dev/vdb" if scene.round == 1 else "true"
        old = f"rm -rf /mnt/r{scene.round - 2}"
        self.sh(f"{disk}; {make} && mount -o discard /dev/vdb /mnt && {old} && mkdir /mnt/r{scene.round}")
        self.sh("dd if=/dev/urandom of=/mnt/cold bs=64k count=32 conv=fsync 2>/dev/null")
        self.digest = self.sh("sha256sum /mnt/cold")
        self.lab.sh(guest, f"cat > /run/load.pl <<'EOF'\n{ext4_load.SCRIPT}\nEOF")
        self.sh(f"(perl /run/load.pl {scene.round} {ext4_load.KEPT}) > /run/said 2>&1 &")
        self.goes_on()

    def sh(self, script: str) -> str:
        return self.lab.sh(self.machine, script)

    def noted(self) -> int:
        """The number of the last file that the guest had synced and noted."""
        numbers = self.sh("cat /run/noted /run/said 2>/dev/null || true").split()
        assert all(each.isdigit() for each in numbers), numbers
        return int(numbers[-1]) if numbers else 0

    def goes_on(self, files: int = 8) -> int:
        """Wait until some more files were synced; the last of them."""
        before = self.noted() if self.machine.state is VmState.RUNNING else 0
        eventually(lambda: self.noted() >= before + files, "more files are synced")
        return self.noted()

    def pauses(self, reason: str) -> None:
        eventually(lambda: self.machine.state is VmState.PAUSED, "the guest pauses")
        assert self.machine.reason == reason

    def runs(self) -> None:
        eventually(lambda: self.machine.state is VmState.RUNNING and not self.machine.reason, "the guest goes on")
        self.goes_on()
        assert self.sh("dmesg | grep -ciE 'i/o error|ext4-fs error|remount' || true") == "0"

    # --- faults that it lives through ---

    def restart(self) -> None:
        """The fabric is killed and started again: nobody notices."""
        pid = self.fabric.kill()
        eventually(lambda: not Path(f"/proc/{pid}").exists(), "the fabric's end")
        self.runs()

    def full(self) -> None:
        """Others fill the file system of the pool: the guest pauses, and goes on when there is room."""
        ballast = self.scene.medium.path / "ballast"
        facts = os.statvfs(ballast.parent)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, facts.f_bavail * facts.f_frsize - HEADROOM_BYTES // 2)
        self.pauses("no space")
        time.sleep(0.5)
        assert self.machine.state is VmState.PAUSED
        ballast.unlink()
        self.runs()

    def damage(self) -> None:
        """What is stored cannot be read: the guest pauses, and reads it when it is right again."""
        places = self._raw_extents()
        assert len(places) >= 16
        for path, offset in places:
            flip(path, offset)
        self.restart()  # what was in the fabric's memory would do
        self.sh("echo 3 > /proc/sys/vm/drop_caches; (sha256sum /mnt/cold > /run/digest) >/dev/null 2>&1 &")
        self.pauses("storage")
        for path, offset in places:
            flip(path, offset)
        self.runs()
        assert self.sh("while ! [ -s /run/digest ]; do sleep 0.1; done; cat /run/digest") == self.digest

    def _raw_extents(self) -> list[tuple[Path, int]]:
        """Where the extents are that did not compress: those of the file of noise."""
        self.fabric.ask("drain")
        snapshot_id = str(uuid4())
        self.fabric.ask("snapshot_create", {snapshot_id: self.scene.disk_id})
        self.fabric.ask("drain")
        blocks = self.fabric.ask("changed_blocks", snapshot_id)["blocks"]
        self.fabric.ask("snapshot_rm", snapshot_id)
        places = [location for _, kind, _, location in blocks if kind == "extent"]
        return [(Path(path), offset + 777) for path, offset, stored, _ in places if stored == 65536]

    # --- faults that end it; each returns the last file noted shortly before ---

    def power_cut(self) -> int:
        """Everything stops at once, and what was not synced is gone."""
        noted = self.noted()

        def cut() -> None:
            self.scene.medium.cut()
            self._kill()

        self._revive(cut)
        return noted

    def medium_fails(self) -> int:
        """The medium takes nothing any more under a living fabric: no sync is answered, the guest pauses, then dies."""
        noted = self.noted()
        self.scene.medium.cut()
        self.pauses("storage")
        self._kill()
        self._revive(lambda: None)
        return noted

    def both_die(self) -> int:
        """QEMU and the fabric are killed."""
        noted = self.noted()
        self._kill()
        self.fabric.kill()
        return noted

    def _kill(self) -> None:
        os.kill(self.machine.identity.pid, signal.SIGKILL)
        eventually(lambda: self.machine.gone, "the guest's end")

    def _revive(self, cut: Callable[[], None]) -> None:
        self.fabric.die_with(cut)
        self.scene.medium.restore()
        self.fabric.start()


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes([byte ^ 0x5A]))


CYCLE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("restart", "full"), "power_cut"),
    (("damage", "restart"), "medium_fails"),
    (("full", "restart"), "both_die"),
    (("restart",), "power_cut"),
)
"""The lives of four guests: the faults that each lives through, and its end."""


def test_guests_lose_nothing_that_they_synced(golden: Golden, run: BackgroundLoop, tmp_path: Path) -> None:
    seed, cycles = chosen_seed(), size(1, 4)
    chance = random.Random(seed)
    with mains(tmp_path, 2048 * MIB) as medium, fabric_process(medium.path / "inn", hasty=True) as fabric:
        scene = Scene(medium, fabric, golden, run, tmp_path)
        for _ in range(cycles):
            for faults, end in chance.sample(CYCLE, len(CYCLE)):
                scene.live(faults, end, chance)
        assert not fabric.ask("check")["problems"]
    least = {"faults": 11 * cycles, "files synced": 4 * 30 * cycles, "files compared": 4 * 20 * cycles}
    counts = {"guests": scene.round, **scene.done}
    report(7, "guests on ext4", seeds=str(seed), trials="faults", counts=counts, faults=scene.faults, least=least)
