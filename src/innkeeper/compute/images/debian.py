"""Debian images: the release's own packages, systemd, the real cloud-init, SSH and the guest agent; BIOS and UEFI.

mmdebstrap unpacks and configures the packages in a directory (their maintainer scripts run in its chroot, as at any
Debian installation); the disk is then written without loop devices or mounts, as for the probe guest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from innkeeper.compute.images import bootloader
from innkeeper.compute.images.built import BuiltImage, narrow, publish
from innkeeper.compute.images.disk_layout import DiskPlan, assemble
from innkeeper.compute.images.packages import Archive
from innkeeper.compute.images.scratch import working_directory
from innkeeper.compute.images.toolbox import Toolbox, open_toolbox, tool_packages
from innkeeper.model.problems import Failed, NotFound, Unavailable
from innkeeper.model.sizes import GIB
from innkeeper.system import process

SIZE_BYTES = 2 * GIB
CODENAMES = {"12": "bookworm", "13": "trixie"}
_COMMAND_LINE = "console=tty0 console=ttyS0 net.ifnames=0"
_PACKAGES = (
    *("linux-image-cloud-amd64", "systemd-sysv", "udev", "dbus", "cloud-init", "cloud-guest-utils", "openssh-server"),
    *("qemu-guest-agent", "grub-common", "grub2-common", "grub-pc-bin", "grub-efi-amd64-bin", "grub-efi-amd64-signed"),
    *("shim-signed", "e2fsprogs", "fdisk", "dosfstools", "iproute2", "ifupdown", "isc-dhcp-client", "netbase"),
    *("ca-certificates", "acpid", "sudo"),
)
_LEFT_OUT = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
_INDEX_FORMAT = "$(REPO_URI) $(RELEASE) $(LABEL)"


@dataclass(frozen=True, slots=True)
class Mirror:
    """Where the host gets Debian and its security updates from."""

    archive: str
    security: str | None


def parse_mirror(index_targets: str) -> Mirror:
    """The mirror in ``apt-get indextargets`` output, one line of ``_INDEX_FORMAT`` for each target.

    Raises ``Unavailable`` (``packages.no_mirror``).
    """
    archive: str | None = None
    security: str | None = None
    for line in index_targets.splitlines():
        uri, _, rest = line.partition(" ")
        suite, _, label = rest.partition(" ")
        if label == "Debian-Security":
            security = security or uri
        elif label == "Debian" and "-" not in suite:
            archive = archive or uri
    if archive is None:
        raise Unavailable(
            "packages.no_mirror",
            "apt knows no Debian archive on this host",
            remedy="add one to /etc/apt/sources.list.d and run apt-get update",
        )
    return Mirror(archive, security)


def sources_list(mirror: Mirror, codename: str) -> str:
    """apt's sources for a release, in one-line style."""
    lines = [f"deb {mirror.archive} {suite} main" for suite in (codename, f"{codename}-updates")]
    if mirror.security is not None:
        lines.append(f"deb {mirror.security} {codename}-security main")
    return "".join(f"{line}\n" for line in lines)


def mmdebstrap_command(codename: str, root: Path, sources: Path) -> list[str]:
    """The command that makes the directory ``root`` of the release."""
    return [
        *("mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", "--quiet"),
        """--aptopt=Acquire::Languages "none" """.strip(),
        *(f"--dpkgopt=path-exclude={path}" for path in _LEFT_OUT),
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        f"--include={','.join(_PACKAGES)}",
        *(codename, str(root), str(sources)),
    ]


