"""The plans of tenants' gateways: the same on every host, and nothing shared by two tenants."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from innkeeper.model.problems import Failed, Invalid
from innkeeper.network import tenant_links
from innkeeper.network.addresses import check_next_hop
from innkeeper.network.dhcp import compile_files
from innkeeper.network.overlay import CustomerRoute, OverlayPolicy, Record
from innkeeper.network.overlay_plan import overlay_elements
from innkeeper.network.plan import Standing, plan_change
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.ruleset import Element
from innkeeper.network.tenant import Tenant, plan_tenant, ruleset, tenant_elements

ROUTES = (CustomerRoute("10.9.0.0/16", "10.5.0.7"),)


def switch_of(number: int, domain: int, *, gateway: bool = False, inn: str = "k3f9", host: int = 1) -> SwitchPolicy:
    routes = ROUTES if number == 1 else ()
    overlay = OverlayPolicy(5000 + number, f"192.0.2.{host}", domain=domain, routes=routes, gateway=gateway)
    subnet = f"10.{number + 4}.0.0/24"
    return SwitchPolicy(f"v{number}", f"inbr-{inn}{number}", kind="virtual", subnet=subnet, mtu=1450, overlay=overlay)


def test_a_tenant_has_a_gateway_in_each_subnet_and_a_way_out_where_it_may() -> None:
    tenant = plan_tenant([switch_of(2, 1), switch_of(1, 1, gateway=True)])
    assert tenant.namespace == "intn-k3f91"
    assert [(one.bridge, one.device, one.inner, one.address, one.length) for one in tenant.gateways] == [
        ("inbr-k3f91", "ingw-k3f91", "gw-1", "10.5.0.1", 24),
        ("inbr-k3f92", "ingw-k3f92", "gw-2", "10.6.0.1", 24),
    ]
    assert tenant.gateways[0].routes == ROUTES
    assert tenant.ways == ("gw-1",)
    assert tenant.uplink is not None and tenant.uplink.device == "intu-k3f91"
    assert "elements = { gw-1 }" in ruleset(tenant)
    assert plan_tenant([switch_of(1, 1)]).uplink is None
    assert "elements" not in ruleset(plan_tenant([switch_of(1, 1)]))


def test_every_host_has_the_same_gateways() -> None:
    here, there = (plan_tenant([switch_of(1, 1, inn=inn)]).gateways[0] for inn in ("k3f9", "aaaa"))
    assert (here.mac, here.address, here.inner) == (there.mac, there.address, there.inner)
    assert here.device != there.device


@given(st.dictionaries(st.integers(1, 40), st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=12))
def test_two_tenants_share_nothing(places: dict[int, tuple[int, bool]]) -> None:
    domains: dict[int, list[SwitchPolicy]] = {}
    for number, (domain, gateway) in places.items():
        domains.setdefault(domain, []).append(switch_of(number, domain, gateway=gateway))
    tenants = {domain: plan_tenant(switches) for domain, switches in domains.items()}
    for domain, tenant in tenants.items():
        may = {switch.bridge for switch in domains[domain] if switch.overlay is not None and switch.overlay.gateway}
        assert set(tenant.ways) == {gateway.inner for gateway in tenant.gateways if gateway.bridge in may}
    for one, other in combinations(domains, 2):
        assert not _names(tenants[one]) & _names(tenants[other])
        assert not _elements(domains[one]) & _elements(domains[other])


def _elements(switches: list[SwitchPolicy]) -> set[Element]:
    return {element for switch in switches for element in tenant_elements(switch)}


def _names(tenant: Tenant) -> set[str]:
    """All that a tenant is known by to the host, and its uplink's addresses."""
    uplink = {tenant.uplink.device, tenant.uplink.host, tenant.uplink.tenant} if tenant.uplink else set()
    return {tenant.namespace, *uplink, *(gateway.device for gateway in tenant.gateways)}


def test_dhcp_names_the_gateway_and_listens_in_the_namespace() -> None:
    written = compile_files(switch_of(1, 1), [], Path("/run/v1"), "nobody").configuration.splitlines()
    assert "interface=gw-1" in written
    assert any(line.startswith("dhcp-option=option:router,10.5.0.1") for line in written)
    assert "no-resolv" in written
    assert "no-resolv" not in compile_files(switch_of(1, 1, gateway=True), [], Path("/run/v1"), "nobody").configuration


def test_a_dry_run_tells_of_the_gateway() -> None:
    plan = plan_change(None, Standing(switch_of(1, 1, gateway=True)), Path("/run"), "nobody")
    assert "gateway 10.5.0.1/24 in namespace intn-k3f91" in plan.steps
    assert "make vxlan tunnel inov-k3f91" in plan.steps
    assert "+route 10.9.0.0/16 by 10.5.0.7 metric 0" in plan.diff.splitlines()


def test_a_customer_routes_guest_may_send_for_others_and_nobody_else() -> None:
    records = (
        Record("10.5.0.7", "52:54:00:00:00:07", "192.0.2.2"),
        Record("10.5.0.8", "52:54:00:00:00:08", "192.0.2.2"),
    )
    overlay = OverlayPolicy(5001, "192.0.2.1", domain=1, records=records, routes=ROUTES)
    switch = SwitchPolicy("v1", "inbr-k3f91", kind="virtual", subnet="10.5.0.0/24", overlay=overlay)
    may = {one.key[1] for one in overlay_elements(switch) if one.container == "overlay_gateways"}
    assert may == {overlay.gateway_mac, "52:54:00:00:00:07"}


def test_routes_that_cannot_be_are_refused() -> None:
    with pytest.raises(Invalid) as refused:
        OverlayPolicy(5001, "192.0.2.1", routes=(*ROUTES, CustomerRoute("10.9.0.0/16", "10.5.0.8")))
    assert refused.value.code == "switch.route"
    for hop in ("10.6.0.7", "10.5.0.1"):
        with pytest.raises(Invalid) as refused:
            check_next_hop("red", "10.5.0.0/24", hop)
        assert refused.value.code == "switch.route"
    check_next_hop("red", "10.5.0.0/24", "10.5.0.7")


def test_a_wire_that_vanishes_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenant_links, "read", lambda *_: [])
    with pytest.raises(Failed) as problem:
        tenant_links._ensure_end("gw-1", "10.5.0.1/24")
    assert problem.value.code == "link.refused" and "gw-1" in str(problem.value)
