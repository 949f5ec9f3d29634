"""The probe guest: a small, real Linux on a bootable disk, for the tour and the tests.

Debian's signed cloud kernel, busybox and the real qemu-guest-agent on ext4, started by GRUB under BIOS and UEFI (Secure
Boot too). It boots to its agent in seconds without KVM. What it does with a cloud-init seed is a documented subset
(``docs/images.md``); ``debian/12`` has the real cloud-init.

    python -m innkeeper.compute.images.probe TARGET [CACHE_DIR]
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from innkeeper.compute.images import bootloader, cpio
from innkeeper.compute.images.built import BuiltImage, narrow, publish
from innkeeper.compute.images.disk_layout import DiskPlan, assemble
from innkeeper.compute.images.kernel_modules import ModuleTree
from innkeeper.compute.images.packages import Archive, Package, Progress, merged, unpack
from innkeeper.compute.images.scratch import working_directory
from innkeeper.compute.images.toolbox import open_toolbox, tool_packages
from innkeeper.model.problems import Problem
from innkeeper.model.sizes import MIB
from innkeeper.system import process

SIZE_BYTES = 512 * MIB
_RECIPE = 1
"""Raised when the same packages and guest files give another image."""
_GUEST = Path(__file__).with_name("guest")
_KERNEL = "linux-image-cloud-amd64"
_GUEST_ROOTS = ("e2fsprogs", "fdisk", "perl-base", "qemu-guest-agent", "usr-is-merged")
_GUEST_WITHOUT = ("debconf", "dpkg", "gcc-12-base", "init-system-helpers", "readline-common", "tar")
_DATA = ("busybox-static", "grub-efi-amd64-signed", "shim-signed")
_BOOT_MODULES = ("virtio_pci", "virtio_blk", "virtio_scsi", "sd_mod", "virtio_console", "virtio_net", "button", "evdev")
_LATER_MODULES = (
    "virtio_balloon",
    "virtio_rng",
    "pvpanic_pci",
    "sr_mod",
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "efivarfs",
)
_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "mnt", "root/.ssh", "var/lib/probe/net", "var/log", "boot/grub")
_COMMAND_LINE = "console=tty0 console=ttyS0 quiet mitigations=off net.ifnames=0 panic=0"


@dataclass(frozen=True, slots=True)
class _Material:
    """Everything an image is made of, so that its key can be told before anything is downloaded."""

    tools: list[Package]
    guest: list[Package]
    data: list[Package]
    kernel: list[Package]

    @property
    def all(self) -> list[Package]:
        return list({package.file_name: package for part in self._parts() for package in part}.values())

    def _parts(self) -> tuple[list[Package], ...]:
        return self.tools, self.guest, self.data, self.kernel

    def key(self) -> str:
        digest = hashlib.sha256(f"probe {_RECIPE} {SIZE_BYTES} {_COMMAND_LINE}".encode())
        for package in sorted(self.all, key=lambda package: package.file_name):
            digest.update(f"{package.file_name} {package.sha256}\n".encode())
        for path, content in sorted(_guest_files().items()):
            digest.update(f"{path} {len(content)}\n".encode() + content)
        return digest.hexdigest()


def _material(archive: Archive) -> _Material:
    return _Material(
        tools=tool_packages(archive),
        guest=archive.locate(archive.closure(_GUEST_ROOTS, without=_GUEST_WITHOUT)),
        data=archive.locate(_DATA),
        kernel=archive.locate([archive.real_name(_KERNEL)]),
    )


def probe_key(cache_dir: Path) -> str:
    """A name for the image that ``build_probe`` would build now: same key, same content.

    Raises ``Unavailable`` (``packages.unresolved``).
    """
    return _material(Archive(cache_dir / "packages")).key()


def build_probe(
    destination: Path, *, cache_dir: Path, progress: Callable[[float, str], None] = lambda fraction, text: None
) -> BuiltImage:
    """Build the probe guest's raw disk at ``destination``, which appears whole or not at all.

    ``cache_dir`` keeps downloaded packages and the build in progress. Raises ``Unavailable`` (``packages.*``,
    ``kernel.module``), ``Corrupt`` (``packages.checksum``), ``NoSpace`` (``image.no_space``), ``Failed``.
    """
    progress(0.0, "resolving packages")
    archive = Archive(cache_dir / "packages")
    material = _material(archive)
    files = dict(zip(material.all, archive.fetch(material.all, narrow(progress, 0.05, 0.5)), strict=True))
    with working_directory(cache_dir / "builds", "probe") as folder:
        image = _Build(folder, material, files).run(narrow(progress, 0.5, 0.95))
        publish(image, destination)
    progress(1.0, "probe guest built")
    return BuiltImage(destination, SIZE_BYTES)


class _Build:
    """One build in a scratch directory."""

    def __init__(self, scratch: Path, material: _Material, files: dict[Package, Path]) -> None:
        self._scratch = scratch
        self._root = scratch / "root"
        self._material = material
        self._files = files
        self._key = material.key()

    def run(self, progress: Progress) -> Path:
        progress(0.0, "unpacking tools")
        tools = [self._files[package] for package in self._material.tools]
        toolbox = open_toolbox(tools, self._scratch / "tools", self._scratch)
        progress(0.2, "unpacking the guest")
        self._unpack_guest()
        modules = self._unpack_kernel()
        progress(0.6, "laying out the guest")
        self._lay_busybox()
        self._lay_guest_files()
        plan = DiskPlan(
            size_bytes=SIZE_BYTES,
            disk_uuid=uuid5(NAMESPACE_OID, f"disk {self._key}"),
            root_uuid=uuid5(NAMESPACE_OID, f"root {self._key}"),
            root_label="probe",
            inodes=8192,
        )
        self._lay_boot(modules, str(plan.root_uuid))
        efi = bootloader.uefi_files(self._scratch / "data", str(plan.root_uuid))
        progress(0.8, "writing the disk")
        image = self._scratch / "disk.raw"
        assemble(image, plan, root=self._root, efi=efi, toolbox=toolbox, grub=toolbox, scratch=self._scratch)
        return image

    def _unpack_guest(self) -> None:
        unpack([self._files[package] for package in self._material.guest], self._root, self._scratch, _wanted_in_guest)
        unpack([self._files[package] for package in self._material.data], self._scratch / "data", self._scratch)

    def _unpack_kernel(self) -> ModuleTree:
        kernel = self._scratch / "kernel"
        unpack([self._files[package] for package in self._material.kernel], kernel, self._scratch)
        trees = sorted((kernel / "usr/lib/modules").iterdir())
        (self._root / "boot").mkdir()
        shutil.copyfile(next((kernel / "boot").glob("vmlinuz-*")), self._root / "boot/vmlinuz")
        return ModuleTree(trees[0])

    def _lay_busybox(self) -> None:
        busybox = self._scratch / "data/usr/bin/busybox"
        shutil.copy2(busybox, self._root / "usr/bin/busybox")
        for applet in process.run([str(busybox), "--list-full"]).stdout.decode().split():
            link = self._root / merged(applet)
            other = self._root / "usr" / ("sbin" if "/bin/" in f"/{merged(applet)}" else "bin") / link.name
            if link.parent != self._root and not link.exists() and not other.exists():
                link.symlink_to("/usr/bin/busybox")

    def _lay_guest_files(self) -> None:
        for folder in _FOLDERS:
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        (self._root / "root/.ssh").chmod(0o700)
        (self._root / "root").chmod(0o700)
        for path, content in _guest_files().items():
            _write(self._root / path, content)
        for path, text in {
            "etc/hostname": "probe\n",
            "etc/hosts": "127.0.0.1 localhost\n::1 localhost\n",
            "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
            "etc/group": "root:x:0:\ndisk:x:6:\nnogroup:x:65534:\n",
            "etc/fstab": "",
            "etc/os-release": f'ID=innkeeper-probe\nNAME="Innkeeper probe guest"\nBUILD_ID={self._key[:12]}\n',
            "etc/resolv.conf": "",
        }.items():
            _write(self._root / path, text.encode())

    def _lay_boot(self, tree: ModuleTree, root_uuid: str) -> None:
        boot = tree.load_order(_BOOT_MODULES)
        every = tree.load_order([*_BOOT_MODULES, *_LATER_MODULES])
        later = {name: elf for name, elf in every.items() if name not in boot}
        modules = self._root / "usr/lib/probe/modules"
        modules.mkdir(parents=True)
        for name, elf in later.items():
            (modules / f"{name}.ko").write_bytes(elf)
        (modules / "order").write_text("".join(f"{name}\n" for name in later))
        entries = [cpio.Entry.directory(name) for name in ("bin", "dev", "modules", "proc", "root", "sys")]
        entries += [
            cpio.Entry.character_device("dev/console", 5, 1),
            cpio.Entry.file("bin/busybox", (self._scratch / "data/usr/bin/busybox").read_bytes(), executable=True),
            cpio.Entry.file("init", (_GUEST / "initramfs-init").read_bytes(), executable=True),
            cpio.Entry.file("modules/order", "".join(f"{name}\n" for name in boot).encode()),
            *(cpio.Entry.file(f"modules/{name}.ko", elf) for name, elf in boot.items()),
        ]
        (self._root / "boot/initrd.img").write_bytes(gzip.compress(cpio.archive(entries), 6, mtime=0))
        (self._root / "boot/grub/grub.cfg").write_text(_grub_configuration(root_uuid))


def _grub_configuration(root_uuid: str) -> str:
    # On a PC GRUB's 32-bit protocol copies the kernel's whole memory area bytewise, two seconds without KVM.
    arguments = f"/boot/vmlinuz root=UUID={root_uuid} {_COMMAND_LINE}"
    return (
        'if [ "$grub_platform" = pc ]; then\n'
        f"linux16 {arguments}\ninitrd16 /boot/initrd.img\n"
        f"else\nlinux {arguments}\ninitrd /boot/initrd.img\nfi\nboot\n"
    )


def _wanted_in_guest(path: str) -> bool:
    """Leave out what no program of the guest reads: character conversions, headers, service files."""
    return not path.startswith(
        ("usr/lib/x86_64-linux-gnu/gconv/", "usr/lib/systemd/", "usr/include/", "usr/share/glib-2.0/", "etc/init.d/")
    )


def _guest_files() -> dict[str, bytes]:
    """The project's own files of the guest, by path."""
    files = {str(path.relative_to(_GUEST)): path.read_bytes() for path in _GUEST.rglob("*") if path.is_file()}
    return {path: content for path, content in files.items() if path != "initramfs-init"} | {
        "usr/lib/probe/initramfs-init": files["initramfs-init"]
    }


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_bytes(content)
    path.chmod(0o755 if content.startswith(b"#!") else 0o644)


def _tell(fraction: float, text: str) -> None:
    print(f"{fraction:4.0%} {text}", file=sys.stderr)


def _main() -> int:
    if len(sys.argv) not in (2, 3):
        print(__doc__, file=sys.stderr)
        return 2
    cache = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(tempfile.gettempdir()) / f"innkeeper-cache-{os.getuid()}"
    try:
        built = build_probe(Path(sys.argv[1]), cache_dir=cache, progress=_tell)
    except Problem as failure:
        print(failure, file=sys.stderr)
        return 1
    print(built.path)
    return 0


if __name__ == "__main__":
    sys.exit(_main())