def guest_files(root_uuid: str) -> dict[str, str]:
    """Files of the image that differ from what the packages bring."""
    return {
        "etc/hostname": "debian\n",
        "etc/hosts": "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        "etc/fstab": f"UUID={root_uuid} / ext4 rw,discard,errors=remount-ro 0 1\n",
        "etc/machine-id": "",
        "etc/default/grub.d/innkeeper.cfg": (
            f'GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="{_COMMAND_LINE}"\n'
            'GRUB_TERMINAL="console serial"\n'
        ),
        "etc/cloud/cloud.cfg.d/90_innkeeper.cfg": (
            "datasource_list: [NoCloud, None]\n"
            "locale: false\n"
            "ssh_genkeytypes: [ed25519]\n"
            "apt: {preserve_sources_list: true}\n"
        ),
        "etc/network/interfaces": "source /etc/network/interfaces.d/*\nauto lo\niface lo inet loopback\n",
        # Kernel upgrades in the guest replace this by what update-grub writes.
        "boot/grub/grub.cfg": (
            f"linux /vmlinuz root=UUID={root_uuid} ro quiet {_COMMAND_LINE}\ninitrd /initrd.img\nboot\n"
        ),
    }


def build_debian(
    release: str,
    destination: Path,
    *,
    cache_dir: Path,
    progress: Callable[[float, str], None] = lambda fraction, text: None,
) -> BuiltImage:
    """Build the raw disk of Debian ``release`` (``12``, ``13``) at ``destination``, whole or not at all; needs root.

    Raises ``NotFound`` (``image.unknown``), ``Unavailable`` (``packages.*``, ``tool.missing``), ``NoSpace``
    (``image.no_space``), ``Failed`` (``image.build_failed``, ``tool.*``).
    """
    codename = CODENAMES.get(release)
    if codename is None:
        raise NotFound("image.unknown", f"no recipe for Debian {release}", remedy=f"known: {', '.join(CODENAMES)}")
    archive = Archive(cache_dir / "packages")
    tools = archive.fetch(tool_packages(archive), narrow(progress, 0.0, 0.1))
    with working_directory(cache_dir / "builds", f"debian-{release}") as scratch:
        scratch.chmod(0o755)
        progress(0.1, f"installing {len(_PACKAGES)} packages and their dependencies into a directory")
        root = _bootstrap(codename, scratch)
        identity = hashlib.sha256((root / "var/lib/dpkg/status").read_bytes()).hexdigest()[:12]
        progress(0.85, "writing the disk")
        toolbox = open_toolbox(tools, scratch / "tools", scratch)
        publish(_disk(root, identity, toolbox, scratch), destination)
    progress(1.0, f"Debian {release} built")
    return BuiltImage(destination, SIZE_BYTES)


def _bootstrap(codename: str, scratch: Path) -> Path:
    targets = process.run(["apt-get", "indextargets", "--format", _INDEX_FORMAT, "Created-By: Packages"])
    sources, root = scratch / "sources.list", scratch / "root"
    sources.write_text(sources_list(parse_mirror(targets.stdout.decode()), codename))
    try:
        process.run(mmdebstrap_command(codename, root, sources), timeout_s=3600)
    except Failed as refused:
        raise Failed(
            "image.build_failed",
            f"Debian {codename} could not be installed into a directory",
            cause=refused.cause,
            remedy="check the network and disk space, run apt-get update, and build again",
        ) from refused
    return root


def _disk(root: Path, identity: str, toolbox: Toolbox, scratch: Path) -> Path:
    plan = DiskPlan(
        size_bytes=SIZE_BYTES,
        disk_uuid=uuid5(NAMESPACE_OID, f"disk {identity}"),
        root_uuid=uuid5(NAMESPACE_OID, f"root {identity}"),
        root_label="debian",
        journal_mib=32,
    )
    _configure(root, str(plan.root_uuid))
    image = scratch / "disk.raw"
    # GRUB's core image comes from the image's own GRUB, whose modules it will load.
    grub = Toolbox(root)
    efi = bootloader.uefi_files(root, str(plan.root_uuid))
    assemble(image, plan, root=root, efi=efi, toolbox=toolbox, grub=grub, scratch=scratch)
    return image


def _configure(root: Path, root_uuid: str) -> None:
    for path, text in guest_files(root_uuid).items():
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.write_text(text)
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    modules = root / "boot/grub/i386-pc"
    modules.mkdir(parents=True, exist_ok=True)
    for file in (root / "usr/lib/grub/i386-pc").iterdir():
        if file.suffix in (".mod", ".lst"):
            os.link(file, modules / file.name)
