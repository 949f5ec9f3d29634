"""Starting a guest's QEMU: its directories, control group, descriptors and uid; it outlives the daemon.

The process has a session of its own, no privileges, and a directory that it owns only until its sockets exist: root
takes the directory back before the guest runs its first instruction (``seal``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from innkeeper.compute import cgroups, qemu
from innkeeper.compute.adoption import HeldProcess
from innkeeper.compute.commandline import command_line
from innkeeper.compute.firmware import tail, unprivileged
from innkeeper.compute.inputs import Descriptors, MachineInputs
from innkeeper.model.problems import Failed, NotFound, Unavailable
from innkeeper.system import process
from innkeeper.system.paths import Paths

_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR = 0x0002, 0x1000, 0x4000
# Joins the control groups before anything is started, so that no thread and no page is outside them.
_JOIN = 'ulimit -c 0; while [ "$1" != -- ]; do echo $$ > "$1" || exit 97; shift; done; shift; exec "$@"'


@dataclass(frozen=True, slots=True)
class GuestPlace:
    """Where a guest lives on this host: ``run_dir`` for sockets, ``state_dir`` for its log and TPM."""

    run_dir: Path
    state_dir: Path
    uid: int
    cgroup: str

    @classmethod
    def of(cls, paths: Paths, vm_id: str, uid: int) -> GuestPlace:
        """The place of that vm in the inn."""
        return cls(paths.vm_run(vm_id), paths.vm_state(vm_id), uid, f"{paths.cgroup}/{vm_id[:8]}")

    @property
    def monitor_socket(self) -> Path:
        return self.run_dir / "qmp.sock"

    @property
    def agent_socket(self) -> Path:
        return self.run_dir / "qga.sock"

    @property
    def serial_socket(self) -> Path:
        return self.run_dir / "serial.sock"

    @property
    def vnc_socket(self) -> Path:
        return self.run_dir / "vnc.sock"

    @property
    def tpm_socket(self) -> Path:
        return self.run_dir / "tpm.sock"

    @property
    def tpm_state(self) -> Path:
        return self.state_dir / "tpm"

    @property
    def log(self) -> Path:
        return self.state_dir / "qemu.log"


def prepare_directories(place: GuestPlace) -> None:
    """Empty the sockets' directory and give it to the vm's uid; the way to it can be walked by all."""
    for directory in (place.run_dir.parent.parent, place.run_dir.parent, place.state_dir.parent, place.state_dir):
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        mode = stat.S_IMODE(directory.stat().st_mode)
        if not mode & stat.S_IXOTH:
            directory.chmod(mode | stat.S_IXGRP | stat.S_IXOTH)
    shutil.rmtree(place.run_dir, ignore_errors=True)
    place.run_dir.mkdir(mode=0o700)
    os.chown(place.run_dir, place.uid, place.uid)


def seal(place: GuestPlace) -> None:
    """Take the sockets' directory from the vm's uid: from here on only root reaches them. Before the guest runs."""
    os.chown(place.run_dir, 0, 0)


def launch(machine: MachineInputs, place: GuestPlace) -> HeldProcess:
    """Start QEMU, stopped before the guest's first instruction; ``prepare_directories`` was called.

    Raises ``Unavailable`` (``tool.missing``, ``qemu.too_old``, ``vm.no_tap``), ``Failed`` (``vm.start_failed``).
    """
    program = qemu.installed().program
    joins = [str(path) for path in cgroups.prepare(cgroups.detect(), place.cgroup, machine.memory_bytes)]
    with contextlib.ExitStack() as opened:
        descriptors = _open_all(machine, place, opened)
        arguments = command_line(machine, descriptors, place.run_dir)
        shim = ["/bin/sh", "-c", _JOIN, "inn-launch", *joins, "--"]
        command = [*shim, *unprivileged(place.uid), program, *arguments]
        try:
            return HeldProcess.of_child(process.spawn(command, log=place.log, pass_fds=descriptors.all()))
        except NotFound as ended:
            cause = tail(place.log) or ended.detail
            raise Failed(
                "vm.start_failed",
                f"vm {machine.name} did not start",
                cause=cause,
                remedy="'inn doctor' examines what this host lacks",
            ) from ended


def _open_all(machine: MachineInputs, place: GuestPlace, opened: contextlib.ExitStack) -> Descriptors:
    def keep(descriptor: int) -> int:
        opened.callback(os.close, descriptor)
        return descriptor

    sockets = [
        opened.enter_context(_listening(path))
        for path in (place.monitor_socket, place.agent_socket, place.serial_socket)
    ]
    taps = tuple(keep(open_tap(nic.tap)) for nic in machine.nics)
    try:
        seed = keep(os.open(machine.seed, os.O_RDONLY | os.O_CLOEXEC)) if machine.seed else None
        kvm = keep(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)) if machine.accelerator == "kvm" else None
    except OSError as refused:
        raise Failed(
            "vm.start_failed",
            f"vm {machine.name} cannot be started",
            cause=str(refused),
            remedy="'inn doctor' examines what this host lacks",
        ) from refused
    monitor, agent, serial = (one.fileno() for one in sockets)
    return Descriptors(monitor, agent, serial, taps, seed, kvm)


@contextlib.contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A listening unix socket that only root can connect to; closed here, open in the child."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(4)
        yield listener


def open_tap(name: str) -> int:
    """A descriptor of the existing tap device ``name``; the caller closes it.

    Raises ``Unavailable`` (``vm.no_tap``): attaching must not make a device that nobody guards.
    """
    if not Path(f"/sys/class/net/{name}/tun_flags").exists():
        raise Unavailable("vm.no_tap", f"the tap {name} does not exist", remedy="run 'inn up' to repair the switch")
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError as refused:
        os.close(descriptor)
        raise Unavailable("vm.no_tap", f"the tap device {name} is in use", cause=str(refused)) from refused
    return descriptor


def clear(place: GuestPlace) -> None:
    """Remove what a process that has ended leaves: its sockets and its control group. May be repeated."""
    shutil.rmtree(place.run_dir, ignore_errors=True)
    cgroups.remove(cgroups.detect(), place.cgroup)
