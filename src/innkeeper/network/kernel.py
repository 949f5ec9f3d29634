"""Bringing the kernel to what is desired, and keeping it there. Blocking; lives in one thread.

Order makes it safe at every instant: a port's rules stand before its tap joins the bridge, and a tap leaves before its
rules do. A tap of the inn without rules is closed by the fixed rules.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from innkeeper.model.problems import Conflict, Failed, NotFound, Problem
from innkeeper.network import counters
from innkeeper.network.dhcp import Lease, Server
from innkeeper.network.links import Device, Links, Route, open_tap, write_sysctl
from innkeeper.network.nft import Nft
from innkeeper.network.plan import Standing
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.ruleset import BRIDGE_PREFIX, TAP_PREFIX, Element, port_elements
from innkeeper.network.transaction import (
    FAMILIES,
    Schema,
    change,
    compile_elements,
    read_elements,
    remove,
    replace,
    schema_stands,
)

FORWARDING = "net/ipv4/ip_forward"


@dataclass(slots=True)
class Report:
    """What ``Kernel.repair`` did, in sentences, and what it could not do: switch name -> problem."""

    done: list[str] = field(default_factory=list)
    problems: dict[str, Problem] = field(default_factory=dict)


class Kernel:
    """The switches of one inn in one network namespace. ``directory`` holds the files of dnsmasq, by bridge."""

    def __init__(self, inn_id: str, directory: Path) -> None:
        self.schema = Schema(inn_id)
        self.directory = directory
        self.standing: dict[str, Standing] = {}
        self._elements: frozenset[Element] = frozenset()
        self._bridge_of: dict[str, str] = {}
        self._servers: dict[str, Server] = {}
        self._nft = Nft()
        self._links = Links()

    # --- everything ---------------------------------------------------------------------------------------------------

    def start(self, desired: Iterable[Standing]) -> Report:
        """Take ``desired`` as the whole of what shall be, and repair."""
        self.standing = {standing.switch.bridge: standing for standing in desired}
        self._bridge_of = {tap: bridge for bridge, standing in self.standing.items() for tap in standing.ports}
        return self.repair()

    def repair(self) -> Report:
        """Find what differs from what is desired (rules flushed, a tap deleted, DHCP dead) and put it right.

        Raises ``Failed`` (``nft.refused``); what fails for one switch does not keep the others from being repaired.
        """
        report = Report(self._load(self._compiled()))
        devices = self._devices()
        for name, device in devices.items():
            if name not in self.standing and name not in self._bridge_of and device.kind in ("bridge", "tun"):
                self._links.remove(name, device.kind)
                report.done.append(f"remove {name}, which belongs to nothing")
        for folder in self._folders():
            if folder.name not in self.standing and Server(folder).remove():
                report.done.append(f"stop DHCP and DNS of {folder.name}, which belongs to nothing")
        for standing in self.standing.values():
            try:
                report.done += self._ensure_devices(standing, devices)
            except Problem as problem:
                report.problems[standing.switch.name] = problem
        return report

    def remove_all(self) -> None:
        """Leave nothing of the inn: dnsmasq, taps, bridges, rules."""
        for folder in self._folders():
            Server(folder).remove()
        with contextlib.suppress(OSError):
            self.directory.rmdir()
        devices = self._devices()
        for name in sorted(devices, key=lambda name: devices[name].kind == "bridge"):
            self._links.remove(name, "bridge" if name.startswith(BRIDGE_PREFIX) else "tun")
        self._nft.apply(remove(self.schema))
        self.standing, self._bridge_of, self._elements = {}, {}, frozenset()

    def close(self) -> None:
        self._nft.close()
        self._links.close()

    # --- a switch -----------------------------------------------------------------------------------------------------

    def ensure(self, switch: SwitchPolicy, ports: Sequence[PortPolicy]) -> list[str]:
        """Make the switch be as given with exactly these ports; returns what was done.

        When that fails a new switch leaves nothing behind, and one that stood is put back as it was.
        """
        before = self.standing.get(switch.bridge)
        for port in ports:
            if self._bridge_of.get(port.tap, switch.bridge) != switch.bridge:
                raise Conflict("nic.device_taken", f"tap {port.tap} is a port of another switch")
        try:
            return self._become(before, Standing(switch, {port.tap: port for port in ports}))
        except Problem:
            with contextlib.suppress(Problem):
                self._become(self.standing.get(switch.bridge), before)
            raise

    def remove(self, bridge: str) -> list[str]:
        """Remove the switch with that bridge and all its ports; nothing to do when there is none."""
        return self._become(self.standing.get(bridge), None)

    # --- a port -------------------------------------------------------------------------------------------------------

    def add_port(self, bridge: str, port: PortPolicy) -> list[str]:
        """Plug a port in, or change it: one nft transaction, then its tap, then DHCP.

        Raises ``NotFound`` (``switch.not_found``), ``Conflict`` (``nic.device_taken``).
        """
        standing = self._standing(bridge)
        if self._bridge_of.get(port.tap, bridge) != bridge:
            raise Conflict("nic.device_taken", f"tap {port.tap} is a port of another switch")
        return self._change_port(standing, standing.ports.get(port.tap), port)

    def update_port(self, port: PortPolicy) -> list[str]:
        """Change a port where it is plugged in. Raises ``NotFound`` (``nic.not_plugged``)."""
        bridge = self._bridge_of.get(port.tap)
        if bridge is None:
            raise NotFound("nic.not_plugged", f"tap {port.tap} is plugged into no switch")
        return self.add_port(bridge, port)

    def remove_port(self, tap: str) -> list[str]:
        """Unplug a port and remove its tap; nothing to do when there is none."""
        bridge = self._bridge_of.get(tap)
        if bridge is None:
            return []
        standing = self._standing(bridge)
        return self._change_port(standing, standing.ports[tap], None)

    def counters(self, tap: str) -> dict[str, int]:
        """Guard -> packets dropped at ``tap``. Raises ``NotFound`` (``nic.not_plugged``)."""
        bridge = self._bridge_of.get(tap)
        if bridge is None:
            raise NotFound("nic.not_plugged", f"tap {tap} is plugged into no switch")
        standing = self._standing(bridge)
        elements = port_elements(standing.switch, standing.ports[tap])
        return counters.port_counters(self._nft, self.schema.table, elements, tap)

    def open_tap(self, tap: str) -> int:
        """A descriptor of a port's tap. Raises ``NotFound`` (``nic.not_plugged``), ``Conflict`` (``nic.tap_busy``)."""
        if tap not in self._bridge_of or self._links.device(tap) is None:
            raise NotFound("nic.not_plugged", f"tap {tap} is plugged into no switch")
        return open_tap(tap)

    def all_counters(self) -> dict[str, dict[str, int]]:
        return counters.all_counters(self._nft, self.schema.table)

    def leases(self, bridge: str) -> list[Lease]:
        return self._server(bridge).leases()

    def routes(self) -> list[Route]:
        return self._links.routes()

    # --- how ----------------------------------------------------------------------------------------------------------

    def _become(self, old: Standing | None, new: Standing | None) -> list[str]:
        """From one switch to another; the old one's taps go first, the new one's rules before its devices."""
        done = []
        old_ports, new_ports = old.ports if old else {}, new.ports if new else {}
        for tap in sorted(old_ports.keys() - new_ports.keys()):
            if self._links.remove(tap, "tun"):
                done.append(f"remove tap {tap}")
            self._bridge_of.pop(tap, None)
        if old is not None and new is None:
            bridge = old.switch.bridge
            if self._server(bridge).remove():
                done.append(f"stop DHCP and DNS of switch {old.switch.name}")
            del self._servers[bridge]
            if self._links.remove(bridge, "bridge"):
                done.append(f"remove bridge {bridge}")
        self._set_elements(_compiled(old), _compiled(new))
        if new is None:
            if old is not None:
                self.standing.pop(old.switch.bridge, None)
            return done
        self.standing[new.switch.bridge] = new
        self._bridge_of |= dict.fromkeys(new_ports, new.switch.bridge)
        return done + self._ensure_devices(new, self._devices())

    def _change_port(self, standing: Standing, old: PortPolicy | None, new: PortPolicy | None) -> list[str]:
        """One port of a switch from ``old`` to ``new``; put back when that fails."""
        switch = standing.switch
        changing = new or old
        assert changing is not None
        tap, done = changing.tap, []
        if new is None:
            self._links.remove(tap, "tun")
            done.append(f"remove tap {tap}")
        before = port_elements(switch, old) if old else frozenset()
        after = port_elements(switch, new) if new else frozenset()
        self._set_elements(before, after)
        ports = {name: port for name, port in standing.ports.items() if name != tap}
        if new is None:
            self._bridge_of.pop(tap, None)
        else:
            ports[tap] = new
            try:
                done += self._ensure_tap(switch, new)
            except Problem:
                if old is None:
                    self._links.remove(tap, "tun")
                self._set_elements(after, before)
                raise
            self._bridge_of[tap] = switch.bridge
        self.standing[switch.bridge] = Standing(switch, ports)
        if switch.serves_dhcp and (old is None or new is None or _dhcp_facts(old) != _dhcp_facts(new)):
            try:
                done += self._server(switch.bridge).ensure(switch, list(ports.values()))
            except Problem:
                with contextlib.suppress(Problem):
                    self._become(self.standing[switch.bridge], standing)
                raise
        return done

    def _ensure_tap(self, switch: SwitchPolicy, port: PortPolicy) -> list[str]:
        bridge = self._links.device(switch.bridge)
        if bridge is None:
            raise Failed(
                "switch.broken",
                f"bridge {switch.bridge} of switch {switch.name} is gone",
                remedy="try again in a moment",
            )
        return self._links.ensure_tap(port, bridge, switch.mtu, self._links.device(port.tap))

    def _ensure_devices(self, standing: Standing, devices: dict[str, Device]) -> list[str]:
        switch = standing.switch
        done = self._links.ensure_bridge(switch, devices.get(switch.bridge))
        bridge = devices.get(switch.bridge) or self._links.device(switch.bridge)
        if bridge is None:
            raise Failed("switch.broken", f"bridge {switch.bridge} has vanished", remedy="try again")
        for tap, port in standing.ports.items():
            done += self._links.ensure_tap(port, bridge, switch.mtu, devices.get(tap))
        server = self._server(switch.bridge)
        if switch.serves_dhcp:
            done += server.ensure(switch, list(standing.ports.values()))
        elif server.remove():
            done.append(f"stop DHCP and DNS of switch {switch.name}")
        if switch.kind == "nat" and write_sysctl(FORWARDING, "1"):
            done.append("let the host forward IPv4 (net.ipv4.ip_forward=1)")
        return done

    def _set_elements(self, old: frozenset[Element], new: frozenset[Element]) -> None:
        """One transaction. When it is refused because the kernel's rules are no longer ours, they are repaired."""
        target = self._elements - (old - new) | (new - old)
        try:
            self._nft.apply(change(self.schema, old, new))
        except Failed:
            if not self._load(target):
                raise
        self._elements = target

    def _load(self, target: frozenset[Element]) -> list[str]:
        """Make the kernel's rules be the schema with ``target``; returns what was done."""
        intact, actual = True, frozenset[Element]()
        for family in FAMILIES:
            if self._nft.table_exists(family, self.schema.table):
                objects = self._nft.read(f"list table {family} {self.schema.table}")
                intact = intact and schema_stands(self.schema, family, objects)
                actual |= read_elements(family, objects)
            else:
                intact = False
        if intact and actual == target:
            done = []
        elif intact:
            self._nft.apply(change(self.schema, actual, target))
            done = [f"set the rules of {self.schema.table} right"]
        else:
            self._nft.apply(replace(self.schema, target))
            done = [f"load the rules of {self.schema.table}"]
        self._elements = target
        return done

    def _compiled(self) -> frozenset[Element]:
        return compile_elements((standing.switch, standing.ports.values()) for standing in self.standing.values())

    def _devices(self) -> dict[str, Device]:
        return self._links.devices(f"{BRIDGE_PREFIX}{self.schema.inn_id}", f"{TAP_PREFIX}{self.schema.inn_id}")

    def _folders(self) -> list[Path]:
        return sorted(self.directory.iterdir()) if self.directory.is_dir() else []

    def _server(self, bridge: str) -> Server:
        return self._servers.setdefault(bridge, Server(self.directory / bridge))

    def _standing(self, bridge: str) -> Standing:
        try:
            return self.standing[bridge]
        except KeyError:
            raise NotFound("switch.not_found", f"there is no switch with bridge {bridge}") from None


def _compiled(standing: Standing | None) -> frozenset[Element]:
    return compile_elements([(standing.switch, standing.ports.values())] if standing else [])


def _dhcp_facts(port: PortPolicy) -> tuple[str, tuple[str, ...], str]:
    return port.mac, port.ipv4[:1], port.hostname
