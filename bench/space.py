"""What twenty clones of a Debian disk take, each after the same upgrade, beside qcow2 overlays on one base.

The disk is an ext4 of Debian (mmdebstrap from this machine's mirror, written by mke2fs). The upgrade is recorded once:
the image is mounted, packages are installed in it with its own apt, and every 4 KiB that differ from before are the
writes.
Each clone gets them at places of its own: what went to blocks that were free before goes to others of the free blocks,
as many further on as the clone's number says (not a multiple of 64 KiB, so that deduplication between clones finds no
more than what chance leaves), the rest, the file system's own tables, where it was. Counted is all that is stored:
groups of the pool after a drain and a sweep, blocks of the base and its overlays as the file system has them. The pool
is counted twice: packed by lz4 as it was written, and after the curator's pass over what got cold, which here is all.
Needs root (a loop mount).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from bench.report import Context, Row
from bench.serve import GIB, MIB, Fabric, fabric, qemu_nbd
from innkeeper.fabric.nbd.client import NbdClient
from innkeeper.system import process

CLONES = 20
LIMIT = 0.4
COLD_LEVEL = 9
"""Of zstd, for what got cold."""
CODENAME = "bookworm"
_SIZE_BYTES = 4 * GIB
_BASE = ("systemd-sysv", "linux-image-amd64", "openssh-server", "cloud-init", "ca-certificates", "locales")
_UPGRADE = ("python3-pip", "git", "vim", "gcc", "perl-doc", "nftables", "qemu-utils")
"""As much as a point release brings, and new content as that is."""
_PAGE = 4096
_STEP = 1013
"""Blocks by which each clone's places are further on than the one before; a prime."""
Writes = dict[int, bytes]


def _sources(directory: Path) -> Path:
    """The Debian sources of this machine's apt for the release, as a file."""
    process.run(["apt-get", "update"], timeout_s=600)
    shown = process.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    )
    wanted = f"{CODENAME} main"
    found = next(line for line in shown.stdout.decode().splitlines() if line.endswith(f" {wanted}"))
    path = directory / "sources.list"
    path.write_text(f"deb {found}\n")
    return path


def make_image(directory: Path) -> Path:
    """An ext4 with Debian in it."""
    root, image = directory / "root", directory / "debian.raw"
    options = ("--mode=root", "--variant=minbase", "--format=directory", "--quiet")
    include = f"--include={','.join(_BASE)}"
    process.run(["mmdebstrap", *options, include, CODENAME, str(root), str(_sources(directory))], timeout_s=3600)
    with image.open("wb") as file:
        file.truncate(_SIZE_BYTES)
    process.run(["mke2fs", "-q", "-t", "ext4", "-b", str(_PAGE), "-d", str(root), str(image)], timeout_s=600)
    process.run(["rm", "-rf", str(root)], timeout_s=600)
    return image


def upgrade(image: Path, directory: Path) -> None:
    """Install packages in the image with its own apt."""
    mount = directory / "mount"
    mount.mkdir()
    process.run(["mount", "-o", "loop", str(image), str(mount)])
    try:
        for name in ("/etc/resolv.conf", "/etc/hosts"):
            (mount / name[1:]).unlink(missing_ok=True)
            (mount / name[1:]).write_text(Path(name).read_text())
        settings = process.run(["apt-config", "dump", "--format", '%F "%v";%n']).stdout.decode()
        kept = [line for line in settings.splitlines() if re.match("Acquire::(https?|ftp|Check-)", line)]
        (mount / "etc/apt/apt.conf.d/99bench").write_text("\n".join(kept) + "\n")
        environment = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        environment |= {"DEBIAN_FRONTEND": "noninteractive"}
        for command in (("update",), ("install", "-y", "--no-install-recommends", *_UPGRADE), ("clean",)):
            process.run(["chroot", str(mount), "apt-get", "-q", *command], env=environment, timeout_s=3600)
    finally:
        process.run(["umount", str(mount)], timeout_s=600)


