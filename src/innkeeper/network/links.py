"""Bridges and taps of one network namespace: that of the thread that made the ``Links``.

Devices are known by their names' prefix; nothing without the inn's prefix is ever touched. Every ``ensure_*`` may be
repeated: it changes only what differs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from innkeeper.model.problems import Conflict, Failed, Problem, Unavailable
from innkeeper.network.link_removal import remove_together
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.system import process

_TUN = "/dev/net/tun"
TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_TUNSETOWNER = 0x400454CC
TAP_FLAGS = 0x0002 | 0x1000 | 0x4000
"""IFF_TAP, IFF_NO_PI, IFF_VNET_HDR."""
_IFF_UP = 0x1
_IFA_F_NODAD = 0x02
_SCOPE_LINK = 253
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
    vlan_filtering: bool | None = None
    """Of a bridge; None when this kernel's bridges cannot."""


@dataclass(frozen=True, slots=True)
class Route:
    """A network (CIDR) that the host reaches through ``device``."""

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
            if switch.kind != "external":
                _quiet_ipv6(name, speaks=switch.host_address is not None, listens=switch.overlay is not None)
        if (present.mac, present.mtu, present.up) != (switch.mac, switch.mtu, True):
            with _kernel(f"bridge {name} cannot be set up"):
                self._netlink.link("set", index=present.index, address=switch.mac, mtu=switch.mtu, state="up")
            if not done:
                done.append(f"set up bridge {name}")
        # An external switch's bridge has the addresses of the host, not of the inn.
        return done if switch.kind == "external" else done + self._ensure_address(switch, present.index)

    def ensure_tap(
        self, port: PortPolicy, bridge: Device, mtu: int, present: Device | None, *, closed: bool = False
    ) -> list[str]:
        """Make the port's persistent tap and plug it into ``bridge``; returns what was done.

        ``closed``: nothing passes it until ``open_up``, since a bridge puts what joins it into its own VLAN.
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
        if closed or (present.master, present.mtu, present.up) != (bridge.index, mtu, True):
            with _kernel(f"tap {port.tap} cannot be plugged into {bridge.name}"):
                if closed and present.up:  # the kernel would take it down only after it has joined
                    self._netlink.link("set", index=present.index, state="down")
                state = "down" if closed else "up"
                self._netlink.link("set", index=present.index, mtu=mtu, master=bridge.index, state=state)
            if not done:
                done.append(f"plug tap {port.tap} into {bridge.name}")
        return done

    def open_up(self, taps: Iterable[str]) -> None:
        """Let frames pass those taps, which were plugged in closed."""
        for tap in taps:
            with _kernel(f"tap {tap} cannot be opened up"):
                self._netlink.link("set", index=self._present(tap).index, state="up")

    def unplug(self, tap: str) -> bool:
        """Take the tap out of its bridge and let it stand by itself, down; False when it was in none."""
        present = self.device(tap)
        if present is None or not present.master:
            return False
        with _kernel(f"tap {tap} cannot be unplugged"):
            self._netlink.link("set", index=present.index, master=0, state="down")
        return True

    def routes(self, version: int = 4) -> list[Route]:
        """The host's routes of that IP version, but the default ones, loopback's and those within a link."""
        with _kernel("the routes cannot be listed"):
            names = {link["index"]: str(link.get("ifname")) for link in self._netlink.get_links()}
            messages = list(self._netlink.get_routes(family=socket.AF_INET6 if version == 6 else socket.AF_INET))
        found = [
            Route(f"{message.get('dst')}/{message['dst_len']}", names.get(message.get("oif"), ""))
            for message in messages
            if message["type"] == 1 and message["dst_len"] > 0 and names.get(message.get("oif")) != "lo"
        ]
        return [route for route in found if not route.network.startswith(("fe80:", "ff"))]

    def addresses(self) -> list[str]:
        """The host's own IPv4 addresses."""
        with _kernel("the addresses cannot be listed"):
            return [str(message.get("address")) for message in self._netlink.get_addr(family=2)]

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

    def remove_together(self, names: Iterable[str], kind: str) -> list[str]:
        """Remove the links with those names that are of that kind, in one step; returns which were there."""
        found = [device for name in names if (device := self.device(name)) is not None and device.kind == kind]
        with _kernel(f"{len(found)} links cannot be removed"):
            remove_together(device.index for device in found)
        return [device.name for device in found]

    def _present(self, name: str) -> Device:
        device = self.device(name)
        if device is None:
            raise Failed("link.refused", f"{name} has vanished while it was set up", remedy="try again")
        return device

    def _ensure_address(self, switch: SwitchPolicy, index: int) -> list[str]:
        """The host's addresses on the switch; those of IPv6 stand at once, since nobody else may have them."""
        done = []
        for family, network, gateway, flags in (
            (socket.AF_INET, switch.network, switch.host_address, 0),
            (socket.AF_INET6, switch.network6, switch.gateway6, _IFA_F_NODAD),
        ):
            wanted = {(gateway, network.prefixlen)} if network is not None and gateway is not None else set()
            with _kernel(f"the addresses of {switch.bridge} cannot be set"):
                held = {
                    (message.get("address"), message["prefixlen"])
                    for message in self._netlink.get_addr(family=family, index=index)
                    if message["scope"] != _SCOPE_LINK
                }
                for address, length in held - wanted:
                    self._netlink.addr("del", index=index, address=address, prefixlen=length, family=family)
                for address, length in wanted - held:
                    facts = {"address": address, "prefixlen": length, "family": family, "flags": flags}
                    self._netlink.addr("add", index=index, **facts)
            done += [f"give {switch.bridge} the address {address}/{length}" for address, length in wanted - held]
        return done


def open_tap(name: str) -> int:
    """An open descriptor of the tap ``name``, to be passed to QEMU (``-netdev tap,fd=``). Needs root.

    A tap that does not exist is made, and vanishes with the descriptor unless it is made persistent.

    Raises ``Conflict`` (``nic.tap_busy``) while another process has it open, ``Failed`` (``link.refused``).
    """
    if not name.startswith("intp-"):
        raise Failed("link.refused", f"{name!r} is not a tap of an inn")
    descriptor = _open_tun()
    try:
        fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), TAP_FLAGS))
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


def _quiet_ipv6(name: str, *, speaks: bool, listens: bool = False) -> None:
    """``speaks``: the device has a link-local address but believes no router; otherwise the host is silent on it.

    ``listens``: it has none, but can hold neighbours, which the kernel does not allow where IPv6 is disabled.
    """
    settings = {"accept_ra": "0", "autoconf": "0"} if speaks or listens else {"disable_ipv6": "1"}
    if listens:
        settings["addr_gen_mode"] = "1"
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
    filtering = data.get("br_vlan_filtering") if kind == "bridge" and data is not None else None
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
        vlan_filtering=None if filtering is None else bool(filtering),
    )


@contextmanager
def _kernel(what: str) -> Iterator[None]:
    try:
        yield
    except (NetlinkError, OSError) as refused:
        raise _failed(what, refused) from refused


def _failed(what: str, refused: Exception) -> Problem:
    return Failed("link.refused", what, cause=str(refused), remedy="'inn doctor' checks what this kernel can do")
