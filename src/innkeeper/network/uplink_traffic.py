"""What a switch asks of the queues of its uplink: shares by minimums, and 802.1p priorities. Blocking."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from innkeeper.model.problems import Problem, Unavailable
from innkeeper.network.minimums import shares
from innkeeper.network.plan import Standing
from innkeeper.network.priorities import Priority, priorities
from innkeeper.network.unforeseen import as_problem
from innkeeper.network.uplink_priorities import UplinkPriorities
from innkeeper.network.uplink_shares import UplinkShares


class UplinkTraffic:
    """Raises what ``UplinkShares`` and ``UplinkPriorities`` do, but for a kernel that cannot set priorities."""

    def __init__(self) -> None:
        self._shares, self._priorities = UplinkShares(), UplinkPriorities()
        self.problems: dict[str, Problem] = {}
        """Bridge -> what its ports ask and this kernel has no part for: they go on without."""

    def close(self) -> None:
        self._shares.close()

    def ensure(self, standing: Standing, *, verify: bool = False) -> list[str]:
        """Have the uplink serve the ports as they ask; returns what was done. ``verify``: look, whatever was done."""
        switch, ports = standing.switch, list(standing.ports.values())
        self.problems.pop(switch.bridge, None)
        done = self._shares.ensure(switch.outside, shares(switch, ports), verify=verify)
        try:
            done += self._priorities.ensure(switch.outside, priorities(switch, ports), verify=verify)
        except Unavailable as lacking:
            self.problems[switch.bridge] = lacking
        return done

    def clear(self, bridge: str, devices: Iterable[str]) -> Problem | None:
        """Leave nothing of it at ``devices``, which cease to be the uplink of ``bridge``; returns what failed.

        That must not keep whoever gives the host its network back.
        """
        self.problems.pop(bridge, None)
        failed: Problem | None = None
        for device in devices:
            for clear in (
                partial(self._shares.ensure, device, None, verify=True),
                partial(self._priorities.ensure, device, frozenset[Priority](), verify=True),
            ):
                try:
                    with as_problem(f"the queues of {device} cannot be left as they were"):
                        clear()
                except Problem as problem:
                    failed = failed or problem
        return failed
