"""What manages a network card of the host (systemd-networkd, NetworkManager, ifupdown), from the files they keep.

Nothing of theirs is changed: their configuration is what makes the host reachable when the inn is down.
"""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from pathlib import Path

_UNMANAGED = {"", "false", "0", "unmanaged", "unknown"}


def find_manager(name: str, index: int, root: Path = Path("/")) -> str:
    """In words, what set the card up; empty when that is not known. ``root`` is where the files of the host are."""
    for found in (_networkd(index, root), _network_manager(index, root), _ifupdown(name, root)):
        if found:
            return found
    return ""


def advice(name: str, manager: str, bridge: str) -> str:
    """What to do about ``manager`` when the card becomes the uplink of a switch."""
    keep = f"leave what it has for {name}: with it the host is reached when the inn is down"
    if manager.startswith("NetworkManager"):
        return (
            f"{name} is managed by {manager}; {keep}. At run time tell it to leave the card alone: "
            f"nmcli device set {name} managed no"
        )
    return f"{name} is managed by {manager}; {keep}, and what it sets up there is moved to {bridge} within 30 s"


def find_client_id(name: str, index: int, mac: str, root: Path = Path("/")) -> str:
    """The identifier (option 61, hexadecimal) that the card's DHCP client tells the server; empty for none.

    systemd-networkd and dhclient note it beside the lease; NetworkManager's is the mac unless set otherwise.
    """
    noted = _members(_read(root / f"run/systemd/netif/leases/{index}")).get("CLIENTID", "")
    if not noted:
        told = re.findall(r"option dhcp-client-identifier ([0-9a-f:]+);", _dhclient_leases(name, root))
        noted = "".join(octet.zfill(2) for octet in told[-1].split(":")) if told else ""
    if not noted and _network_manager(index, root):
        noted = "01" + mac.replace(":", "")
    return noted.lower() if re.fullmatch(r"([0-9a-fA-F]{2}){1,255}", noted) else ""


def _dhclient_leases(name: str, root: Path) -> str:
    return "".join(_read(path) for path in sorted((root / "var/lib/dhcp").glob(f"dhclient*{name}*.leases")))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _members(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))


def _networkd(index: int, root: Path) -> str:
    state = _members(_read(root / f"run/systemd/netif/links/{index}"))
    if state.get("ADMIN_STATE", "") in ("", "unmanaged", "initialized", "pending"):
        return ""
    file = Path(state.get("NETWORK_FILE", "")).name
    made_by = "netplan, by systemd-networkd" if "netplan" in file else "systemd-networkd"
    return f"{made_by} ({file})" if file else made_by


def _network_manager(index: int, root: Path) -> str:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(_read(root / f"run/NetworkManager/devices/{index}"))
    except configparser.Error:
        return ""
    if parser.get("device", "managed", fallback="").lower() in _UNMANAGED:
        return ""
    uuid = parser.get("device", "connection-uuid", fallback="")
    return f"NetworkManager (connection {uuid})" if uuid else "NetworkManager"


def _ifupdown(name: str, root: Path) -> str:
    methods = [
        method
        for path in _interface_files(root)
        for method in re.findall(rf"^\s*iface\s+{re.escape(name)}\s+inet6?\s+(\S+)", _read(path), re.MULTILINE)
    ]
    if not methods:
        return ""
    return f"ifupdown ({root / 'etc/network/interfaces'}, {' and '.join(dict.fromkeys(methods))})"


def _interface_files(root: Path) -> Iterator[Path]:
    yield root / "etc/network/interfaces"
    yield from sorted((root / "etc/network/interfaces.d").glob("*"))
