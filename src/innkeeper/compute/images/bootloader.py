"""GRUB on a disk image, for BIOS and for UEFI with Secure Boot, without grub-install.

BIOS: ``boot.img`` in the first sector loads ``core.img`` from the BIOS boot partition. Where the sectors are is patched
in as grub-install does it (GRUB manual, "Images"; grub-core/boot/i386/pc): the 64-bit LBA of core.img at 0x5c of
boot.img, and in core.img's first sector (diskboot.img) a block list at 0x1f4: LBA of its second sector (64 bits),
number of further sectors (16 bits), and the segment they are loaded at (16 bits).

UEFI: Debian's signed shim as the removable-media loader, Debian's signed GRUB beside it. That GRUB reads
``/EFI/debian/grub.cfg`` of its own partition, which passes on to the root file system.
"""

from __future__ import annotations

import struct
from pathlib import Path

from innkeeper.compute.images.toolbox import Toolbox
from innkeeper.model.problems import Failed

SECTOR_BYTES = 512
_KERNEL_SECTOR_OFFSET = 0x5C
_BOOT_DRIVE_CHECK_OFFSET = 0x66
_PARTITION_TABLE_OFFSET = 0x1B8
_BLOCK_LIST_OFFSET = 0x1F4
_LOAD_SEGMENT = 0x820
_CORE_MODULES = (
    *("biosdisk", "part_gpt", "ext2", "search_fs_uuid", "normal", "configfile", "test"),
    *("linux", "linux16", "boot"),
)


def hand_over_configuration(root_uuid: str) -> str:
    """The first configuration either GRUB reads: find the root file system and go on with its ``grub.cfg``."""
    return f"search.fs_uuid {root_uuid} root\nset prefix=($root)/boot/grub\nconfigfile ($root)/boot/grub/grub.cfg\n"


def build_core(toolbox: Toolbox, root_uuid: str, scratch: Path) -> bytes:
    """core.img for BIOS with everything inside that it needs to reach the root file system."""
    early, core = scratch / "early.cfg", scratch / "core.img"
    early.write_text(hand_over_configuration(root_uuid))
    toolbox.run(
        "grub-mkimage",
        *("--directory", toolbox.grub_images, "--format", "i386-pc", "--config", early),
        *("--prefix", "(hd0,gpt3)/boot/grub", "--output", core, *_CORE_MODULES),
    )
    return core.read_bytes()


def patch_boot_sector(boot_image: bytes, protective_mbr: bytes, core_lba: int) -> bytes:
    """The first sector: GRUB's code, told where core.img starts, and the partition table of ``protective_mbr``."""
    sector = bytearray(boot_image[:SECTOR_BYTES])
    struct.pack_into("<Q", sector, _KERNEL_SECTOR_OFFSET, core_lba)
    # Two NOPs where a jump would trust the drive number of buggy BIOSes; grub-install does the same for hard disks.
    sector[_BOOT_DRIVE_CHECK_OFFSET : _BOOT_DRIVE_CHECK_OFFSET + 2] = b"\x90\x90"
    sector[_PARTITION_TABLE_OFFSET:] = protective_mbr[_PARTITION_TABLE_OFFSET:SECTOR_BYTES]
    return bytes(sector)


def patch_core(core: bytes, core_lba: int, room_bytes: int) -> bytes:
    """core.img padded to whole sectors, its block list saying where the rest of it lies.

    Raises ``Failed`` (``image.bootloader``) when it does not fit in ``room_bytes``.
    """
    padded = bytearray(core + bytes(-len(core) % SECTOR_BYTES))
    if len(padded) > room_bytes:
        raise Failed("image.bootloader", f"GRUB's core image of {len(padded)} bytes does not fit in {room_bytes} bytes")
    further = len(padded) // SECTOR_BYTES - 1
    struct.pack_into("<QHH", padded, _BLOCK_LIST_OFFSET, core_lba + 1, further, _LOAD_SEGMENT)
    return bytes(padded)


def uefi_files(signed: Path, root_uuid: str) -> dict[str, bytes]:
    """Files of the EFI system partition by path; ``signed`` is a tree with shim-signed and grub-efi-amd64-signed."""
    shim = (signed / "usr/lib/shim/shimx64.efi.signed").read_bytes()
    grub = (signed / "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed").read_bytes()
    return {
        "EFI/BOOT/BOOTX64.EFI": shim,
        "EFI/BOOT/grubx64.efi": grub,
        "EFI/debian/grub.cfg": hand_over_configuration(root_uuid).encode(),
    }
