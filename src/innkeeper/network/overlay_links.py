"""Tunnels, forwarding entries and neighbours of virtual switches in one network namespace. Blocking.

Entries are written by iproute2 in batches and read back as its JSON: what stands is compared with the plan, and only
what differs is changed. Nothing is touched but tunnels of the inn and entries of its bridges.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from typing import Any

from innkeeper.model.problems import Failed
from innkeeper.network.features import lacks
from innkeeper.network.links import write_sysctl
from innkeeper.network.overlay_plan import TUNNEL_PREFIX, VXLAN_PORT, OverlayPlan, Tunnel, plan_overlay
from innkeeper.network.policy import SwitchPolicy
from innkeeper.system import process

_PORT = {"learning": False, "flood": False, "mcast_flood": False, "bcast_flood": False, "neigh_suppress": True}
"""What a tunnel is as a port of its bridge; none reaches another tunnel (``isolated``)."""
_BATCH_S = 120.0


class Overlays:
    """Raises ``Failed`` (``link.refused``) and ``Unavailable`` (``network.kernel_lacks``)."""

    def __init__(self, inn_id: str) -> None:
        self._prefix = TUNNEL_PREFIX + inn_id

    def ensure(self, switch: SwitchPolicy) -> list[str]:
        """Make the tunnels and entries of a switch be as planned; its bridge stands. Returns what was done."""
        if switch.overlay is None:
            return []
        plan = plan_overlay(switch.bridge, switch.overlay)
        present = self._tunnels()
        wanted = {tunnel.device for tunnel in plan.tunnels}
        leaving = [name for name, link in present.items() if link.get("master") == switch.bridge and name not in wanted]
        done = self._remove(leaving)
        for tunnel in plan.tunnels:
            done += self._ensure_tunnel(tunnel, switch, present.get(tunnel.device))
        changed = _set_forwarding(switch.bridge, plan) + _set_neighbours(switch.bridge, plan)
        if changed:
            done.append(f"set {changed} entries of virtual switch {switch.name}")
        return done

    def remove(self, bridge: str) -> list[str]:
        """Remove the tunnels of a bridge; its entries go with them and with it. Nothing to do when it has none."""
        return self._remove(name for name, link in self._tunnels().items() if link.get("master") == bridge)

    def sweep(self, wanted: Iterable[str]) -> list[str]:
        """Remove the inn's tunnels that are not ``wanted``."""
        return self._remove(self._tunnels().keys() - set(wanted))

    def _tunnels(self) -> dict[str, Any]:
        links = read("ip", "-d", "link", "show")
        return {link["ifname"]: link for link in links if link.get("ifname", "").startswith(self._prefix)}

    def _remove(self, names: Iterable[str]) -> list[str]:
        leaving = sorted(names)
        if leaving:
            batch("ip", [f"link del dev {name}" for name in leaving])
        return [f"remove tunnel {name}" for name in leaving]

    def _ensure_tunnel(self, tunnel: Tunnel, switch: SwitchPolicy, present: Any) -> list[str]:
        done = []
        if present is not None and not _is(present, tunnel):
            done += self._remove([tunnel.device])
            present = None
        if present is None:
            _make(tunnel)
            write_sysctl(f"net/ipv6/conf/{tunnel.device}/disable_ipv6", "1", optional=True)
            done.append(f"make tunnel {tunnel.device}")
        if present is None or not _plugged(present, switch):
            flags = " ".join(f"{name} {'on' if value else 'off'}" for name, value in _PORT.items())
            batch(
                "ip",
                [
                    f"link set dev {tunnel.device} mtu {switch.mtu} master {switch.bridge}",
                    f"link set dev {tunnel.device} type bridge_slave {flags} isolated on",
                    f"link set dev {tunnel.device} up",
                ],
            )
            if not done:
                done.append(f"plug tunnel {tunnel.device} into {switch.bridge}")
        return done


def _is(link: Any, tunnel: Tunnel) -> bool:
    facts = link.get("linkinfo", {})
    data = facts.get("info_data", {})
    if facts.get("info_kind") != tunnel.kind or data.get("local") != tunnel.local:
        return False
    if tunnel.kind == "vxlan":
        return bool(data.get("id") == tunnel.key and data.get("port") == VXLAN_PORT and data.get("learning") is False)
    key = str(ipaddress.IPv4Address(tunnel.key))
    return bool(data.get("remote") == tunnel.remote and data.get("ikey") == data.get("okey") == key)


