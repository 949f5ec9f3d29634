"""What the doctor needs to know of a host, gathered once, without judging."""

from __future__ import annotations

import ctypes
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from innkeeper.harden.ports import Listener, command_names, listeners
from innkeeper.model.problems import Unavailable
from innkeeper.network.features import FEATURES
from innkeeper.system import process
from innkeeper.system.kernel_parts import kernel_parts

TOOLS: dict[str, tuple[str, ...]] = {
    "qemu-system-x86_64": ("--version",),
    "qemu-img": ("--version",),
    "nft": ("--version",),
    "dnsmasq": ("--version",),
    "ip": ("-V",),
    "setpriv": ("--version",),
    "swtpm": ("--version",),
}
_DEVICES = ("/dev/kvm", "/dev/net/tun", "/dev/vhost-net")
_STA_UNSYNC = 0x40
_TIME_ERROR = 5
_KERNEL_PARTS = ("bridge", "nf_tables", "tun", "br_netfilter", *(part for one in FEATURES for part in one.parts))


@dataclass(frozen=True, slots=True)
class HostFacts:
    """A host at one moment. Sizes in bytes; a tool's version is None when it is not installed."""

    is_root: bool
    kernel: str
    devices: dict[str, bool]
    kernel_parts: dict[str, bool]
    cgroup_version: int
    tools: dict[str, str | None]
    state_free_bytes: int
    state_total_bytes: int
    memory_total_bytes: int
    memory_available_bytes: int
    clock_synchronised: bool | None
    unix_time: float
    founded: bool = False
    """Whether the state directory holds an inn already."""
    accelerator: str | None = None
    wanted_ports: tuple[tuple[str, int], ...] = ()
    gateways: tuple[tuple[str, str], ...] = ()
    """(bridge, address) of the switches that answer DHCP and DNS there."""
    listeners: tuple[Listener, ...] = ()
    """Those of other programs than this inn's."""
    foreign_drops: tuple[tuple[str, str], ...] = ()
    """What other firewall policies do to the guests' traffic: (finding, remedy)."""
    switch_findings: tuple[tuple[str, str], ...] = ()
    """(switch, what is wrong with it): an uplink that is gone, a move that nobody confirmed."""
    firewall_findings: tuple[str, ...] = ()
    """What of the host's firewall will not have been meant."""
    damaged_journal: str | None = None
    """A journal of events that could not be read and was set aside."""
    pool_problem: str | None = None
    """What the storage fabric says is wrong with its pool."""
    qos_alarms: tuple[str, ...] = ()
    """Minimums of QoS policies that cannot be held."""


def gather(
    state: Path,
    *,
    accelerator: str | None = None,
    wanted_ports: tuple[tuple[str, int], ...] = (),
    gateways: tuple[tuple[str, str], ...] = (),
    foreign_drops: tuple[tuple[str, str], ...] = (),
    switch_findings: tuple[tuple[str, str], ...] = (),
    firewall_findings: tuple[str, ...] = (),
    pool_problem: str | None = None,
    qos_alarms: tuple[str, ...] = (),
) -> HostFacts:
    """Look at this host.

    ``wanted_ports`` are (protocol, port) pairs that switches forward from, ``gateways`` (bridge, address) pairs.
    """
    space = shutil.disk_usage(_existing(state))
    memory = _meminfo()
    return HostFacts(
        is_root=os.geteuid() == 0,
        kernel=os.uname().release,
        devices={device: os.access(device, os.R_OK | os.W_OK) for device in _DEVICES},
        kernel_parts=kernel_parts(_KERNEL_PARTS),
        cgroup_version=2 if Path("/sys/fs/cgroup/cgroup.controllers").exists() else 1,
        tools={tool: _version(tool, arguments) for tool, arguments in TOOLS.items()},
        state_free_bytes=space.free,
        state_total_bytes=space.total,
        memory_total_bytes=memory.get("MemTotal", 0),
        memory_available_bytes=memory.get("MemAvailable", 0),
        clock_synchronised=_clock_synchronised(),
        unix_time=time.time(),
        founded=(state / "inn.json").exists(),
        accelerator=accelerator,
        wanted_ports=wanted_ports,
        gateways=gateways,
        listeners=_foreign_listeners(state),
        foreign_drops=foreign_drops,
        switch_findings=switch_findings,
        firewall_findings=firewall_findings,
        damaged_journal=str(aside) if (aside := state / "journal.db.damaged").exists() else None,
        pool_problem=pool_problem,
        qos_alarms=qos_alarms,
    )


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _meminfo() -> dict[str, int]:
    sizes = {}
    for line in _read("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            sizes[name] = int(rest.removesuffix(" kB")) * 1024
    return sizes


def _version(tool: str, arguments: tuple[str, ...]) -> str | None:
    if shutil.which(tool, path=process.BASE_ENVIRONMENT["PATH"]) is None:
        return None
    ended = process.run([tool, *arguments], check=False, timeout_s=10)
    first = (ended.stdout or ended.stderr).decode(errors="replace").strip().splitlines()
    return first[0] if first else "unknown version"


def _foreign_listeners(state: Path) -> tuple[Listener, ...]:
    try:
        found = listeners()
    except Unavailable:  # the doctor says that iproute2 is missing
        return ()
    return tuple(one for one in found if one.pid is None or not command_names(one.pid, state))


class _Timex(ctypes.Structure):
    """The beginning of the kernel's struct timex (adjtimex(2)); the rest is room that it may write to."""

    _fields_: ClassVar = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    ]


def _clock_synchronised() -> bool | None:
    """Whether the kernel says that something disciplines its clock; None when it may not be asked."""
    clock = _Timex()
    return disciplined(ctypes.CDLL(None).adjtimex(ctypes.byref(clock)), clock.status)


def disciplined(answered: int, status: int) -> bool | None:
    """What adjtimex(2) says by the state it answered (negative: it refused) and the status bits; pure."""
    return None if answered < 0 else answered != _TIME_ERROR and not status & _STA_UNSYNC
