"""``SwitchRunner``: the switches of one inn, for the daemon.

What is desired is given; the kernel follows. Every call may be repeated, and every change of rules is one nftables
transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from innkeeper.model.problems import Unavailable
from innkeeper.network.dhcp import Lease, service_user
from innkeeper.network.kernel import Kernel, Report
from innkeeper.network.links import Route
from innkeeper.network.namespace import NetworkThread
from innkeeper.network.plan import Standing, SwitchPlan, plan_change
from innkeeper.network.policy import PortPolicy, SwitchPolicy


class SwitchRunner:
    """``directory`` must be reachable for others (dnsmasq does not run as root), such as ``Paths.run / "switches"``.

    ``namespace``: a network namespace by name, for tests; the process's own when None.
    Calls raise ``Failed`` (``nft.refused``: the old rules stay; ``link.refused``, ``switch.dhcp_failed``, …),
    ``Conflict``, ``NotFound``, and ``Unavailable`` (``nft.missing``, ``nic.tun_missing``, ``tool.missing``).
    """

    def __init__(self, inn_id: str, directory: Path, *, namespace: str | None = None) -> None:
        self._inn_id = inn_id
        self._directory = directory
        self._thread = NetworkThread(namespace)
        self._kernel: Kernel | None = None

    async def start(self, desired: Iterable[Standing]) -> Report:
        """Take ``desired`` as the whole of what shall be; repair, adopt, and remove what belongs to nothing."""
        if self._kernel is None:
            self._kernel = await self._thread.call(Kernel, self._inn_id, self._directory)
        return await self._thread.call(self._kernel.start, list(desired))

    async def repair(self) -> Report:
        """Find and put right what others changed behind the inn's back; to be called now and then.

        A tap that had to be made again has lost its guest: its QEMU must be given the new one.
        """
        return await self._thread.call(self._open.repair)

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

    async def remove_port(self, tap: str) -> list[str]:
        """Unplug a port and remove its tap; nothing to do when there is none."""
        return await self._thread.call(self._open.remove_port, tap)

    async def open_tap(self, tap: str) -> int:
        """A descriptor of a port's tap for QEMU; the caller closes it.

        Raises ``NotFound`` (``nic.not_plugged``), ``Conflict`` (``nic.tap_busy``).
        """
        return await self._thread.call(self._open.open_tap, tap)

    async def counters(self, tap: str) -> dict[str, int]:
        """Guard (mac, ip, arp, dhcp, router, frame) -> packets dropped at that port since it was plugged in."""
        return await self._thread.call(self._open.counters, tap)

    async def all_counters(self) -> dict[str, dict[str, int]]:
        """The same for all ports, by tap."""
        return await self._thread.call(self._open.all_counters)

    async def leases(self, bridge: str) -> list[Lease]:
        """The DHCP leases of a switch."""
        return await self._thread.call(self._open.leases, bridge)

    async def routes(self) -> list[Route]:
        """The networks that the host reaches, for ``addresses.check_subnet``."""
        return await self._thread.call(self._open.routes)

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
        if self._kernel is not None:
            await self._thread.call(self._kernel.close)
            self._kernel = None
        await self._thread.close()

    @property
    def _open(self) -> Kernel:
        if self._kernel is None:
            raise Unavailable(
                "network.not_started", "the switches have not been started", remedy="try again in a moment"
            )
        return self._kernel