def _plugged(link: Any, switch: SwitchPolicy) -> bool:
    flags = link.get("linkinfo", {}).get("info_slave_data", {})
    facts = (link.get("master"), link.get("mtu"), "UP" in link.get("flags", ()))
    return facts == (switch.bridge, switch.mtu, True) and {**flags, **_PORT, "isolated": True} == flags


def _make(tunnel: Tunnel) -> None:
    if tunnel.kind == "vxlan":
        how = f"vxlan id {tunnel.key} local {tunnel.local} dstport {VXLAN_PORT} nolearning"
    else:
        key = ipaddress.IPv4Address(tunnel.key)
        how = f"gretap local {tunnel.local} remote {tunnel.remote} key {key} nopmtudisc ignore-df"
    try:
        batch("ip", [f"link add {tunnel.device} type {how}"])
    except Failed as refused:
        if "Unknown device type" in (refused.cause or "") or "Operation not supported" in (refused.cause or ""):
            part, other = ("vxlan", "nvgre") if tunnel.kind == "vxlan" else ("ip_gre", "vxlan")
            raise lacks(part, "a virtual network", f"--encapsulation {other} may work") from refused
        raise


def _set_forwarding(bridge: str, plan: OverlayPlan) -> int:
    """Where macs are, for the bridge and for the tunnels; returns how many entries were changed."""
    devices = {tunnel.device for tunnel in plan.tunnels}
    behind: dict[str, str] = {}
    at: set[tuple[str, str, str]] = set()
    lines = []
    for entry in read("bridge", "fdb", "show", "br", bridge):
        mac, device = entry["mac"], entry["ifname"]
        if device not in devices:
            continue
        if "self" in entry["flags"]:
            at.add((device, mac, entry.get("dst", "")))
        elif entry.get("state") != "permanent":  # those are the bridge's own
            behind[mac] = device
    wanted = {(plan.forwarding[mac], mac, provider) for mac, provider in plan.destinations.items()}
    named = {(device, mac) for device, mac, _ in wanted}
    for device, mac, provider in sorted(at - wanted):
        if provider and (device, mac) not in named:  # those that are named are replaced, so that none is ever missing
            lines.append(f"fdb del {mac} dev {device} dst {provider} self")
    for device, mac, provider in sorted(wanted - at):
        lines.append(f"fdb replace {mac} dev {device} dst {provider} self permanent")
    for mac, device in sorted(behind.items() - plan.forwarding.items()):
        lines.append(f"fdb del {mac} dev {device} master")
    for mac, device in sorted(plan.forwarding.items() - behind.items()):
        lines.append(f"fdb replace {mac} dev {device} master static")
    batch("bridge", lines)
    return len(lines)


def _set_neighbours(bridge: str, plan: OverlayPlan) -> int:
    """What the bridge answers for, in the place of guests on other hosts."""
    held = {
        entry["dst"]: entry.get("lladdr", "")
        for version in ("-4", "-6")
        for entry in read("ip", version, "neigh", "show", "dev", bridge, "nud", "permanent")
    }
    lines = [f"neigh del {address} dev {bridge}" for address in sorted(held.keys() - plan.neighbours.keys())]
    for address, mac in sorted(plan.neighbours.items() - held.items()):
        lines.append(f"neigh replace {address} lladdr {mac} dev {bridge} nud permanent")
    batch("ip", lines)
    return len(lines)


def read(tool: str, *arguments: str) -> list[Any]:
    """What iproute2's ``tool`` shows as JSON, in this thread's namespace."""
    completed = process.run([tool, "-j", *arguments], timeout_s=_BATCH_S)
    answer = json.loads(completed.stdout or b"[]")
    return [entry for entry in answer if entry]


def batch(tool: str, lines: list[str]) -> None:
    """Run the lines as one batch of ``ip`` or ``bridge``; stops at the first that is refused (``link.refused``)."""
    if not lines:
        return
    text = "".join(f"{line}\n" for line in lines).encode()
    completed = process.run([tool, "-batch", "-"], stdin=text, check=False, timeout_s=_BATCH_S)
    if completed.returncode != 0:
        raise Failed(
            "link.refused",
            "the kernel refused a virtual network's tunnels or entries",
            cause=completed.stderr.decode(errors="replace").strip()[:1000],
            remedy="'inn doctor' checks what this kernel can do",
        )
