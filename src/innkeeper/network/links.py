"""Bridges and taps of one network namespace: that of the thread that made the ``Links``.

Devices are known by their names' prefix; nothing without the inn's prefix is ever touched. Every ``ensure_*`` may be
repeated: it changes only what differs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from innkeeper.model.problems import Conflict, Failed, Problem, Unavailable
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.system import process

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFF_UP = 0x1
_NO_OWNER = 0xFFFFFFFF
"""A tap that any process may open."""


@dataclass(frozen=True, slots=True)
class Device:
    """What the kernel says of a link: ``kind`` as in ``ip -d link`` (a tap is ``tun``), ``master`` an index."""

    name: str
    index: int
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int
    owner_uid: int | None


@dataclass(frozen=True, slots=True)
class Route:
    """An IPv4 network (CIDR) that the host reaches through ``device``."""

    network: str
    device: str


class Links:
    """Netlink and ioctl, blocking. Raises ``Failed`` (``link.refused``) when the kernel refuses."""

    def __init__(self) -> None:
        self._netlink = IPRoute()

    def close(self) -> None:
        self._netlink.close()

    def devices(self, *prefixes: str) -> dict[str, Device]:
        """The links whose names begin with one of ``prefixes``, by name."""
        with _kernel("the links cannot be listed"):
            found = [_device(link) for link in self._netlink.get_links()]
        return {device.name: device for device in found if device.name.startswith(prefixes)}

    def device(self, name: str) -> Device | None:
        try:
            answer = list(self._netlink.link("get", ifname=name))
        except NetlinkError as refused:
            if refused.code == errno.ENODEV:
                return None
            raise _failed(f"{name} cannot be read", refused) from refused
        return _device(answer[0]) if answer else None

    def ensure_bridge(self, switch: SwitchPolicy, present: Device | None) -> list[str]:
        """Make the bridge as ``switch`` says; ``present`` is what stands under its name. Returns what was done.

        Raises ``Conflict`` (``switch.device_taken``) when the name belongs to something that is no bridge.
        """
        done = []
        name = switch.bridge
        if present is not None and present.kind != "bridge":
            raise Conflict(
                "switch.device_taken",
                f"{name} exists and is a {present.kind or 'device'}, not a bridge",
                remedy=f"remove it: ip link del {name}",
            )
        if present is None:
            with _kernel(f"bridge {name} cannot be made"):
                # No spanning tree: ports forward at once. No snooping: without a querier it loses neighbour discovery.
                self._netlink.link(
                    "add",
                    ifname=name,
                    kind="bridge",
                    address=switch.mac,
                    br_stp_state=0,
                    br_forward_delay=0,
                    br_mcast_snooping=0,
                )
            # LLDP and the like would teach the bridge macs without passing any rule; pyroute2 does not know the option.
            process.run(["ip", "link", "set", "dev", name, "type", "bridge", "no_linklocal_learn", "1"])
            done.append(f"make bridge {name}")
            present = self._present(name)
            _quiet_ipv6(name, speaks=switch.gateway is not None)
        if (present.mac, present.mtu, present.up) != (switch.mac, switch.mtu, True):
            with _kernel(f"bridge {name} cannot be set up"):
                self._netlink.link("set", index=present.index, address=switch.mac, mtu=switch.mtu, state="up")
            if not done:
                done.append(f"set up bridge {name}")
        return done + self._ensure_address(switch, present.index)

    def ensure_tap(self, port: PortPolicy, bridge: Device, mtu: int, present: Device | None) -> list[str]:
        """Make the port's persistent tap and plug it into ``bridge``; returns what was done.

        Raises ``Conflict`` (``nic.device_taken``), ``Unavailable`` (``nic.tun_missing``).
        """
        done = []
        if present is not None and present.kind != "tun":
            raise Conflict(
                "nic.device_taken",
                f"{port.tap} exists and is a {present.kind or 'device'}, not a tap",
                remedy=f"remove it: ip link del {port.tap}",
            )
        owner = port.owner_uid or 0
        if present is None or present.owner_uid != owner:
            _make_tap(port.tap, owner)
            done.append(f"make tap {port.tap}" if present is None else f"give tap {port.tap} to uid {owner}")
        if present is None:
            present = self._present(port.tap)
            _quiet_ipv6(port.tap, speaks=False)
        if (present.master, present.mtu, present.up) != (bridge.index, mtu, True):
            with _kernel(f"tap {port.tap} cannot be plugged into {bridge.name}"):
                self._netlink.link("set", index=present.index, mtu=mtu, master=bridge.index, state="up")
            if not done:
                done.append(f"plug tap {port.tap} into {bridge.name}")
        return done

    def routes(self) -> list[Route]:
        """The host's IPv4 routes other than the default ones and loopback's."""
        with _kernel("the routes cannot be listed"):
            names = {link["index"]: str(link.get("ifname")) for link in self._netlink.get_links()}
            messages = list(self._netlink.get_routes(family=2))
        return [
            Route(f"{message.get('dst')}/{message['dst_len']}", names.get(message.get("oif"), ""))
            for message in messages
            if message["type"] == 1 and message["dst_len"] > 0 and names.get(message.get("oif")) != "lo"
        ]

    def remove(self, name: str, kind: str) -> bool:
        """Remove the link ``name`` of that kind; False when there was none. One of another kind is not the inn's."""
        present = self.device(name)
        if present is None or present.kind != kind:
            return False
        try:
            self._netlink.link("del", index=present.index)
        except NetlinkError as refused:
            if refused.code == errno.ENODEV:
                return False
            raise _failed(f"{name} cannot be removed", refused) from refused
        return True

    def _present(self, name: str) -> Device:
        device = self.device(name)
        if device is None:
            raise Failed("link.refused", f"{name} has vanished while it was set up", remedy="try again")
        return device

    def _ensure_address(self, switch: SwitchPolicy, index: int) -> list[str]:
        network = switch.network
        wanted = {(switch.gateway, network.prefixlen)} if network is not None and switch.gateway is not None else set()
        with _kernel(f"the addresses of {switch.bridge} cannot be set"):
            held = {
                (message.get("address"), message["prefixlen"])
                for message in self._netlink.get_addr(family=2, index=index)
            }
            for address, length in held - wanted:
                self._netlink.addr("del", index=index, address=address, prefixlen=length)
            for address, length in wanted - held:
                self._netlink.addr("add", index=index, address=address, prefixlen=length)
        return [f"give {switch.bridge} the address {address}/{length}" for address, length in wanted - held]


