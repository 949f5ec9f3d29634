"""Debian packages as building material: resolved, downloaded and verified by apt, unpacked, never installed here.

Mirrors and keys are the host's own apt configuration; nothing here knows a host name. Resolution runs against an empty
dpkg status, so that the result depends on the archive and not on what the host has installed.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from innkeeper.model.problems import Corrupt, Failed, Problem, Unavailable
from innkeeper.system import process

Progress = Callable[[float, str], None]
"""Called with a fraction 0..1 and a line of text."""

MERGED_TOP = frozenset({"bin", "sbin", "lib", "lib64"})
_SKIPPED = (
    "usr/share/doc/",
    "usr/share/man/",
    "usr/share/info/",
    "usr/share/locale/",
    "usr/share/lintian/",
    "usr/share/bug/",
    "usr/share/bash-completion/",
    "usr/share/doc-base/",
)
_INSTALLS = re.compile(r"^Inst (\S+) ", re.MULTILINE)
_URI_LINE = re.compile(r"^'[^']*' (\S+) (\d+) SHA256:([0-9a-f]{64})\s*$", re.MULTILINE)
_DEPENDS = re.compile(r"^\s+Depends: (\S+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Package:
    """One package file as the signed index describes it."""

    file_name: str
    size_bytes: int
    sha256: str

    @property
    def name(self) -> str:
        return self.file_name.split("_", 1)[0]


class Archive:
    """The host's configured Debian archive, with a directory of verified package files in front of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        # apt names only files that its working directory lacks, hence a directory that stays empty for asking.
        self._asking = directory / "asking"
        self._asking.mkdir(exist_ok=True)
        self._no_status = directory / "empty-status"
        self._no_status.touch()

    def closure(self, roots: Sequence[str], *, without: Iterable[str] = ()) -> list[str]:
        """Names of ``roots`` and of all they depend on, except those in ``without``.

        Raises ``Unavailable`` (``packages.unresolved``).
        """
        try:
            planned = process.run(
                [
                    "apt-get",
                    *("-o", f"Dir::State::status={self._no_status}"),
                    *("-o", "Debug::NoLocking=1", "-o", "pkgCacheGen::ForceEssential=none"),
                    *("--simulate", "--no-install-recommends", "install", *roots),
                ],
                timeout_s=120,
            )
        except Failed as refused:
            raise _unresolved(roots, refused) from refused
        left_out = set(without)
        return sorted({name for name in _INSTALLS.findall(planned.stdout.decode()) if name not in left_out})

    def real_name(self, metapackage: str) -> str:
        """The package that ``metapackage`` depends on first, such as the current kernel of ``linux-image-cloud-amd64``.

        Raises ``Unavailable`` (``packages.unresolved``).
        """
        shown = process.run(["apt-cache", "depends", metapackage], check=False)
        found = _DEPENDS.search(shown.stdout.decode())
        if shown.returncode != 0 or found is None:
            raise _unresolved([metapackage], None)
        return found[1]

    def locate(self, names: Sequence[str]) -> list[Package]:
        """What the signed index says of ``names``; needs no network.

        Raises ``Unavailable`` (``packages.unresolved``).
        """
        try:
            listed = process.run(["apt-get", "download", "--print-uris", *names], cwd=self._asking, timeout_s=120)
        except Failed as refused:
            raise _unresolved(names, refused) from refused
        packages = [Package(m[1], int(m[2]), m[3]) for m in _URI_LINE.finditer(listed.stdout.decode())]
        if len(packages) != len(set(names)):
            raise _unresolved(names, None)
        return packages

    def fetch(self, packages: Sequence[Package], progress: Progress) -> list[Path]:
        """The files of ``packages``, downloading those that are missing; each is verified against the signed index.

        Raises ``Unavailable`` (``packages.download``), ``Corrupt`` (``packages.checksum``).
        """
        missing = [package for package in packages if not self._verified(package)]
        if missing:
            total = sum(package.size_bytes for package in missing)
            progress(0.0, f"downloading {len(missing)} packages, {total // 1_000_000} MB")
            for package in missing:
                (self.directory / package.file_name).unlink(missing_ok=True)
            self._download([package.name for package in missing])
        for package in missing:
            if not self._verified(package):
                raise Corrupt(
                    "packages.checksum",
                    f"{package.file_name} differs from the archive's signed index",
                    remedy="run apt-get update and try again",
                )
        progress(1.0, f"{len(packages)} packages at hand")
        return [self.directory / package.file_name for package in packages]

    def _download(self, names: Sequence[str]) -> None:
        try:
            process.run(
                ["apt-get", "--quiet", "-o", "APT::Sandbox::User=root", "download", *names],
                cwd=self.directory,
                timeout_s=900,
            )
        except Failed as refused:
            raise Unavailable(
                "packages.download",
                "packages could not be downloaded from the Debian archive",
                cause=refused.cause,
                remedy="check the network and disk space, run apt-get update, and try again",
            ) from refused

    def _verified(self, package: Package) -> bool:
        try:
            with (self.directory / package.file_name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
        except FileNotFoundError:
            return False


def _unresolved(names: Sequence[str], failure: Problem | None) -> Unavailable:
    return Unavailable(
        "packages.unresolved",
        f"the Debian archive known to apt does not offer {', '.join(names)}",
        cause=failure.cause if failure else None,
        remedy="run apt-get update; images are built on Debian 12 or newer, amd64",
    )


def unpack(files: Iterable[Path], root: Path, scratch: Path, keep: Callable[[str], bool] = lambda path: True) -> None:
    """Unpack package ``files`` into ``root`` with a merged /usr, without documentation, only paths that ``keep`` wants.

    ``keep`` sees paths relative to the root, such as ``usr/lib/x``. ``scratch`` is a directory on the same file system.
    Raises ``Failed`` (``tool.failed``).
    """
    lay_merged_top(root)
    for file in files:
        apart = scratch / f"{file.name}.d"
        try:
            process.run(["dpkg-deb", "--extract", str(file), str(apart)], timeout_s=300)
            _merge(apart, root, keep)
        finally:
            shutil.rmtree(apart, ignore_errors=True)


def lay_merged_top(root: Path) -> None:
    """Make /bin, /sbin, /lib, /lib64 symlinks into /usr."""
    for name in MERGED_TOP:
        (root / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (root / name).is_symlink():
            (root / name).symlink_to(f"usr/{name}")


def merged(path: str) -> str:
    """Where a package's ``path`` lies in a tree with a merged /usr."""
    return f"usr/{path}" if path.split("/", 1)[0] in MERGED_TOP else path


def _merge(apart: Path, root: Path, keep: Callable[[str], bool]) -> None:
    for source in sorted(apart.rglob("*")):
        inside = merged(str(source.relative_to(apart)))
        if source.is_dir() and not source.is_symlink():
            continue
        if inside.startswith(_SKIPPED) or inside in {f"usr/{name}" for name in MERGED_TOP} or not keep(inside):
            continue
        target = root / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        source.rename(target)