def _pages(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(MIB):
            for at in range(0, len(chunk), _PAGE):
                yield chunk[at : at + _PAGE]


def recorded(before: Path, after: Path) -> Writes:
    """The pages that differ, by their numbers."""
    pairs = zip(_pages(before), _pages(after), strict=True)
    return {number: new for number, (old, new) in enumerate(pairs) if old != new}


def free_blocks(image: Path) -> list[int]:
    """What the file system has not given away."""
    shown = process.run(["dumpe2fs", str(image)]).stdout.decode()
    free: list[int] = []
    for line in re.findall(r"^  Free blocks: (.+)$", shown, re.MULTILINE):
        for each in line.split(", "):
            first, _, last = each.partition("-")
            free += range(int(first), int(last or first) + 1)
    return free


def moved(writes: Writes, free: list[int], clone: int) -> Writes:
    """The writes as another clone's file system would have placed them."""
    place = {block: index for index, block in enumerate(free)}
    return {
        free[(place[page] + clone * _STEP) % len(free)] if page in place else page: data
        for page, data in writes.items()
    }


def replay(client: NbdClient, writes: Writes) -> None:
    """Write them in address order, runs of up to 1 MiB at once, as a guest's write-back does."""
    pages = sorted(writes)
    start = 0
    while start < len(pages):
        end = start + 1
        while end < len(pages) and pages[end] == pages[end - 1] + 1 and end - start < MIB // _PAGE:
            end += 1
        client.submit_write(pages[start] * _PAGE, [b"".join(writes[page] for page in pages[start:end])])
        start = end
    client.flush()


def _stored_bytes(*paths: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


def theirs(work: Path, raw: Path, writes: Writes, free: list[int], clones: int) -> int:
    """Bytes of the base and its overlays."""
    base = work / "base.qcow2"
    process.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(base)], timeout_s=3600)
    overlays = [work / f"overlay{number}.qcow2" for number in range(clones)]
    for number, overlay in enumerate(overlays):
        process.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2", str(overlay)])
        with qemu_nbd(overlay) as socket, NbdClient(socket, "x") as client:
            replay(client, moved(writes, free, number))
    stored = _stored_bytes(base, *overlays)
    for path in (base, *overlays):
        path.unlink()
    return stored


def pack_cold(running: Fabric) -> None:
    """Have the curator pack all groups anew as those that got cold."""
    for storage in running.ask("storage_ls"):
        running.ask("storage_set", storage["id"], cold_level=COLD_LEVEL, cold_after_s=0)
    running.ask("curator_pause", True)
    running.ask("curate_plan")
    while running.ask("curate_next")["left_groups"]:
        pass
    running.ask("sweep")


def ours(running: Fabric, raw: Path, writes: Writes, free: list[int], clones: int) -> tuple[int, int]:
    """Bytes of the pool's groups: as they were written, and when all has got cold."""
    disk, snapshot = running.disk(raw.stat().st_size), str(uuid4())
    export = running.attach(disk)
    process.run(["nbdcopy", "--flush", str(raw), running.uri(export)], timeout_s=3600)
    running.ask("snapshot_create", {snapshot: disk})
    for number in range(clones):
        clone = str(uuid4())
        running.ask("disk_clone", clone, snapshot)
        with NbdClient(running.paths.nbd_socket, running.attach(clone)) as client:
            replay(client, moved(writes, free, number))
        running.ask("drain")
    running.ask("sweep")
    written = _stored_bytes(*running.paths.pool.rglob("*.grp"))
    pack_cold(running)
    return written, _stored_bytes(*running.paths.pool.rglob("*.grp"))


def rows(context: Context) -> list[Row]:
    """The rows of space."""
    clones = 4 if context.quick else CLONES
    raw, after = make_image(context.work), context.work / "after.raw"
    process.run(["cp", "--sparse=always", str(raw), str(after)], timeout_s=600)
    upgrade(after, context.work)
    writes, free = recorded(raw, after), free_blocks(raw)
    after.unlink()
    peer = theirs(context.work, raw, writes, free, clones) / MIB
    with fabric(context.work) as paths, Fabric(paths) as running:
        stored, cold = (size / MIB for size in ours(running, raw, writes, free, clones))
    written = len(writes) * _PAGE / MIB
    name = f"space: {clones} clones of a Debian disk, each with an upgrade of {written:.0f} MiB"
    overlays, goal = "qcow2 overlays", f"<= {LIMIT:g} x the space"
    return [
        Row(f"{name}, lz4", stored, "MiB", overlays, peer, peer / stored),
        Row(f"{name}, cold (zstd {COLD_LEVEL})", cold, "MiB", overlays, peer, peer / cold, goal, cold <= LIMIT * peer),
    ]
