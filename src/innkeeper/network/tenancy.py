"""The tenants of all virtual switches that stand: which switches share one, and their gateways. Blocking."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

from innkeeper.network import namespace
from innkeeper.network.plan import Standing
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.ruleset import Element
from innkeeper.network.tenant import gateway_of, namespace_of, plan_tenant, tenant_elements
from innkeeper.network.tenant_links import Tenants


class Tenancy:
    """``standing``: bridge -> what is desired; it is looked at at every call and never changed here."""

    def __init__(self, inn_id: str, standing: Mapping[str, Standing]) -> None:
        self._standing = standing
        self._tenants = Tenants(inn_id)

    def ensure(self, switch: SwitchPolicy) -> list[str]:
        """Make the gateway of a virtual switch, and what it shares with its tenant's others, be so."""
        if switch.overlay is None:
            return []
        return self._tenants.ensure(plan_tenant([switch, *self._others(switch)]), gateway_of(switch))

    def remove(self, switch: SwitchPolicy) -> list[str]:
        """Remove the gateway of a virtual switch, and its tenant's namespace with the last."""
        if switch.overlay is None:
            return []
        done = self._tenants.remove_gateway(gateway_of(switch))
        others = self._others(switch)
        if others:
            return done + self._tenants.settle(plan_tenant(others))
        return done + self._tenants.remove(namespace_of(switch.bridge, switch.overlay))

    def sweep(self) -> list[str]:
        """Remove what belongs to no virtual switch that stands."""
        domains: dict[int, list[SwitchPolicy]] = {}
        for standing in self._standing.values():
            if standing.switch.overlay is not None:
                domains.setdefault(standing.switch.overlay.domain, []).append(standing.switch)
        return self._tenants.sweep([plan_tenant(members) for members in domains.values()])

    def remove_all(self) -> None:
        """Remove all of it, also what an earlier daemon left."""
        self._tenants.sweep(())

    def shared_elements(self, *standings: Standing | None) -> frozenset[Element]:
        """The rules' elements that a switch shares with others of its tenant: they stay when it changes or goes."""
        switch = next((one.switch for one in standings if one is not None and one.switch.overlay is not None), None)
        if switch is None:
            return frozenset()
        return frozenset().union(*(tenant_elements(other) for other in self._others(switch)))

    def inside(self, switch: SwitchPolicy) -> AbstractContextManager[None]:
        """Where the switch's DHCP and DNS are."""
        if switch.overlay is None:
            return nullcontext()
        return namespace.inside(namespace_of(switch.bridge, switch.overlay))

    def _others(self, switch: SwitchPolicy) -> list[SwitchPolicy]:
        assert switch.overlay is not None
        return [
            other
            for standing in self._standing.values()
            if (other := standing.switch).bridge != switch.bridge
            and other.overlay is not None
            and other.overlay.domain == switch.overlay.domain
        ]
