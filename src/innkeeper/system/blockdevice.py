"""Block devices as they come: whether one is free, and making a file system on it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

from innkeeper.model.problems import Conflict, Failed, Invalid, Problem
from innkeeper.system import process
from innkeeper.system.mounts import device_of

LEAST_BYTES = 256 << 20
LABEL_PREFIX = "inn-"
_MAKE_TIMEOUT_S = 600.0


def is_block_device(path: Path) -> bool:
    """Whether ``path`` is a block device, or a link to one."""
    return path.is_block_device()


def check(path: Path, *, consent: bool) -> None:
    """See that a device may be taken. ``consent``: whatever it carries may be lost, unless it is in use.

    Raises ``Invalid`` (``device.not_block``, ``device.small``), ``Conflict`` (``device.in_use``, ``device.signature``),
    ``Failed`` (``device.unusable``).
    """
    if not is_block_device(path):
        raise Invalid("device.not_block", f"{path} is no block device", remedy="give a device such as /dev/sdb")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
    except OSError as refused:
        if refused.errno == errno.EBUSY:
            remedy = "unmount it, or end what uses it (swap, RAID, LVM, another inn), then try again"
            raise Conflict("device.in_use", f"{path} is in use", cause=_uses(path), remedy=remedy) from refused
        remedy = "look at the device's health"
        raise Failed("device.unusable", f"{path} cannot be opened", cause=str(refused), remedy=remedy) from refused
    try:
        size = os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)
    if parts := _used_parts(path):
        remedy = "unmount them, or give one of them that is free"
        raise Conflict("device.in_use", f"{path} has partitions in use", cause=", ".join(parts), remedy=remedy)
    if size < LEAST_BYTES:
        remedy = f"give one of {LEAST_BYTES >> 20} MiB or more"
        raise Invalid("device.small", f"{path} has {size} bytes", remedy=remedy)
    if not consent and (found := signatures(path)):
        remedy = "add --format if all of it may be lost"
        raise Conflict("device.signature", f"{path} is not empty", cause=", ".join(found), remedy=remedy)


def signatures(path: Path) -> list[str]:
    """What a device carries, in words: file systems, partition tables, members of RAIDs and volume groups."""
    told = process.run(["wipefs", "--no-act", "--json", str(path)]).stdout
    found = json.loads(told)["signatures"] if told.strip() else []
    words = [f"{each['type']} {each.get('label') or ''}".strip() for each in found]
    return words + [f"partition {name}" for name in _partitions(path)]


def make_file_system(path: Path, uuid: str) -> None:
    """Make an ext4 file system with that UUID, and a label by which people know it. Raises ``Failed``."""
    label = LABEL_PREFIX + uuid[:8]
    try:
        process.run(["wipefs", "--all", "--quiet", str(path)])
        command = ["mkfs.ext4", "-q", "-F", "-m", "0", "-L", label, "-U", uuid, str(path)]
        process.run(command, timeout_s=_MAKE_TIMEOUT_S)
    except Problem as refused:
        detail, remedy = f"no file system can be made on {path}", "look at the device's health"
        raise Failed("device.unusable", detail, cause=refused.cause or refused.detail, remedy=remedy) from refused


def give_up(uuid: str) -> str | None:
    """Take the signature of a file system off the device that has it; which that was, None where there is none."""
    found = device_of(uuid)
    if found is None:
        return None
    process.run(["wipefs", "--all", "--quiet", found])
    return found


def _sysfs(path: Path) -> Path:
    return Path("/sys/class/block") / path.resolve().name


def _partitions(path: Path) -> list[str]:
    place = _sysfs(path)
    return sorted(each.parent.name for each in place.glob("*/partition"))


def _used_parts(path: Path) -> list[str]:
    """Partitions of a device that somebody has open for himself."""
    used = []
    for name in _partitions(path):
        try:
            os.close(os.open(f"/dev/{name}", os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
        except OSError as refused:
            if refused.errno == errno.EBUSY:
                used.append(name)
    return used


def _uses(path: Path) -> str:
    """Where a device is mounted, and what stands on it."""
    resolved = path.resolve()
    mounted = [
        line.split()[1]
        for line in Path("/proc/mounts").read_text().splitlines()
        if line.startswith("/") and Path(line.split()[0]).resolve() == resolved
    ]
    holders = [each.name for each in (_sysfs(path) / "holders").glob("*")]
    words = [f"mounted at {place}" for place in mounted] + [f"{name} stands on it" for name in holders]
    return ", ".join(words) or "another program has it for itself"
