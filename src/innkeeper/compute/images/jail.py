"""A jail for the one program that reads strangers' image files: qemu-img.

It runs under a uid that owns nothing, without capabilities and without a network, with limits on memory, processor time
and files, and its root directory is a new one that holds /usr read-only, the source file read-only and the socket that
receives the result. A parser that is taken over finds nothing there to read, write or call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from innkeeper.model.sizes import GIB, MIB

SOURCE = "/source"
SOCKET = "/nbd.sock"
_ADDRESS_SPACE_BYTES = 4 * GIB
_CPU_SECONDS = 6 * 3600
_OPEN_FILES = 64
_LOG_BYTES = 1 * MIB
"""It can write one file, its own log."""

# $1 new root, $2 source, $3 socket, $4 uid; the command follows. The mounts live and die with the process.
_PREPARE = """
set -e
root=$1 source=$2 socket=$3 uid=$4
shift 4
mount -t tmpfs -o mode=0755,size=64k,nosuid,nodev jail "$root"
mkdir "$root/usr" "$root/tmp"
for top in bin sbin lib lib64; do ln -s "usr/$top" "$root/$top"; done
mount --bind -o ro,nosuid,nodev /usr "$root/usr"
mount -o remount,bind,ro,nosuid,nodev "$root/usr"
touch "$root/source" "$root/nbd.sock"
mount --bind "$source" "$root/source"
mount -o remount,bind,ro,nosuid,nodev,noexec "$root/source"
mount --bind "$socket" "$root/nbd.sock"
mount -o remount,ro,nosuid,nodev "$root"
exec chroot "$root" /usr/bin/prlimit --as=LIMIT_AS --cpu=LIMIT_CPU --nofile=LIMIT_FILES --core=0 --fsize=LIMIT_LOG \
    /usr/bin/setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all --ambient-caps=-all "$@"
"""


@dataclass(frozen=True, slots=True)
class Jail:
    """Where a jail is built and what is let in: ``root`` is an empty directory used as its mount point."""

    root: Path
    source: Path
    socket: Path
    uid: int


def jailed(jail: Jail, command: Sequence[str], *, root_is_mount_point: bool = True) -> tuple[str, ...]:
    """The command line that runs ``command`` (paths as seen inside) in ``jail``; needs root.

    In a plain chroot the root directory is no mount point and its propagation cannot be changed: then
    ``root_is_mount_point`` is false and the caller unmounts ``jail.root`` afterwards if it is still mounted.
    """
    script = (
        _PREPARE.replace("LIMIT_AS", str(_ADDRESS_SPACE_BYTES))
        .replace("LIMIT_CPU", str(_CPU_SECONDS))
        .replace("LIMIT_FILES", str(_OPEN_FILES))
        .replace("LIMIT_LOG", str(_LOG_BYTES))
    )
    propagation = "private" if root_is_mount_point else "unchanged"
    return (
        *("unshare", "--mount", "--net", "--ipc", "--uts", "--propagation", propagation),
        *("/bin/sh", "-c", script, "jail"),
        *(str(jail.root), str(jail.source), str(jail.socket), str(jail.uid)),
        *command,
    )


def conversion(image_format: str, export: str) -> tuple[str, ...]:
    """qemu-img, inside a jail, from the source in that explicit format to the new, all-zero NBD export."""
    return (
        *("/usr/bin/qemu-img", "convert", "-p", "-n", "--target-is-zero", "-t", "writeback"),
        *("--image-opts", f"driver={image_format},file.driver=file,file.locking=off,file.filename={SOURCE}"),
        *("--target-image-opts", f"driver=nbd,server.type=unix,server.path={SOCKET},export={export}"),
    )
