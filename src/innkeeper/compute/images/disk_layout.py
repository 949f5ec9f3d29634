"""A bootable disk image put together in a plain file: GPT, BIOS boot partition, EFI system partition, ext4 root.

    LBA 0            GRUB's boot sector and the protective MBR
    LBA 2048         BIOS boot partition, 1 MiB: GRUB's core image
    LBA 4096         EFI system partition, FAT16, 16 MiB
    LBA 36864        root, ext4, to the end (last, so that a grown disk can grow it)

No loop device, mount or chroot: mke2fs fills the file system from a directory, mtools the FAT.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from innkeeper.compute.images import bootloader
from innkeeper.compute.images.bootloader import SECTOR_BYTES
from innkeeper.compute.images.toolbox import Toolbox
from innkeeper.model.problems import NoSpace
from innkeeper.model.sizes import MIB

BIOS_BOOT_LBA = 2048
BIOS_BOOT_BYTES = 1 * MIB
ESP_LBA = 4096
ESP_BYTES = 16 * MIB
ROOT_LBA = ESP_LBA + ESP_BYTES // SECTOR_BYTES
_BACKUP_GPT_BYTES = 1 * MIB
_TYPE_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
_TYPE_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_TYPE_ROOT_X86_64 = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"
_BLOCK_BYTES = 4096


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """What ``assemble`` makes. ``inodes`` 0 leaves their number to mke2fs."""

    size_bytes: int
    disk_uuid: UUID
    root_uuid: UUID
    root_label: str
    inodes: int = 0
    journal_mib: int = 4

    @property
    def root_bytes(self) -> int:
        return self.size_bytes - ROOT_LBA * SECTOR_BYTES - _BACKUP_GPT_BYTES


def sfdisk_script(plan: DiskPlan) -> str:
    """The partition table as sfdisk reads it."""
    root_sectors = plan.root_bytes // SECTOR_BYTES
    return (
        f"label: gpt\nlabel-id: {plan.disk_uuid}\nunit: sectors\n"
        f"start={BIOS_BOOT_LBA}, size={BIOS_BOOT_BYTES // SECTOR_BYTES}, type={_TYPE_BIOS_BOOT}, name=bios\n"
        f"start={ESP_LBA}, size={ESP_BYTES // SECTOR_BYTES}, type={_TYPE_ESP}, name=esp\n"
        f"start={ROOT_LBA}, size={root_sectors}, type={_TYPE_ROOT_X86_64}, name=root\n"
    )


def assemble(
    target: Path,
    plan: DiskPlan,
    *,
    root: Path,
    efi: dict[str, bytes],
    toolbox: Toolbox,
    grub: Toolbox,
    scratch: Path,
) -> None:
    """Write the image ``target`` from the directory ``root`` and the ``efi`` files; a sparse file, synced.

    ``grub`` is where GRUB for BIOS is taken from.
    Raises ``NoSpace`` (``image.no_space``), ``Failed`` (``tool.failed``).
    """
    try:
        with target.open("wb") as file:
            file.truncate(plan.size_bytes)
        toolbox.run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", target, stdin=sfdisk_script(plan).encode())
        _make_root(target, plan, root, toolbox)
        esp = _make_esp(efi, toolbox, scratch)
        core = bootloader.build_core(grub, str(plan.root_uuid), scratch)
        with target.open("r+b") as file:
            table = file.read(SECTOR_BYTES)
            boot_image = (grub.grub_images / "boot.img").read_bytes()
            _write_at(file.fileno(), 0, bootloader.patch_boot_sector(boot_image, table, BIOS_BOOT_LBA))
            _write_at(
                file.fileno(), BIOS_BOOT_LBA * SECTOR_BYTES, bootloader.patch_core(core, BIOS_BOOT_LBA, BIOS_BOOT_BYTES)
            )
            _write_sparse(file.fileno(), ESP_LBA * SECTOR_BYTES, esp)
            os.fsync(file.fileno())
    except OSError as full:
        raise NoSpace(
            "image.no_space",
            f"the image {target.name} could not be written",
            cause=str(full),
            remedy="free disk space under the inn's cache directory and build again",
        ) from full


def _make_root(target: Path, plan: DiskPlan, root: Path, toolbox: Toolbox) -> None:
    # The inode tables are zeroed here and not by the booted guest: its kernel would dirty the disk for minutes.
    eager = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"
    options = f"offset={ROOT_LBA * SECTOR_BYTES},{eager},hash_seed={plan.disk_uuid}"
    toolbox.run(
        "mke2fs",
        *("-q", "-F", "-t", "ext4", "-b", str(_BLOCK_BYTES), "-m", "1"),
        *("-U", str(plan.root_uuid), "-L", plan.root_label, "-J", f"size={plan.journal_mib}"),
        *(("-N", str(plan.inodes)) if plan.inodes else ()),
        *("-d", root, "-E", options, target, str(plan.root_bytes // _BLOCK_BYTES)),
    )


def _make_esp(files: dict[str, bytes], toolbox: Toolbox, scratch: Path) -> bytes:
    image = scratch / "esp.img"
    image.unlink(missing_ok=True)
    toolbox.run("mformat", "-C", "-i", image, "-T", str(ESP_BYTES // SECTOR_BYTES), "-N", "1A2B3C4D", "-v", "ESP", "::")
    made: set[str] = set()
    for path, content in files.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in made:
                toolbox.run("mmd", "-i", image, f"::{folder}")
                made.add(folder)
        source = scratch / "esp.file"
        source.write_bytes(content)
        toolbox.run("mcopy", "-i", image, source, f"::{path}")
    return image.read_bytes()


def _write_at(descriptor: int, offset: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset, view = offset + written, view[written:]


def _write_sparse(descriptor: int, offset: int, data: bytes) -> None:
    for start in range(0, len(data), _BLOCK_BYTES):
        block = data[start : start + _BLOCK_BYTES]
        if block.count(0) != len(block):
            _write_at(descriptor, offset + start, block)
