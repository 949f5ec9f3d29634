"""Letting the host forward, IPv6 without losing its own way out. In the network namespace of the thread."""

from __future__ import annotations

from pathlib import Path

from innkeeper.network.links import write_sysctl
from innkeeper.network.policy import SwitchPolicy

_FORWARDING4 = "net/ipv4/ip_forward"
_INTERFACES = Path("/proc/sys/net/ipv6/conf")


def forward(switch: SwitchPolicy) -> list[str]:
    """Make the host a router as far as the switch needs one; returns what was done.

    Raises ``Failed`` (``host.sysctl``).
    """
    done = []
    if switch.way_out and write_sysctl(_FORWARDING4, "1"):
        done.append("let the host forward IPv4 (net.ipv4.ip_forward=1)")
    if switch.kind == "nat" and switch.subnet6 is not None:
        done += forward_ipv6()
    return done


def forward_ipv6() -> list[str]:
    """Make the host a router for IPv6; returns what was done.

    A kernel that forwards believes no router advertisement where ``accept_ra`` is 1, and forgets the default routes it
    had from them: with 2 it goes on (Linux, ``ip-sysctl``). So that is set first, wherever it is 1.
    Raises ``Failed`` (``host.sysctl``).
    """
    if (_INTERFACES / "all/forwarding").read_text().strip() == "1":
        return []
    done = []
    for folder in sorted(_INTERFACES.iterdir()):
        if folder.name not in ("all", "lo") and _stops_believing(folder):
            write_sysctl(f"net/ipv6/conf/{folder.name}/accept_ra", "2", optional=True)
            done.append(f"let {folder.name} go on to believe routers (net.ipv6.conf.{folder.name}.accept_ra=2)")
    write_sysctl("net/ipv6/conf/all/forwarding", "1")
    return [*done, "let the host forward IPv6 (net.ipv6.conf.all.forwarding=1)"]


def _stops_believing(folder: Path) -> bool:
    """Whether ``accept_ra`` is 1 there; an interface that has gone meanwhile does not matter."""
    try:
        return (folder / "accept_ra").read_text().strip() == "1"
    except OSError:
        return False
