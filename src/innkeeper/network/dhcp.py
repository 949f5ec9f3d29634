"""DHCP and DNS of a switch: one dnsmasq, its configuration, and its process.

Files of a switch, in a directory that others may pass (dnsmasq reads the last two after it has given up root):

    dnsmasq.conf    fixed while the switch stands; a change restarts dnsmasq
    dnsmasq.pid     dnsmasq's own
    leases          dnsmasq's own
    dnsmasq.log     what it said
    reservations    mac -> address and name; a change is a SIGHUP
    hosts           address -> names; likewise
"""

from __future__ import annotations

import ipaddress
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from innkeeper.model.problems import Failed, Unavailable
from innkeeper.network.dhcp_policy import dhcp_options
from innkeeper.network.ipv6 import advertising
from innkeeper.network.policy import PortPolicy, SwitchPolicy, dns_label
from innkeeper.network.tenant import inner_device
from innkeeper.system import process

_START_S = 10.0
_STOP_S = 5.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that dnsmasq gave; ``expires`` in seconds since the epoch, 0 for never."""

    address: str
    mac: str
    hostname: str
    expires: int


@dataclass(frozen=True, slots=True)
class Files:
    """The contents of a switch's three configuration files."""

    configuration: str
    reservations: str
    hosts: str


def compile_files(switch: SwitchPolicy, ports: Sequence[PortPolicy], directory: Path, user: str) -> Files:
    """The files of a switch that serves DHCP, in ``directory``, for a dnsmasq that runs as ``user``. Pure."""
    network, gateway, dhcp = switch.network, switch.gateway, switch.dhcp_policy
    if network is None or gateway is None:
        raise Failed("switch.no_dhcp", f"switch {switch.name} has no address to serve DHCP from")
    options: list[tuple[str, str | None]] = [
        ("interface", switch.bridge if switch.overlay is None else inner_device(switch)),
        ("except-interface", "lo"),
        ("bind-dynamic", None),
        ("user", user),
        ("pid-file", str(directory / "dnsmasq.pid")),
        ("dhcp-leasefile", str(directory / "leases")),
        ("dhcp-hostsfile", str(directory / "reservations")),
        ("addn-hosts", str(directory / "hosts")),
        ("no-hosts", None),
        # Only the upstream servers of the host are asked, and only where guests have a way out themselves.
        *([] if switch.way_out else [("no-resolv", None)]),
        ("domain", switch.dns_domain),
        ("local", f"/{switch.dns_domain}/"),
        ("domain-needed", None),
        ("bogus-priv", None),
        ("dhcp-range", f"{network.network_address},static,{network.netmask},{dhcp.lease_s}"),
        ("dhcp-authoritative", None),
        # Names come from the inn, never from a guest; and a cloned guest that still has its origin's client id is told
        # apart by its mac.
        ("dhcp-ignore-names", None),
        ("dhcp-ignore-clid", None),
        *dhcp_options(dhcp, gateway, switch.dns_domain, switch.mtu, routes=switch.way_out or switch.kind == "virtual"),
        ("no-ping", None),
        ("quiet-dhcp", None),
        ("log-facility", "-"),
    ]
    own = sorted({port.mtu for port in ports if port.mtu is not None})
    options += [("dhcp-option", f"tag:mtu{mtu},option:mtu,{mtu}") for mtu in own]
    if switch.network6 is not None:
        options += advertising(
            switch.bridge, switch.network6, switch.ra_mode, dhcp, switch.dns_domain, switch.mtu, routes=switch.way_out
        )
    return Files(
        configuration="".join(f"{key}={value}\n" if value is not None else f"{key}\n" for key, value in options),
        reservations="".join(f"{line}\n" for line in sorted(_reservations(switch, ports))),
        hosts="".join(f"{line}\n" for line in _hosts(switch, ports)),
    )


def _reservations(switch: SwitchPolicy, ports: Sequence[PortPolicy]) -> list[str]:
    """Lines of mac, addresses and name, of the ports that have an address on the switch and of other macs."""
    lines = []
    for port in ports:
        inside = [text for text in port.ipv4[:1] if switch.network and ipaddress.IPv4Address(text) in switch.network]
        if switch.ra_mode == "managed" and switch.network6 is not None:
            own = [text for text in port.ipv6 if ipaddress.IPv6Address(text) in switch.network6]
            inside += [f"[{text}]" for text in own[:1]]
        if inside:
            tag = f"set:mtu{port.mtu}" if port.mtu is not None else ""
            lines.append(",".join(part for part in (port.mac, tag, *inside, dns_label(port.hostname)) if part))
    others = switch.dhcp_policy.reservations
    return lines + [",".join(part for part in (one.mac, one.address, one.hostname) if part) for one in others]


def _hosts(switch: SwitchPolicy, ports: Sequence[PortPolicy]) -> list[str]:
    """Lines of address and names: the host's first."""
    domain = switch.dns_domain
    lines = []
    for port in ports:
        if name := dns_label(port.hostname):
            lines += [f"{text} {name}.{domain} {name}" for text in (*port.ipv4[:1], *port.ipv6[:1])]
    others = switch.dhcp_policy.reservations
    lines += [f"{one.address} {one.hostname}.{domain} {one.hostname}" for one in others if one.hostname]
    gateways = [text for text in (switch.gateway, switch.gateway6) if text is not None]
    return [*(f"{text} gateway.{domain} gateway" for text in gateways), *sorted(lines)]


