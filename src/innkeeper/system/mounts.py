"""File systems of devices, mounted where a pool wants them: through ``Io``, so that tests can do without devices."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from innkeeper.model.problems import Failed, Problem
from innkeeper.system import process

OPTIONS = "noatime,nosuid,nodev,noexec"


class Mounts(Protocol):
    """What mounts. Every call blocks."""

    def attach(self, uuid: str, path: str) -> None:
        """Have the file system with that UUID mounted at ``path``, made if need be; repeated, nothing.

        Raises ``Problem`` where there is no such file system.
        """

    def detach(self, path: str) -> None:
        """Have nothing mounted at ``path``, and no directory there; nothing is raised."""


def device_of(uuid: str) -> str | None:
    """The device that has the file system with that UUID, by what is on the devices now: caches of that are stale when
    disks have been exchanged."""
    found = process.run(["blkid", "-c", "/dev/null", "-o", "device", "-t", f"UUID={uuid}"], check=False)
    return next(iter(found.stdout.decode().split()), None)


class RealMounts:
    """Through mount(8)."""

    def attach(self, uuid: str, path: str) -> None:
        if os.path.ismount(path):
            return
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        device = device_of(uuid)
        if device is None:
            raise Failed("device.absent", f"no device has a file system with the UUID {uuid}", remedy="attach the disk")
        process.run(["mount", "-o", OPTIONS, device, path])

    def detach(self, path: str) -> None:
        with suppress(Problem):
            if os.path.ismount(path):
                # Lazily: a reader may have a file open still that was of use a moment ago.
                process.run(["umount", "--lazy", path])
        with suppress(OSError):
            Path(path).rmdir()
