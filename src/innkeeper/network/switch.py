"""``SwitchRunner``: the switches of one inn, for the daemon.

What is desired is given; the kernel follows. Every call may be repeated, and every change of rules is one nftables
transaction.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path

from innkeeper.model.problems import Problem, Unavailable
from innkeeper.network.capture import Capture, Limits, compile_filter, open_socket
from innkeeper.network.dhcp import Lease, service_user
from innkeeper.network.dhcp_listener import Listener, open_listener
from innkeeper.network.drift import Watch, readable
from innkeeper.network.kernel import Kernel
from innkeeper.network.links import Route
from innkeeper.network.lost_taps import give_back
from innkeeper.network.meter_dump import Count
from innkeeper.network.namespace import NetworkThread
from innkeeper.network.nflog import link_names, open_group
from innkeeper.network.plan import Standing, SwitchPlan, plan_change
from innkeeper.network.policy import PortPolicy, SwitchPolicy
from innkeeper.network.report import Report
from innkeeper.network.ruleset import Element
from innkeeper.network.traffic import Direction, Meter
from innkeeper.network.transaction import log_group
from innkeeper.network.unforeseen import as_problem
from innkeeper.network.uplink_plan import NicFacts
from innkeeper.network.uplink_record import Record, RecordFile, records
from innkeeper.network.uplinks import ignore


class SwitchRunner:
    """``directory`` must be reachable for others (dnsmasq does not run as root), such as ``Paths.run / "switches"``.

    ``namespace``: a network namespace by name, for tests; the process's own when None. ``passed`` hears each moment of
    an uplink's move after which the process could be killed.
    Calls raise ``Failed`` (``nft.refused``: the old rules stay; ``link.refused``, ``switch.dhcp_failed``, …),
    ``Conflict``, ``NotFound``, and ``Unavailable`` (``nft.missing``, ``nic.tun_missing``, ``tool.missing``).
    """

    def __init__(
        self,
        inn_id: str,
        directory: Path,
        *,
        namespace: str | None = None,
        passed: Callable[[str], None] = ignore,
    ) -> None:
        self._inn_id = inn_id
        self._directory = directory
        self._passed = passed
        self._thread = NetworkThread(namespace)
        self._kernel: Kernel | None = None
        self._watch: Watch | None = None
        self._problem: Problem | None = None
        """Why they could not be started."""

    async def start(self, desired: Iterable[Standing], firewall: frozenset[Element] = frozenset()) -> Report:
        """Take ``desired`` as the whole of what shall be; repair, adopt, and remove what belongs to nothing.

        ``firewall``: the elements of the host's firewall.
        """
        try:
            with as_problem("the switches cannot be started"):
                if self._kernel is None:
                    self._kernel = await self._thread.call(Kernel, self._inn_id, self._directory, self._passed)
                report = await self._thread.call(self._kernel.start, list(desired), firewall)
        except Problem as problem:
            self._problem = problem
            raise
        self._problem = None
        return report

    async def repair(self) -> Report:
        """Find and put right what others changed behind the inn's back; to be called now and then, and as ``touched``.

        A tap that had to be made again has lost its guest: ``give_back`` gives it to its QEMU.
        """
        return await self._thread.call(self._open.repair)

    async def give_back(self, pid: int, tap: str) -> bool:
        """Give a new tap to the process that has lost the old one; False where only its new start helps."""
        return await self._thread.call(give_back, pid, tap)

    async def touched(self, timeout_s: float) -> frozenset[str]:
        """Wait until others touch the inn's tables or links, and tell which; empty when nobody did in that time.

        Raises ``Failed`` (``network.watch``) when the kernel does not tell.
        """
        if self._watch is None:
            self._watch = await self._thread.call(Watch, self._open.schema.table, self._open.prefixes)
            self._thread.around = self._watch.own_doing
        ends_at = time.monotonic() + timeout_s
        while not (touched := await self._thread.call(self._watch.touched)):
            rest = ends_at - time.monotonic()
            if rest <= 0 or not await readable(self._watch.descriptors, rest):
                break
        return touched

    async def allow_docker(self, allowed: bool) -> list[str]:
        """Put one tagged rule where Docker provides for it, and keep it there, or take it away; what was done.

        Raises ``Failed`` (``tool.failed``) where iptables refuses.
        """
        return await self._thread.call(self._open.allow_docker, allowed)

    async def set_firewall(self, elements: frozenset[Element]) -> None:
        """Make the host's firewall be those elements; a trial that is not among them is over."""
        await self._thread.call(self._open.firewall.become, elements)

    async def try_firewall(self, elements: frozenset[Element], seconds: float) -> None:
        """The same, with a trial that the kernel ends after that time."""
        await self._thread.call(self._open.firewall.try_out, elements, seconds)

    async def firewall_left_s(self) -> float | None:
        """How long the trial of the host's firewall holds still; None when none does."""
        return await self._thread.call(self._open.firewall.left_s)

    async def firewall_dropped(self) -> int:
        """Packets that the host's firewall dropped since the rules were loaded."""
        return await self._thread.call(self._open.firewall.dropped)

    async def host_dropped(self) -> dict[str, int]:
        """Packets to the host that were dropped since the rules were loaded: of "guests", and from "outside"."""
        return await self._thread.call(self._open.firewall.all_dropped)

    def firewall(self) -> frozenset[Element]:
        """The elements that are desired of the host's firewall."""
        return self._open.firewall.elements

    async def ensure(self, switch: SwitchPolicy, ports: Sequence[PortPolicy] = ()) -> list[str]:
        """Make the switch be so, with exactly these ports; returns what was done.

        When that fails a new switch leaves nothing behind, and one that stood is put back as it was.
        """
        return await self._thread.call(self._open.ensure, switch, ports)

    async def remove(self, bridge: str) -> list[str]:
        """Remove the switch, its ports, its DHCP and its rules; nothing to do when there is none."""
        return await self._thread.call(self._open.remove, bridge)

    async def add_port(self, bridge: str, port: PortPolicy) -> list[str]:
        """Plug a port into a switch: its rules, then its tap, then its DHCP reservation."""
        return await self._thread.call(self._open.add_port, bridge, port)

    async def update_port(self, port: PortPolicy) -> list[str]:
        """Change guards, addresses or name of a port; counters of guards that stay on go on counting."""
        return await self._thread.call(self._open.update_port, port)

    async def move_port(self, bridge: str, port: PortPolicy) -> list[str]:
        """Plug a port that stands into another switch; its tap stays the same, so a guest keeps its card."""
        return await self._thread.call(self._open.move_port, bridge, port)

    async def update_rules(self, ports: Sequence[PortPolicy]) -> None:
        """Change the ACLs and meters of many ports in one transaction; ports that are plugged in nowhere are left out.

        Raises ``Failed`` (``nft.refused``): none has changed.
        """
        await self._thread.call(self._open.update_rules, ports)

    async def remove_port(self, tap: str) -> list[str]:
        """Unplug a port and remove its tap; nothing to do when there is none."""
        return await self._thread.call(self._open.remove_port, tap)

    async def open_tap(self, tap: str) -> int:
        """A descriptor of a port's tap for QEMU; the caller closes it.

        Raises ``NotFound`` (``nic.not_plugged``), ``Conflict`` (``nic.tap_busy``).
        """
        return await self._thread.call(self._open.open_tap, tap)

    async def counters(self, tap: str) -> dict[str, int]:
        """Guard, as ``ruleset.COUNTED`` names them -> packets dropped at that port since it was plugged in."""
        return await self._thread.call(self._open.counters, tap)

    async def all_counters(self) -> dict[str, dict[str, int]]:
        """The same for all ports, by tap."""
        return await self._thread.call(self._open.all_counters)

    async def logged(self) -> dict[str, dict[Direction, int]]:
        """Tap -> direction -> frames that rules that log have decided since the port has some."""
        return await self._thread.call(self._open.logged)

    async def open_log(self) -> socket.socket:
        """What hears what rules log; the caller closes it.

        Raises ``Conflict`` (``network.log_group``), ``Failed`` (``network.log``).
        """
        return await self._thread.call(open_group, log_group(self._inn_id))

    async def link_names(self, indexes: Iterable[int]) -> dict[int, str]:
        """The links of those indexes that are still there."""
        return await self._thread.call(link_names, indexes)

    async def meters(self) -> dict[str, dict[Meter, Count]]:
        """What the meters of all ports have counted since they stand, by tap: (packets, bytes)."""
        return await self._thread.call(self._open.meters)

    async def statistics(self) -> dict[str, tuple[int, int, int, int]]:
        """Tap -> bytes and packets from the vm, bytes and packets towards it."""
        return await self._thread.call(self._open.statistics)

    async def capture(self, tap: str, filter_text: str, limits: Limits) -> Capture:
        """What passes a port, as pcap; the socket opens before this returns.

        Raises ``Invalid`` (``capture.filter``), ``NotFound`` (``nic.not_plugged``), ``Failed`` (``capture.refused``).
        """
        program = await asyncio.to_thread(compile_filter, filter_text)
        return Capture(await self._thread.call(open_socket, tap, program), limits)

    async def listen(self, device: str) -> Listener:
        """DHCP that passes a device, such as a switch's port that leads outside.

        Raises ``NotFound`` where there is none, ``Failed`` (``capture.refused``).
        """
        return Listener(await self._thread.call(open_listener, device))

    async def passed_leases(self) -> list[tuple[str, str]]:
        """(tap, address): leases that passed to ports that learn, since those of a port were forgotten last."""
        return await self._thread.call(self._open.passed_leases)

    async def forget_passed(self, taps: Iterable[str]) -> None:
        """Those are taken over, or nobody's any more."""
        await self._thread.call(self._open.forget_passed, list(taps))

    async def leases(self, bridge: str) -> list[Lease]:
        """The DHCP leases of a switch."""
        return await self._thread.call(self._open.leases, bridge)

    async def routes(self, version: int = 4) -> list[Route]:
        """The networks that the host reaches, for ``addresses.check_subnet``."""
        return await self._thread.call(self._open.routes, version)

    async def addresses(self) -> list[str]:
        """The host's own IPv4 addresses."""
        return await self._thread.call(self._open.addresses)

    async def nic_facts(self, name: str) -> NicFacts | None:
        """A card of the host with the host's network on it; None when there is none."""
        return await self._thread.call(self._open.uplinks.facts, name)

    async def confirm_uplink(self, bridge: str) -> bool:
        """The move of the host's network to ``bridge`` stays; False when none waits for that.

        Raises ``Conflict`` (``switch.not_confirmed``) when it has been given back.
        """
        return await self._thread.call(self._open.uplinks.confirm, bridge)

    def read_uplink_record(self, bridge: str) -> Record | None:
        """The move to ``bridge`` that waits to be confirmed, or has come out; also before ``start``."""
        return RecordFile(records(self._directory), bridge).read()

    async def forget_uplink_record(self, bridge: str) -> None:
        """Forget a move whose outcome has been kept elsewhere; its guard ends."""
        await self._thread.call(self._open.uplinks.forget_record, bridge)

    def uplink_problem(self, bridge: str) -> Problem | None:
        """What was wrong with the switch's uplink when it was last looked at."""
        return self._open.uplinks.problems.get(bridge)

    def plan(self, switch: SwitchPolicy, ports: Sequence[PortPolicy] = ()) -> SwitchPlan:
        """What ``ensure`` would do."""
        new = Standing(switch, {port.tap: port for port in ports})
        return plan_change(self._open.standing.get(switch.bridge), new, self._directory / switch.bridge, service_user())

    def plan_removal(self, bridge: str) -> SwitchPlan:
        """What ``remove`` would do."""
        return plan_change(self._open.standing.get(bridge), None, self._directory / bridge, service_user())

    def standing(self, bridge: str) -> Standing | None:
        """What is desired of the switch with that bridge."""
        return self._open.standing.get(bridge)

    async def remove_all(self) -> None:
        """Leave nothing of the inn in the kernel: dnsmasq, taps, bridges, rules; also what an earlier daemon left."""
        if self._kernel is None:
            self._kernel = await self._thread.call(Kernel, self._inn_id, self._directory)
        await self._thread.call(self._kernel.remove_all)

    async def close(self) -> None:
        """Let go; everything stays as it is in the kernel."""
        if self._watch is not None:
            self._thread.around = nullcontext
            await self._thread.call(self._watch.close)
            self._watch = None
        if self._kernel is not None:
            await self._thread.call(self._kernel.close)
            self._kernel = None
        await self._thread.close()

    @property
    def _open(self) -> Kernel:
        if self._kernel is None:
            raise Unavailable(
                "network.not_started",
                "the switches have not been started",
                cause=str(self._problem) if self._problem else None,
                remedy="see 'inn doctor'; they are tried again every half minute",
            )
        return self._kernel