def open_tap(name: str) -> int:
    """An open descriptor of the tap ``name``, to be passed to QEMU (``-netdev tap,fd=``). Needs root.

    A tap that does not exist is made, and vanishes with the descriptor unless it is made persistent.

    Raises ``Conflict`` (``nic.tap_busy``) while another process has it open, ``Failed`` (``link.refused``).
    """
    if not name.startswith("intp-"):
        raise Failed("link.refused", f"{name!r} is not a tap of an inn")
    descriptor = _open_tun()
    try:
        fcntl.ioctl(
            descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        )
    except OSError as refused:
        os.close(descriptor)
        if refused.errno == errno.EBUSY:
            raise Conflict(
                "nic.tap_busy", f"{name} is open in another process", remedy="stop the QEMU process that has it"
            ) from refused
        raise _failed(f"{name} cannot be opened", refused) from refused
    return descriptor


def _open_tun() -> int:
    try:
        return os.open(_TUN, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as missing:
        raise Unavailable(
            "nic.tun_missing",
            f"{_TUN} cannot be opened",
            cause=str(missing),
            remedy="load the tun module; see 'inn doctor'",
        ) from missing


def _make_tap(name: str, owner_uid: int) -> None:
    """A tap that stays when nobody has it open; an existing one gets the owner."""
    descriptor = open_tap(name)
    try:
        fcntl.ioctl(descriptor, _TUNSETOWNER, owner_uid)
        fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except OSError as refused:
        raise _failed(f"tap {name} cannot be made", refused) from refused
    finally:
        os.close(descriptor)


def _quiet_ipv6(name: str, *, speaks: bool) -> None:
    """``speaks``: the device has a link-local address but believes no router; otherwise the host is silent on it."""
    settings = {"accept_ra": "0", "autoconf": "0"} if speaks else {"disable_ipv6": "1"}
    for setting, value in settings.items():
        write_sysctl(f"net/ipv6/conf/{name}/{setting}", value, optional=True)


def write_sysctl(key: str, value: str, *, optional: bool = False) -> bool:
    """Set ``/proc/sys/<key>`` of this thread's namespace; True when that changed it.

    ``optional``: a kernel without that setting is fine. Raises ``Failed`` (``host.sysctl``).
    """
    path = Path("/proc/sys") / key
    try:
        if path.read_text().strip() == value:
            return False
        path.write_text(value)
    except OSError as refused:
        if optional and refused.errno == errno.ENOENT:
            return False
        raise Failed(
            "host.sysctl",
            f"{key.replace('/', '.')} cannot be set to {value}",
            cause=str(refused),
            remedy=f"set it as root: sysctl -w {key.replace('/', '.')}={value}",
        ) from refused
    return True


def _device(link: Any) -> Device:
    info = link.get("linkinfo")
    kind = info.get("kind") if info is not None else None
    data = info.get("data") if info is not None else None
    owner = data.get("tun_owner") if kind == "tun" and data is not None else None
    return Device(
        name=link.get("ifname"),
        index=link["index"],
        kind=kind or "",
        mac=link.get("address") or "",
        mtu=link.get("mtu") or 0,
        up=bool(link["flags"] & _IFF_UP),
        master=link.get("master") or 0,
        owner_uid=None if owner in (None, _NO_OWNER) else owner,
    )


@contextmanager
def _kernel(what: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as refused:
        raise _failed(what, refused) from refused


def _failed(what: str, refused: Exception) -> Problem:
    return Failed("link.refused", what, cause=str(refused), remedy="'inn doctor' checks what this kernel can do")
