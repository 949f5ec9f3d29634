"""VLAN devices of the host's own: they take the frames of their VLAN before a bridge could."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_CONFIG = Path("/proc/thread-self/net/vlan/config")
_DEVICES = Path("/sys/class/net")


def host_vlans() -> dict[tuple[str, int], str]:
    """(card, VLAN id) -> the host's VLAN device there."""
    with suppress(OSError):  # without the driver there are none
        return listed(_CONFIG.read_text())
    return {}


def bridge_ports(bridge: str) -> list[str]:
    """The ports of a bridge of the host's own; none where there is no such bridge."""
    with suppress(OSError):
        return sorted(port.name for port in (_DEVICES / bridge / "brif").iterdir())
    return []


def listed(text: str) -> dict[tuple[str, int], str]:
    """What the kernel's file says: two lines of heading, then ``eth0.7 | 7 | eth0``. A name may hold a bar itself."""
    found = {}
    for line in text.splitlines()[2:]:
        with suppress(ValueError):
            device, vlan_id, card = (word.strip() for word in line.rsplit("|", 2))
            found[card, int(vlan_id)] = device
    return found