def parse_leases(text: str) -> list[Lease]:
    """The leases in dnsmasq's file: lines of expiry, mac, address, name or ``*``, client id.

    Those of IPv6 have an association's number in place of the mac, which is left empty.
    """
    leases = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 5 and fields[0].isdigit():
            mac = "" if ":" in fields[2] else fields[1]
            leases.append(Lease(fields[2], mac, "" if fields[3] == "*" else fields[3], int(fields[0])))
    return leases


class Server:
    """The dnsmasq of one switch: started, told of changes, stopped, and taken over from an earlier daemon. Blocking."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._child: subprocess.Popen[bytes] | None = None

    def ensure(self, switch: SwitchPolicy, ports: Sequence[PortPolicy]) -> list[str]:
        """Make dnsmasq run with this configuration and these reservations; returns what was done.

        Raises ``Unavailable`` (``tool.missing``), ``Failed`` (``switch.dhcp_failed``, ``switch.directory``).
        """
        self._prepare()
        files = compile_files(switch, ports, self._directory, service_user())
        restart = _write(self._directory / "dnsmasq.conf", files.configuration)
        reload = _write(self._directory / "reservations", files.reservations)
        reload |= _write(self._directory / "hosts", files.hosts)
        pid = self.pid()
        if pid is not None and (restart or not _is_here(pid)):
            self.stop()
            pid = None
        if pid is None:
            self._await_former()
            self._start(switch)
            return [f"start DHCP and DNS of switch {switch.name}"]
        if reload:
            if not _signal(pid, signal.SIGHUP):  # it has just ended
                self._start(switch)
                return [f"start DHCP and DNS of switch {switch.name}"]
            return [f"tell DHCP and DNS of switch {switch.name} its reservations"]
        return []

    def pid(self) -> int | None:
        """The process that serves from this directory; None when there is none."""
        try:
            pid = int((self._directory / "dnsmasq.pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return None
        return pid if self._argument().encode() in command else None

    def stop(self) -> bool:
        """End the process and wait for it; False when there was none."""
        pid = self.pid()
        if pid is None:
            return False
        _signal(pid, signal.SIGTERM)
        if not _until(lambda: self._gone(pid), _STOP_S):
            _signal(pid, signal.SIGKILL)
            _until(lambda: self._gone(pid), _STOP_S)
        (self._directory / "dnsmasq.pid").unlink(missing_ok=True)
        return True

    def remove(self) -> bool:
        """End the process and remove its files; False when there was no process."""
        stopped = self.stop()
        shutil.rmtree(self._directory, ignore_errors=True)
        return stopped

    def leases(self) -> list[Lease]:
        try:
            return parse_leases((self._directory / "leases").read_text())
        except FileNotFoundError:
            return []

    def _argument(self) -> str:
        return f"--conf-file={self._directory / 'dnsmasq.conf'}"

    def _gone(self, pid: int) -> bool:
        """Whether the process has ended; one that this daemon started is reaped."""
        if self._child is not None:
            self._child.poll()
        return process.has_ended(pid)

    def _await_former(self) -> None:
        """Wait for one that is being ended: it holds the switch's address until it is gone."""
        try:
            pid = int((self._directory / "dnsmasq.pid").read_text())
            leaving = not Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return
        if leaving:
            _until(lambda: self._gone(pid), _STOP_S)

    def _prepare(self) -> None:
        try:
            self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            closed = [folder for folder in (self._directory, *self._directory.parents) if not folder.stat().st_mode & 1]
        except OSError as refused:
            raise Failed(
                "switch.directory", f"{self._directory} cannot be made", cause=str(refused), remedy="see 'inn doctor'"
            ) from refused
        if closed:
            raise Failed(
                "switch.directory",
                f"dnsmasq, which does not run as root, cannot reach {self._directory}",
                cause=f"others may not pass {closed[-1]}",
                remedy=f"chmod o+x {closed[-1]}",
            )

    def _start(self, switch: SwitchPolicy) -> None:
        log = self._directory / "dnsmasq.log"
        log.unlink(missing_ok=True)
        (self._directory / "dnsmasq.pid").unlink(missing_ok=True)
        child = process.spawn(["dnsmasq", "--keep-in-foreground", self._argument()], log=log)
        if _until(lambda: self.pid() is not None or child.poll() is not None, _START_S) and child.poll() is None:
            self._child = child
            return
        child.kill()
        child.wait()
        raise Failed(
            "switch.dhcp_failed",
            f"DHCP and DNS of switch {switch.name} did not start",
            cause=log.read_text(errors="replace").strip()[-1000:] or f"dnsmasq ended with {child.returncode}",
            remedy="another DHCP or DNS server may hold the address: 'inn doctor' names it",
        )


def _signal(pid: int, number: signal.Signals) -> bool:
    """Whether the process was there to hear it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _is_here(pid: int) -> bool:
    """Whether a process is in this thread's network namespace."""
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
    except OSError:
        return False


def service_user() -> str:
    """The unprivileged user that dnsmasq runs as: Debian's own for it where that exists.

    Raises ``Unavailable`` (``switch.no_user``).
    """
    for name in ("dnsmasq", "nobody"):
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise Unavailable("switch.no_user", "there is no user dnsmasq or nobody", remedy="adduser --system dnsmasq")


def _write(path: Path, text: str) -> bool:
    """Replace the file when its text differs; True when it did. Raises ``Failed`` (``switch.directory``)."""
    fresh = path.with_suffix(".new")
    try:
        if path.exists() and path.read_text() == text:
            return False
        fresh.write_text(text)
        fresh.chmod(0o644)
        fresh.rename(path)
    except OSError as refused:
        raise Failed(
            "switch.directory", f"{path} cannot be written", cause=str(refused), remedy="see 'inn doctor'"
        ) from refused
    return True


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
