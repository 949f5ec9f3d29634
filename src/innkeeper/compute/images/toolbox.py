"""Image tools (mke2fs, sfdisk, mtools, grub-mkimage) run from unpacked packages with their own C library.

The host needs none of them, and whatever versions it has do not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from innkeeper.compute.images.packages import Archive, Package, unpack
from innkeeper.model.problems import Unavailable
from innkeeper.system import process

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_ROOTS = ("e2fsprogs", "fdisk", "grub-common", "grub-pc-bin", "mtools", "usr-is-merged")
_NEVER_RUN = ("debconf", "dmsetup", "dpkg", "gettext-base", "libdebconfclient0", "logsave", "perl-base", "tar")


class Toolbox:
    """Tools unpacked under ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.grub_images = root / "usr/lib/grub/i386-pc"

    def run(self, tool: str, *arguments: str | Path, stdin: bytes | None = None) -> bytes:
        """Run ``tool`` and return its standard output.

        Raises ``Unavailable`` (``tool.missing``), ``Failed`` (``tool.failed``, ``tool.timeout``).
        """
        libraries = self.root / _LIBRARIES
        command: Sequence[str] = (
            str(libraries / "ld-linux-x86-64.so.2"),
            *("--argv0", tool, "--library-path", str(libraries)),
            str(self._find(tool)),
            *(str(argument) for argument in arguments),
        )
        environment = {
            "MKE2FS_CONFIG": str(self.root / "etc/mke2fs.conf"),
            "MTOOLS_SKIP_CHECK": "1",
            "MTOOLSRC": "/dev/null",
        }
        return process.run(command, stdin=stdin, env=environment, timeout_s=600).stdout

    def _find(self, tool: str) -> Path:
        for folder in ("usr/sbin", "usr/bin"):
            candidate = self.root / folder / tool
            if candidate.exists():
                return candidate.resolve()
        raise Unavailable("tool.missing", f"the toolbox lacks {tool}", remedy="remove the cache and build again")


def tool_packages(archive: Archive) -> list[Package]:
    """The packages that the toolbox is unpacked from."""
    return archive.locate(archive.closure(_ROOTS, without=_NEVER_RUN))


def open_toolbox(files: Sequence[Path], root: Path, scratch: Path) -> Toolbox:
    """Unpack ``files`` (of ``tool_packages``) under ``root``."""
    unpack(files, root, scratch)
    return Toolbox(root)
