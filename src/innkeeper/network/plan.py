"""What a change of a switch would do, for people (``--dry-run``). Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from innkeeper.network.dhcp import compile_files
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.transaction import compile_elements, listing


@dataclass(frozen=True, slots=True)
class Standing:
    """A switch with its ports by tap: what is desired."""

    switch: SwitchPolicy
    ports: Mapping[str, PortPolicy] = field(default_factory=dict)


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
    if standing.switch.serves_dhcp:
        files = compile_files(standing.switch, ports, directory, user)
        texts["dnsmasq.conf"] = files.configuration.splitlines()
        texts["reservations"] = files.reservations.splitlines()
        texts["hosts"] = files.hosts.splitlines()
    return texts


def _steps(old: Standing | None, new: Standing | None) -> list[str]:
    old_ports, new_ports = old.ports if old else {}, new.ports if new else {}
    steps = [f"remove tap {tap}" for tap in sorted(old_ports.keys() - new_ports.keys())]
    if old is not None and new is None:
        steps += [f"stop DHCP and DNS of switch {old.switch.name}"] if old.switch.serves_dhcp else []
        steps += [f"remove bridge {old.switch.bridge}", "take its rules out in one transaction"]
    if new is None:
        return steps
    switch = new.switch
    if old is None:
        at = f" with the address {switch.gateway}" if switch.gateway else ""
        steps += [f"add the rules of {switch.kind} switch {switch.name} in one transaction"]
        steps += [f"make bridge {switch.bridge}{at}"]
    steps += [f"make tap {tap} in {switch.bridge}" for tap in sorted(new_ports.keys() - old_ports.keys())]
    common = sorted(new_ports.keys() & old_ports.keys())
    steps += [f"change the rules of port {tap}" for tap in common if new_ports[tap] != old_ports[tap]]
    if old is not None and old.switch != switch:
        steps += [f"change switch {switch.name}"]
    if old is None and switch.serves_dhcp:
        steps += [f"start DHCP and DNS on {switch.gateway}"]
    if switch.kind == "nat" and (old is None or old.switch.kind != "nat"):
        steps += ["let the host forward IPv4 (net.ipv4.ip_forward)"]
    return steps
