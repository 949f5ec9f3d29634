"""A lane of tests inside a QEMU guest (TCG) that runs Debian's full kernel, for what this machine's kernel may lack:
VLAN-aware bridges, bonding, conntrack in the bridge family, GRE taps, 8021q, act_police and the like.

To add a test, write ``tests/lane/test_*.py`` as if its machine were a Debian of its own: it runs as root, may use
``innkeeper``, ``tests/support`` (``switch_lab``, ``frames`` …), ``nft``, ``ip`` and ``modprobe``, and needs no marker.
Give every network namespace and device a name of your own, as outside; the guest lasts for the whole run.

    pytest tests/lane                          # boots one guest, runs all of them in it, reports each as its own
    pytest tests/lane/test_kernel.py -k vlan   # the same with fewer

How: ``tests/lane/conftest.py`` hands the chosen tests to ``run``, which boots the kernel once with this machine's files
as its root (9p, read-only, with a tmpfs above them: whatever a test writes is gone afterwards). Pytest runs there and
writes one JSON line per report; here they are reported as if the tests had run here. Conftest files above
``tests/lane`` and pytest's plugins are not loaded inside; keep imports few, since starting Python is slow there.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe import cache_directory

from innkeeper.compute.images import cpio
from innkeeper.compute.images.kernel_modules import ModuleTree
from innkeeper.compute.images.packages import Archive, unpack

INSIDE = "INNKEEPER_LANE"
"""Set inside the guest to the file that reports are written to."""
ROOT = Path(__file__).parents[2]
TIMEOUT_S = 280.0
_KERNEL = "linux-image-amd64"
_BOOT_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay")
_MEMORY_MIB = 768


@dataclass(frozen=True)
class _Kernel:
    image: Path
    initramfs: Path
    modules: Path
    """The directory that becomes /lib/modules."""


class LaneFailed(AssertionError):
    """The guest ended without a report of a test; carries its console's last lines."""


