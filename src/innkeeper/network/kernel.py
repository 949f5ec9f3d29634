"""Bringing the kernel to what is desired, and keeping it there. Blocking; lives in one thread.

Order makes it safe at every instant: a port's rules stand before its tap joins the bridge, and a tap leaves before its
rules do. A tap of the inn without rules is closed by the fixed rules.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from innkeeper.model.problems import Conflict, Failed, NotFound, Problem
from innkeeper.network import counters, meter_dump, passed_leases, vlan_bridge
from innkeeper.network.dhcp import Lease, Server
from innkeeper.network.docker import Docker
from innkeeper.network.features import ACL_LOG, lacking
from innkeeper.network.firewall_trial import FirewallInKernel
from innkeeper.network.forwarding import forward
from innkeeper.network.links import Device, Links, Route, open_tap
from innkeeper.network.nft import Nft
from innkeeper.network.overlay_links import Overlays
from innkeeper.network.overlay_plan import tunnels_of
from innkeeper.network.plan import Standing, connection, dhcp_facts
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.report import Report
from innkeeper.network.rules import Rules
from innkeeper.network.ruleset import BRIDGE_PREFIX, TAP_PREFIX, Element
from innkeeper.network.shaping import LIMITER_PREFIX
from innkeeper.network.tenancy import Tenancy
from innkeeper.network.traffic import Direction, Meter
from innkeeper.network.traffic_control import Shaper
from innkeeper.network.transaction import Schema, compile_elements, elements_of
from innkeeper.network.unforeseen import as_problem
from innkeeper.network.uplink_record import records
from innkeeper.network.uplink_traffic import UplinkTraffic
from innkeeper.network.uplinks import Uplinks, ignore
from innkeeper.network.vlan_policy import UNTAGGED
from innkeeper.system.kernel_parts import kernel_parts

_KINDS = {BRIDGE_PREFIX: "bridge", TAP_PREFIX: "tun", LIMITER_PREFIX: "ifb"}
"""Kinds of the inn's devices by their names' beginning."""


class Kernel:
    """The switches of one inn in one network namespace. ``directory`` holds the files of dnsmasq, by bridge."""

    def __init__(self, inn_id: str, directory: Path, passed: Callable[[str], None] = ignore) -> None:
        self.schema = Schema(inn_id, logs=not lacking(ACL_LOG, kernel_parts(ACL_LOG.parts)))
        self.directory = directory
        self.standing: dict[str, Standing] = {}
        self._bridge_of: dict[str, str] = {}
        self._remade: set[str] = set()
        """Taps of ports that had to be made again, not told yet."""
        self._servers: dict[str, Server] = {}
        self._nft = Nft()
        self._rules = Rules(self.schema, self._nft)
        self._links = Links()
        self._shaper = Shaper()
        self._traffic = UplinkTraffic()
        self.uplinks = Uplinks(records(directory), passed)
        self._overlays = Overlays(inn_id)
        self._tenancy = Tenancy(inn_id, self.standing)
        self._docker = Docker(inn_id)
        self.firewall = FirewallInKernel(self.schema.table, self._nft, self._rules)

    # --- everything ---------------------------------------------------------------------------------------------------

    def start(self, desired: Iterable[Standing], firewall: frozenset[Element] = frozenset()) -> Report:
        """Take ``desired`` and the host's ``firewall`` as the whole of what shall be, and repair."""
        self.firewall.elements = firewall
        self.standing.clear()
        self.standing.update({standing.switch.bridge: standing for standing in desired})
        self._bridge_of = {tap: bridge for bridge, standing in self.standing.items() for tap in standing.ports}
        return self.repair()

    def repair(self) -> Report:
        """Find what differs from what is desired (rules flushed, a tap deleted, DHCP dead) and put it right.

        Raises ``Failed`` (``nft.refused``); what fails for one switch does not keep the others from being repaired.
        """
        report = Report(self._rules.load(self._compiled()))
        devices = self._devices()
        for name, device in devices.items():
            if name not in self.standing and name not in self._bridge_of and device.kind in ("bridge", "tun"):
                if device.kind == "bridge":
                    report.done += self._let_go(name, None, report.problems)
                self._links.remove(name, device.kind)
                report.done.append(f"remove {name}, which belongs to nothing")
        for folder in self._folders():
            if folder.name not in self.standing and Server(folder).remove():
                report.done.append(f"stop DHCP and DNS of {folder.name}, which belongs to nothing")
        wanted = (tunnel.device for standing in self.standing.values() for tunnel in tunnels_of(standing.switch))
        report.done += self._overlays.sweep(wanted) + self._tenancy.sweep()
        for standing in self.standing.values():
            try:
                report.done += self._ensure_again(standing, devices, standing.ports)
            except Problem as problem:
                report.problems[standing.switch.name] = problem
            for problems in (self.uplinks.problems, self._traffic.problems):
                if (outside := problems.get(standing.switch.bridge)) is not None:
                    report.problems.setdefault(standing.switch.name, outside)
        for name in devices.keys() - self._shaper.limiters:
            if devices[name].kind == "ifb" and self._links.remove(name, "ifb"):
                report.done.append(f"remove {name}, which belongs to nothing")
        report.new_taps = sorted(self._remade & self._bridge_of.keys())
        self._remade.clear()
        if self._docker.allowed:
            try:
                report.done += self._docker.ensure()
            except Problem as problem:
                report.problems["Docker's rules"] = problem
        return report

    def allow_docker(self, allowed: bool) -> list[str]:
        """Let guests pass Docker's rules, or no longer; returns what was done. Raises ``Failed`` (``tool.failed``)."""
        self._docker.allowed = allowed
        return self._docker.ensure()

    def remove_all(self) -> None:
        """Leave nothing of the inn: dnsmasq, taps, bridges, rules. What stays on an uplink is raised last."""
        for folder in self._folders():
            Server(folder).remove()
        with contextlib.suppress(OSError):
            self.directory.rmdir()
        self._overlays.sweep(())
        self._tenancy.remove_all()
        devices, left = self._devices(), dict[str, Problem]()
        for name in devices:
            if name.startswith(BRIDGE_PREFIX):
                standing = self.standing.get(name)
                self._let_go(name, standing.switch if standing else None, left)
        self.uplinks.forget()
        for prefix, kind in reversed(_KINDS.items()):
            self._links.remove_together((name for name in devices if name.startswith(prefix)), kind)
        self._rules.remove()
        self._docker.remove()
        self.firewall.elements = frozenset()
        self.standing.clear()
        self._bridge_of = {}
        for problem in left.values():
            raise problem

    def close(self) -> None:
        self._nft.close()
        self._links.close()
        self._shaper.close()
        self._traffic.close()
        self.uplinks.close()

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

    def move_port(self, bridge: str, port: PortPolicy) -> list[str]:
        """Plug a port into another switch, or change it where it is; whoever has its tap open keeps it.

        In between it is in neither. Put back when that fails. Raises ``NotFound`` (``switch.not_found``,
        ``nic.not_plugged``).
        """
        former, taker = self._bridge_of.get(port.tap), self._standing(bridge)
        if former is None:
            raise NotFound("nic.not_plugged", f"tap {port.tap} is plugged into no switch")
        if former == bridge:
            return self.add_port(bridge, port)
        giver = self._standing(former)
        try:
            return self._carry(giver, taker, port)
        except Problem:
            old = giver.ports[port.tap]
            with contextlib.suppress(Problem):
                self._carry(taker.with_port(port), giver.without(port.tap), old)
            raise

    def update_rules(self, ports: Sequence[PortPolicy]) -> None:
        """Change the ACLs and meters of many ports in one transaction; those plugged in nowhere are left out."""
        changed: dict[str, dict[str, PortPolicy]] = {}
        before, after = set[Element](), set[Element]()
        for port in ports:
            bridge = self._bridge_of.get(port.tap)
            if bridge is not None:
                standing = self.standing[bridge]
                before |= elements_of(standing.switch, standing.ports[port.tap])
                after |= elements_of(standing.switch, port)
                changed.setdefault(bridge, dict(standing.ports))[port.tap] = port
        self._rules.change(frozenset(before), frozenset(after))
        for bridge, all_ports in changed.items():
            self.standing[bridge] = Standing(self.standing[bridge].switch, all_ports)

    def remove_port(self, tap: str) -> list[str]:
        """Unplug a port and remove its tap; nothing to do when there is none."""
        standing = self.standing.get(self._bridge_of.get(tap, ""))
        return self._change_port(standing, standing.ports[tap], None) if standing is not None else []

    def counters(self, tap: str) -> dict[str, int]:
        """Guard -> packets dropped at ``tap``. Raises ``NotFound`` (``nic.not_plugged``)."""
        bridge = self._bridge_of.get(tap)
        if bridge is None:
            raise NotFound("nic.not_plugged", f"tap {tap} is plugged into no switch")
        standing = self._standing(bridge)
        elements = elements_of(standing.switch, standing.ports[tap])
        return counters.port_counters(self._nft, self.schema.table, elements, tap)

    def open_tap(self, tap: str) -> int:
        """A descriptor of a port's tap. Raises ``NotFound`` (``nic.not_plugged``), ``Conflict`` (``nic.tap_busy``)."""
        if tap not in self._bridge_of or self._links.device(tap) is None:
            raise NotFound("nic.not_plugged", f"tap {tap} is plugged into no switch")
        return open_tap(tap)

    def passed_leases(self) -> list[tuple[str, str]]:
        return passed_leases.passed_leases(self._nft, self.schema.table)

    def forget_passed(self, taps: Iterable[str]) -> None:
        passed_leases.forget_passed(self._nft, self.schema.table, taps)

    def all_counters(self) -> dict[str, dict[str, int]]:
        return counters.all_counters(self._nft, self.schema.table)

    def logged(self) -> dict[str, dict[Direction, int]]:
        return counters.logged(self._nft, self.schema.table)

    def meters(self) -> dict[str, dict[Meter, meter_dump.Count]]:
        return counters.metered(self.schema.table)

    def statistics(self) -> dict[str, tuple[int, int, int, int]]:
        """Tap -> bytes and packets from the vm, bytes and packets towards it."""
        return meter_dump.read_statistics(TAP_PREFIX + self.schema.inn_id)

    def leases(self, bridge: str) -> list[Lease]:
        ports = self.standing[bridge].ports.values() if bridge in self.standing else ()
        macs = {address: port.mac for port in ports for address in port.ipv6}
        found = self._server(bridge).leases()
        return [dataclasses.replace(lease, mac=lease.mac or macs.get(lease.address, "")) for lease in found]

    def routes(self, version: int) -> list[Route]:
        return self._links.routes(version)

    def addresses(self) -> list[str]:
        return self._links.addresses()

    # --- how ----------------------------------------------------------------------------------------------------------

    def _become(self, old: Standing | None, new: Standing | None) -> list[str]:
        """From one switch to another; the old one's taps go first, the new one's rules before its devices."""
        done, left = [], dict[str, Problem]()
        old_ports, new_ports = old.ports if old else {}, new.ports if new else {}
        leaving = sorted(old_ports.keys() - new_ports.keys())
        done += [f"remove tap {tap}" for tap in self._links.remove_together(leaving, "tun")]
        for tap in leaving:
            self._bridge_of.pop(tap, None)
        if old is not None and new is None:
            bridge = old.switch.bridge
            if self._server(bridge).remove():
                done.append(f"stop DHCP and DNS of switch {old.switch.name}")
            self._servers.pop(bridge, None)
            self._shaper.remove(bridge)
            done += self._overlays.remove(bridge) + self._tenancy.remove(old.switch)
            done += self._let_go(bridge, old.switch, left)
            if self._links.remove(bridge, "bridge"):
                done.append(f"remove bridge {bridge}")
        elif old is not None and new is not None and connection(old) != connection(new):
            done += self._let_go(old.switch.bridge, old.switch, left)
        shared = self._tenancy.shared_elements(old, new)
        self._rules.change(_compiled(old) - shared, _compiled(new) - shared)
        if new is None:
            if old is not None:
                self.standing.pop(old.switch.bridge, None)
            for problem in left.values():
                raise problem
            return done
        self.standing[new.switch.bridge] = new
        self._bridge_of |= dict.fromkeys(new_ports, new.switch.bridge)
        done += self._ensure_again(new, self._devices(), old_ports.keys() & new_ports.keys())
        for problem in left.values():
            raise problem
        return done

    def _change_port(self, standing: Standing, old: PortPolicy | None, new: PortPolicy | None) -> list[str]:
        """One port of a switch from ``old`` to ``new``; put back when that fails."""
        switch = standing.switch
        changing = new or old
        assert changing is not None
        tap, done = changing.tap, []
        if new is None:
            self._links.remove(tap, "tun")
            done.append(f"remove tap {tap}")
        before = elements_of(switch, old) if old else frozenset()
        after = elements_of(switch, new) if new else frozenset()
        self._rules.change(before, after)
        changed = standing.with_port(new) if new else standing.without(tap)
        if new is None:
            self._bridge_of.pop(tap, None)
            self.standing[switch.bridge] = changed
            self._shaper.ensure(switch.bridge, changed.ports.values())
            if old is not None and old.vlan != UNTAGGED and self._links.device(switch.bridge) is not None:
                done += self._ensure_vlans(changed)
            done += self._share(changed)
        else:
            lost = {tap} if old is not None and self._links.device(tap) is None else set[str]()
            try:
                done += self._plug(changed, [new])
                done += self._shaper.ensure(switch.bridge, changed.ports.values(), fresh={tap})
                done += self._share(changed)
            except Problem:
                if old is None:
                    self._links.remove(tap, "tun")
                with contextlib.suppress(Problem):
                    self._plug(standing, [old] if old else [])
                with contextlib.suppress(Problem):
                    self._shaper.ensure(switch.bridge, standing.ports.values(), fresh={tap})
                with contextlib.suppress(Problem):
                    self._share(standing)
                self._rules.change(after, before)
                raise
            finally:
                self._remade |= {one for one in lost if self._links.device(one) is not None}
            self._bridge_of[tap] = switch.bridge
            self.standing[switch.bridge] = changed
        if switch.serves_dhcp and (old is None or new is None or dhcp_facts(old) != dhcp_facts(new)):
            try:
                done += self._serve(changed)
            except Problem:
                with contextlib.suppress(Problem):
                    self._become(changed, standing)
                raise
        return done

    def _carry(self, giver: Standing, taker: Standing, port: PortPolicy) -> list[str]:
        """The tap of ``port`` from one switch to another."""
        left, joined = giver.without(port.tap), taker.with_port(port)
        done = [f"unplug tap {port.tap} from {giver.switch.bridge}"] if self._links.unplug(port.tap) else []
        self._rules.change(elements_of(giver.switch, giver.ports[port.tap]), elements_of(taker.switch, port))
        self.standing |= {left.switch.bridge: left, joined.switch.bridge: joined}
        self._bridge_of[port.tap] = joined.switch.bridge
        self._shaper.ensure(left.switch.bridge, left.ports.values())
        done += self._plug(joined, [port]) + self._ensure_vlans(left)
        done += self._shaper.ensure(joined.switch.bridge, joined.ports.values(), fresh={port.tap})
        failed: Problem | None = None
        for each in (left, joined):
            try:
                done += self._share(each)
                done += self._serve(each) if each.switch.serves_dhcp else []
            except Problem as problem:  # the other one is told all the same
                failed = problem
        if failed is not None:
            raise failed
        return done

    def _ensure_vlans(self, standing: Standing) -> list[str]:
        return vlan_bridge.ensure(standing.switch, self._bridge(standing.switch), standing.ports.values())

    def _bridge(self, switch: SwitchPolicy) -> Device:
        if (bridge := self._links.device(switch.bridge)) is None:
            raise Failed(
                "switch.broken",
                f"bridge {switch.bridge} of switch {switch.name} is gone",
                remedy="try again in a moment",
            )
        return bridge

    def _plug(
        self, standing: Standing, ports: Collection[PortPolicy], devices: Mapping[str, Device] | None = None
    ) -> list[str]:
        """Have the taps of ``ports`` in the bridge, and in their VLANs before anything passes them."""
        switch, done, closed = standing.switch, [], []
        bridge = (devices or {}).get(switch.bridge) or self._bridge(switch)
        has_tags = vlan_bridge.has_tags(switch, standing.ports.values())
        for port in ports:
            present = self._links.device(port.tap) if devices is None else devices.get(port.tap)
            if has_tags and (present is None or (present.master, present.up) != (bridge.index, True)):
                closed.append(port.tap)
            mtu = port.mtu or switch.mtu
            done += self._links.ensure_tap(port, bridge, mtu, present, closed=port.tap in closed[-1:])
        if any(port.mtu is not None for port in ports):
            # A bridge takes the smallest MTU of its ports until it is given one that differs from what it has.
            done += self._links.ensure_bridge(switch, self._links.device(switch.bridge))
        done += vlan_bridge.ensure(switch, bridge, standing.ports.values())
        self._links.open_up(closed)
        return done

    def _ensure_again(self, standing: Standing, devices: dict[str, Device], stood: Collection[str]) -> list[str]:
        """As ``_ensure_devices``; what fails is a ``Problem``.

        Taps that ``stood`` and are not among ``devices`` have lost whoever had them open.
        """
        gone = {tap for tap in stood if tap not in devices}
        try:
            with as_problem(f"switch {standing.switch.name} cannot be put right"):
                return self._ensure_devices(standing, devices)
        finally:
            self._remade |= {tap for tap in gone if self._links.device(tap) is not None}

    def _ensure_devices(self, standing: Standing, devices: dict[str, Device]) -> list[str]:
        switch = standing.switch
        done = self._links.ensure_bridge(switch, devices.get(switch.bridge))
        done += self._plug(standing, standing.ports.values(), devices)  # before it leads outside
        done += self._tenancy.ensure(switch) + self._overlays.ensure(switch)
        done += self._shaper.ensure(switch.bridge, standing.ports.values(), verify=True)
        if switch.kind == "external":
            done += self.uplinks.ensure(switch)
            done += self._ensure_vlans(standing) if switch.vlans else []
        done += self._share(standing, verify=True)
        if switch.serves_dhcp:
            done += self._serve(standing)
        elif self._server(switch.bridge).remove():
            done.append(f"stop DHCP and DNS of switch {switch.name}")
        return done + forward(switch)

    def _share(self, standing: Standing, *, verify: bool = False) -> list[str]:
        """The minimums and priorities of a switch's ports at its uplink, as long as that is the switch's."""
        switch = standing.switch
        card = self.uplinks.given_back(switch.bridge, switch.uplink)
        if not card:
            return self._traffic.ensure(standing, verify=verify)
        if verify and not any(one.switch.outside == card for one in self.standing.values() if one is not standing):
            self._traffic.clear(switch.bridge, [card])
        return []

    def _let_go(self, bridge: str, switch: SwitchPolicy | None, problems: dict[str, Problem]) -> list[str]:
        """Give back what of the host's is at ``bridge``, whose switch None is not known, as it was.

        What cannot be taken off a card is in ``problems``: the host's network comes back all the same.
        """
        outside = self.uplinks.cards(bridge) if switch is None else [switch.outside] if switch.outside else []
        if (failed := self._traffic.clear(bridge, outside)) is not None:
            problems[switch.name if switch else bridge] = failed
        return self.uplinks.release(bridge, switch.uplink if switch else None)

    def _serve(self, standing: Standing) -> list[str]:
        """DHCP and DNS of a switch, where its tenant is."""
        switch = standing.switch
        with self._tenancy.inside(switch):
            return self._server(switch.bridge).ensure(switch, list(standing.ports.values()))

    def _compiled(self) -> frozenset[Element]:
        switches = ((standing.switch, standing.ports.values()) for standing in self.standing.values())
        return compile_elements(switches, self.firewall.elements)

    @property
    def prefixes(self) -> tuple[str, ...]:
        """How the names of the inn's links begin."""
        return tuple(prefix + self.schema.inn_id for prefix in _KINDS)

    def _devices(self) -> dict[str, Device]:
        return self._links.devices(*self.prefixes)

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
