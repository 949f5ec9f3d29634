"""What a change of a switch would do, for people (``--dry-run``). Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from innkeeper.network import minimums, overlay_plan, shaping, tenant
from innkeeper.network.dhcp import compile_files
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.transaction import compile_elements, listing


@dataclass(frozen=True, slots=True)
class Standing:
    """A switch with its ports by tap: what is desired."""

    switch: SwitchPolicy
    ports: Mapping[str, PortPolicy] = field(default_factory=dict)

    def with_port(self, port: PortPolicy) -> Standing:
        """The same with that port, in place of one at its tap."""
        return Standing(self.switch, {**self.ports, port.tap: port})

    def without(self, tap: str) -> Standing:
        """The same without the port at that tap."""
        return Standing(self.switch, {name: port for name, port in self.ports.items() if name != tap})


@dataclass(frozen=True, slots=True)
class SwitchPlan:
    """``steps`` are sentences; ``diff`` a unified difference of rules and DHCP files. Both empty: nothing to do."""

    steps: tuple[str, ...]
    diff: str


def plan_change(old: Standing | None, new: Standing | None, directory: Path, user: str) -> SwitchPlan:
    """From ``old`` to ``new``; None stands for no switch. ``directory`` and ``user`` as for ``compile_files``."""
    texts_old, texts_new = _texts(old, directory, user), _texts(new, directory, user)
    lines: list[str] = []
    for name in sorted({*texts_old, *texts_new}):
        before, after = texts_old.get(name, []), texts_new.get(name, [])
        lines += difflib.unified_diff(before, after, f"{name} (now)", f"{name} (then)", lineterm="", n=0)
    return SwitchPlan(tuple(_steps(old, new)), "\n".join(lines))


def _texts(standing: Standing | None, directory: Path, user: str) -> dict[str, list[str]]:
    if standing is None:
        return {}
    ports = list(standing.ports.values())
    texts = {"rules": listing(compile_elements([(standing.switch, ports)]))}
    texts["overlay"] = overlay_plan.sentences(standing.switch.bridge, standing.switch.overlay)
    texts["gateway"] = tenant.sentences(standing.switch)
    switch = standing.switch
    texts["traffic control"] = shaping.listing(shaping.shapes(ports))
    texts["traffic control"] += minimums.listing(switch.outside, minimums.shares(switch, ports))
    if standing.switch.serves_dhcp:
        files = compile_files(standing.switch, ports, directory, user)
        texts["dnsmasq.conf"] = files.configuration.splitlines()
        texts["reservations"] = files.reservations.splitlines()
        texts["hosts"] = files.hosts.splitlines()
    return texts


def _uplink_steps(old: SwitchPolicy | None, new: SwitchPolicy | None) -> list[str]:
    """What a change of the uplink does; what taking one does besides is in ``uplink_plan.sentences``."""
    before, after = old.uplink if old else None, new.uplink if new else None
    if (before and before.devices) == (after and after.devices):
        return []
    steps = []
    if before is not None and old is not None:
        steps.append(f"give {', '.join(before.devices)} back, with the host's network that is on {old.bridge}")
    if after is not None and after.via == "team" and new is not None:
        steps.append(f"make team {new.outside} ({after.team}) of {', '.join(after.devices)}")
    return steps


def _port(port: PortPolicy) -> str:
    return f"{port.tap} ({port.hostname})" if port.hostname else port.tap


def _steps(old: Standing | None, new: Standing | None) -> list[str]:
    old_ports, new_ports = old.ports if old else {}, new.ports if new else {}
    steps = [f"remove tap {_port(old_ports[tap])}" for tap in sorted(old_ports.keys() - new_ports.keys())]
    if old is not None and new is None:
        steps += [f"stop DHCP and DNS of switch {old.switch.name}"] if old.switch.serves_dhcp else []
        steps += _uplink_steps(old.switch, None)
        steps += [f"remove bridge {old.switch.bridge}", "take its rules out in one transaction"]
    if new is None:
        return steps
    switch = new.switch
    if old is None:
        own = [text for text in (switch.host_address, switch.gateway6) if text is not None]
        at = f" with the address {' and '.join(own)}" if own else ""
        steps += [f"add the rules of {switch.kind} switch {switch.name} in one transaction"]
        steps += [f"make bridge {switch.bridge}{at}"]
        steps += [f"{line}" for line in tenant.sentences(switch)]
        steps += [f"make {one.kind} tunnel {one.device}" for one in overlay_plan.tunnels_of(switch)]
    steps += _uplink_steps(old.switch if old else None, switch)
    made = sorted(new_ports.keys() - old_ports.keys())
    steps += [f"make tap {_port(new_ports[tap])} in {switch.bridge}" for tap in made]
    common = sorted(new_ports.keys() & old_ports.keys())
    steps += [f"change the rules of port {_port(new_ports[tap])}" for tap in common if new_ports[tap] != old_ports[tap]]
    if old is not None and old.switch != switch:
        steps += [f"change switch {switch.name}"]
    if old is None and switch.serves_dhcp:
        steps += [f"start DHCP and DNS on {switch.gateway}"]
    if switch.way_out and (old is None or not old.switch.way_out):
        steps += ["let the host forward IPv4 (net.ipv4.ip_forward)"]
    if switch.kind == "nat" and switch.subnet6 is not None and (old is None or old.switch.subnet6 is None):
        steps += ["let the host forward IPv6 (net.ipv6.conf.all.forwarding)"]
    return steps


def connection(standing: Standing) -> tuple[tuple[str, ...], str | None]:
    """What of a switch's uplink cannot change without letting it go."""
    uplink = standing.switch.uplink
    return (uplink.devices, uplink.team) if uplink is not None else ((), None)


def dhcp_facts(port: PortPolicy) -> tuple[str, tuple[str, ...], str, int | None]:
    """What DHCP tells of a port."""
    return port.mac, (*port.ipv4[:1], *port.ipv6[:1]), port.hostname, port.mtu