def run(node_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Run these tests (ids relative to the repository) in one guest: id -> its reports, as pytest serialises them."""
    with tempfile.TemporaryDirectory(prefix="inn-lane-") as folder:
        exchange = Path(folder)
        console = exchange / "console"
        (exchange / "tests").write_text("\n".join(node_ids) + "\n")
        (exchange / "start").write_text(_start_script())
        status = _boot(_kernel(), exchange, console)
        reports: dict[str, list[dict[str, Any]]] = {node_id: [] for node_id in node_ids}
        written = exchange / "reports"
        for line in written.read_text().splitlines() if written.exists() else ():
            report = json.loads(line)
            reports.setdefault(report["nodeid"], []).append(report)
        missing = [node_id for node_id, found in reports.items() if not found]
        if missing:
            said = [
                path.read_text(errors="replace")[-3000:] for path in (console, exchange / "output") if path.exists()
            ]
            raise LaneFailed(f"the guest ended ({status}) without {', '.join(missing)}:\n" + "\n".join(said))
        return reports


def _boot(kernel: _Kernel, exchange: Path, console: Path) -> str:
    """Run the guest until it powers off."""

    def share(path: Path, tag: str, *options: str) -> tuple[str, str]:
        return "-virtfs", ",".join([f"local,path={path},mount_tag={tag},security_model=none", *options])

    command = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "1", "-m", str(_MEMORY_MIB)),
        *("-serial", f"file:{console}", "-device", "virtio-rng-pci"),
        *("-kernel", str(kernel.image), "-initrd", str(kernel.initramfs)),
        *("-append", "console=ttyS0 quiet panic=-1 mitigations=off"),
        *share(Path("/"), "host", "readonly=on", "multidevs=remap"),
        *share(kernel.modules, "modules", "readonly=on"),
        *share(exchange, "exchange", "multidevs=remap"),
    ]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as qemu:
        try:
            said, _ = qemu.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return f"not within {TIMEOUT_S:.0f} s"
        finally:
            qemu.kill()
    return said.decode(errors="replace").strip() or f"exit {qemu.returncode}"


def _start_script() -> str:
    """What the guest's first process runs, in the overlay root."""
    python_path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests/support")])
    return f"""\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH={python_path} PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
export {INSIDE}=/lane/reports
ip link set lo up
hostname lane
cd {ROOT}
xargs -d '\\n' {sys.executable} -m pytest -q -p no:cacheprovider --confcutdir=tests/lane \\
    --basetemp=/tmp/lane-pytest < /lane/tests > /lane/output 2>&1
"""


_INIT = """\
#!/bin/busybox sh
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "no module $module"; done
mount -t tmpfs -o size=300m upper /upper
mkdir /upper/up /upper/work
options=trans=virtio,version=9p2000.L,msize=512000,cache=loose
mount -t 9p -o ro,$options host /lower || echo "the host's files cannot be mounted"
mount -t overlay -o lowerdir=/lower,upperdir=/upper/up,workdir=/upper/work root /new || echo "no overlay"
mount -t proc proc /new/proc
mount -t sysfs sys /new/sys
mount -t devtmpfs dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm /new/lib/modules /new/lane
mount -t devpts pts /new/dev/pts
for fresh in dev/shm run tmp; do mount -t tmpfs fresh /new/$fresh && chmod 1777 /new/$fresh; done
mount -t 9p -o ro,$options modules /new/lib/modules || echo "the modules cannot be mounted"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000 exchange /new/lane || echo "no exchange"
chroot /new /bin/sh /lane/start
sync
poweroff -f
"""
_MODPROBE = """\
#!/bin/busybox sh
exec /bin/busybox chroot /new /sbin/modprobe "$@"
"""


def _kernel() -> _Kernel:
    """Debian's newest kernel of this release, unpacked once in the tests' cache."""
    cache = cache_directory()
    archive = Archive(cache / "packages")
    package = archive.real_name(_KERNEL)
    version = package.removeprefix("linux-image-")
    base = cache / "lane" / package
    files, modules = base / "files", base / "files/usr/lib/modules"
    (cache / "lane").mkdir(exist_ok=True)
    with (cache / "lane.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "ready").exists():
            shutil.rmtree(cache / "lane")
            found = archive.fetch(archive.locate([package, "busybox-static"]), lambda _fraction, _text: None)
            unpack(found, files, base)
            subprocess.run(["depmod", "-b", str(files), version], check=True)
            (base / "ready").touch()
        digest = hashlib.sha256(repr((_INIT, _MODPROBE, _BOOT_MODULES)).encode()).hexdigest()[:12]
        initramfs = base / f"initramfs-{digest}.gz"
        if not initramfs.exists():
            fresh = initramfs.with_suffix(".new")
            fresh.write_bytes(gzip.compress(_initramfs(files, ModuleTree(modules / version)), 1, mtime=0))
            fresh.rename(initramfs)
    return _Kernel(files / f"boot/vmlinuz-{version}", initramfs, modules)


def _initramfs(files: Path, tree: ModuleTree) -> bytes:
    boot = tree.load_order(_BOOT_MODULES)
    folders = ("bin", "dev", "lower", "modules", "new", "proc", "sbin", "upper")
    return cpio.archive(
        [
            *(cpio.Entry.directory(name) for name in folders),
            cpio.Entry.character_device("dev/console", 5, 1),
            cpio.Entry.file("bin/busybox", (files / "usr/bin/busybox").read_bytes(), executable=True),
            cpio.Entry.file("init", _INIT.encode(), executable=True),
            # The kernel asks for modules in the first root, which is this one.
            cpio.Entry.file("sbin/modprobe", _MODPROBE.encode(), executable=True),
            cpio.Entry.file("modules/order", "".join(f"{name}\n" for name in boot).encode()),
            *(cpio.Entry.file(f"modules/{name}.ko", elf) for name, elf in boot.items()),
        ]
    )
