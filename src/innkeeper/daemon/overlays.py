"""The overlays of virtual switches: what may be asked of them, and from documents to policies. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from innkeeper.daemon.allocate import free_number
from innkeeper.model.overlay import LookupRecord, Overlay, OverlaySet
from innkeeper.model.problems import Conflict, Invalid, NoSpace
from innkeeper.model.requests import SwitchCreate
from innkeeper.model.resources import Nic, Switch
from innkeeper.network.addresses import check_next_hop, check_record
from innkeeper.network.overlay import OVERHEAD_BYTES, CustomerRoute, OverlayPolicy, Record
from innkeeper.network.policy import SwitchPolicy
from innkeeper.network.tenant import LAST_DOMAIN, uplink_of


def overlay_policy(overlay: Overlay) -> OverlayPolicy:
    """The policy of an overlay. Raises ``Invalid`` (``switch.record``) when its records contradict each other."""
    records = tuple(Record(one.customer_address, one.mac, one.provider_address) for one in overlay.records)
    return OverlayPolicy(
        vni=overlay.vni,
        provider=overlay.provider_address,
        encapsulation=overlay.encapsulation,
        domain=overlay.domain_number,
        records=records,
        routes=tuple(CustomerRoute(one.prefix, one.next_hop, one.metric) for one in overlay.routes),
        gateway=overlay.gateway,
    )


def mtu(request: SwitchCreate) -> int:
    """The mtu of a new switch: a virtual one leaves room for the encapsulation unless an mtu was asked for."""
    if request.overlay is None or "mtu" in request.model_fields_set:
        return request.mtu
    return request.mtu - OVERHEAD_BYTES[request.overlay.encapsulation]


def subnets_beside(request: SwitchCreate, switches: Iterable[Switch]) -> dict[str, str]:
    """Name -> subnet of the switches that a new one must not overlap: a tenant's are nobody's but its own."""
    domain = _domain(request)
    return {
        switch.name: switch.subnet
        for switch in switches
        if switch.subnet and (switch.overlay.routing_domain if switch.overlay else None) == domain
    }


def new(request: SwitchCreate, switches: Collection[Switch], held: Collection[str]) -> Overlay | None:
    """The overlay of a new switch; ``held``: the host's own addresses.

    Raises ``Conflict`` (``switch.vni_taken``), ``Invalid`` (``switch.provider_absent``).
    """
    wish = request.overlay
    if wish is None:
        return None
    domain = _domain(request)
    numbers = {one.overlay.routing_domain: one.overlay.domain_number for one in switches if one.overlay}
    for other in switches:
        if other.overlay is not None and other.overlay.vni == wish.vni:
            raise Conflict(
                "switch.vni_taken",
                f"virtual network {wish.vni} is on this host already",
                cause=f"switch {other.name!r} has it",
                remedy="plug the cards into that switch, or choose another --vni",
            )
    _check_provider(wish.provider_address, held)
    return Overlay(
        **wish.model_dump(exclude={"routing_domain"}),
        routing_domain=domain or request.name,
        domain_number=numbers[domain] if domain in numbers else _free_domain(numbers.values()),
    )


def changed(switch: Switch, wish: OverlaySet, nics: Iterable[Nic], held: Collection[str]) -> Overlay:
    """The overlay of ``switch`` as ``wish`` changes it; ``nics``: all cards of this host.

    Raises ``Invalid`` (``switch.overlay``, ``switch.provider_absent``, ``switch.record``, ``switch.route``),
    ``Conflict`` (``switch.record_of_own_card``).
    """
    if switch.overlay is None:
        raise Invalid(
            "switch.overlay",
            f"switch {switch.name!r} is {switch.switch_kind}: it has no other hosts",
            remedy="make a switch with --kind virtual --vni N --provider ADDRESS",
        )
    overlay = Overlay(**{**switch.overlay.model_dump(), **wish.model_dump(exclude_none=True)})
    if wish.provider_address is not None:
        _check_provider(wish.provider_address, held)
    owners = {nic.mac: nic.name for nic in nics}
    owners |= {nic.address: nic.name for nic in nics if nic.address and nic.switch_id == switch.id}
    for route in overlay.routes:
        check_next_hop(switch.name, switch.subnet, route.next_hop)
    for record in overlay_policy(overlay).remote:
        check_record(switch.name, switch.subnet, record.customer)
        owner = owners.get(record.mac) or owners.get(record.customer)
        if owner is not None:
            raise Conflict(
                "switch.record_of_own_card",
                f"{record.customer} ({record.mac}) cannot be behind {record.provider}",
                cause=f"card {owner} of this host has that mac or address",
                remedy="remove the card first, or leave the record out",
            )
    return overlay


def own_records(switch: Switch, nics: Iterable[Nic]) -> list[LookupRecord]:
    """What other hosts of a virtual switch must know of this one's cards."""
    if switch.overlay is None:
        return []
    return [
        LookupRecord(customer_address=address, mac=nic.mac, provider_address=switch.overlay.provider_address)
        for nic in nics
        for address in (nic.address, *nic.extra_addresses)
        if address is not None
    ]


def holders(switch: Switch) -> dict[str, str]:
    """Address or mac -> who has it, of what lookup records say is on other hosts."""
    records = overlay_policy(switch.overlay).remote if switch.overlay else ()
    return {taken: f"a guest behind {record.provider}" for record in records for taken in (record.customer, record.mac)}


def way(switch: SwitchPolicy) -> str:
    """The device by which the switch's packets come to the host."""
    return uplink_of(switch.bridge, switch.overlay).device if switch.overlay else switch.bridge


def _domain(request: SwitchCreate) -> str | None:
    return (request.overlay.routing_domain or request.name) if request.overlay else None


def _free_domain(taken: Iterable[int]) -> int:
    number = free_number(taken)
    if number > LAST_DOMAIN:
        raise NoSpace("switch.domains_exhausted", f"this host has {LAST_DOMAIN} routing domains", remedy="remove some")
    return number


def _check_provider(address: str, held: Collection[str]) -> None:
    if address not in held:
        raise Invalid(
            "switch.provider_absent",
            f"{address} is not an address of this host",
            cause=f"it has {', '.join(sorted(held)) or 'none'}",
            remedy="give --provider the address by which the other hosts reach this one",
        )
