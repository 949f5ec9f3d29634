"""From documents to what the switch is compiled from; pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from innkeeper.daemon.overlays import overlay_policy
from innkeeper.model.acl import AclLists
from innkeeper.model.dhcp import DhcpSettings
from innkeeper.model.guards import Guards
from innkeeper.model.resources import Acl, Nic, Switch, SwitchKind, Vm
from innkeeper.model.uplink import Uplink
from innkeeper.model.vlan import NicVlan, vlan_ranges
from innkeeper.network.acl import meters_of, policy_of
from innkeeper.network.dhcp_policy import DhcpPolicy, Reservation
from innkeeper.network.ipv6 import interface_address
from innkeeper.network.policy import Forward, GuardPolicy, PortPolicy, SwitchPolicy
from innkeeper.network.traffic import DIRECTIONS, Meter, TrafficPolicy
from innkeeper.network.uplink_policy import UplinkPolicy
from innkeeper.network.vlan_policy import UNTAGGED, VlanPolicy
from innkeeper.system.paths import Paths

NOTHING: Mapping[str, str] = MappingProxyType({})


def switch_policy(paths: Paths, switch: Switch, nics: Iterable[Nic]) -> SwitchPolicy:
    """The policy of a switch; forwards to cards without an address are left out."""
    cards = list(nics)
    targets = {nic.id: [text for text in (nic.address, *addresses6(switch, nic)[:1]) if text] for nic in cards}
    return SwitchPolicy(
        name=switch.name,
        bridge=paths.bridge(switch.number),
        kind=switch.switch_kind.value,
        subnet=switch.subnet,
        subnet6=switch.subnet6,
        ra_mode=switch.ra_mode,
        dhcp=switch.dhcp,
        dns_domain=switch.dns_domain,
        mtu=switch.mtu,
        overlay=overlay_policy(switch.overlay) if switch.overlay else None,
        forwards=tuple(
            Forward(forward.protocol, forward.host_port, target, forward.guest_port, forward.host_address)
            for forward in switch.forwards
            for target in targets.get(forward.nic_id, ())
            if forward.host_address is None or (":" in forward.host_address) == (":" in target)
        ),
        uplink=uplink_policy(switch.uplink) if switch.uplink is not None else None,
        uplink_rate_bits_per_s=switch.uplink_rate_bits_per_s,
        dhcp_policy=dhcp_policy(switch.dhcp_settings),
        host_services=tuple(switch.host_services),
        vlans=any(vlan_policy(nic.vlan) != UNTAGGED for nic in cards),
    )


def card_mtu(switch: Switch, nic: Nic) -> int:
    """The MTU of a card on its switch: its own where that is the smaller."""
    return min(nic.mtu or switch.mtu, switch.mtu)


def addresses6(switch: Switch, nic: Nic) -> list[str]:
    """The IPv6 addresses of a card in its switch's subnet: the one that it is known by first.

    A guest that makes its own has that one whatever it is given besides.
    """
    if switch.subnet6 is None:
        return []
    made = interface_address(ipaddress.IPv6Network(switch.subnet6), nic.mac)
    if nic.address6 is None:
        return [made]
    return [nic.address6, made] if switch.ra_mode == "slaac" else [nic.address6]


def dhcp_policy(settings: DhcpSettings) -> DhcpPolicy:
    """What a switch's DHCP gives."""
    return DhcpPolicy(
        ranges=tuple((one.first, one.last) for one in settings.ranges),
        lease_s=settings.lease_s,
        dns_servers=tuple(settings.dns_servers),
        search_domains=tuple(settings.search_domains),
        ntp_servers=tuple(settings.ntp_servers),
        options=tuple((one.number, one.value) for one in settings.options),
        reservations=tuple(Reservation(one.mac, one.address, one.hostname or "") for one in settings.reservations),
    )


def uplink_policy(uplink: Uplink) -> UplinkPolicy | None:
    """The policy of an external switch's uplink; None when it was given back because nobody confirmed it."""
    if uplink.state == "returned":
        return None
    return UplinkPolicy(
        devices=tuple(uplink.devices),
        via=uplink.via,
        team=uplink.team,
        mac=uplink.mac,
        network=uplink.moved,
        confirm_s=uplink.confirm_within_s if uplink.state == "pending" else None,
    )


def port_policy(
    paths: Paths,
    switch: Switch,
    nic: Nic,
    vm: Vm,
    acls: Mapping[str, Acl],
    *,
    first: bool,
    learned: Mapping[str, str] = NOTHING,
) -> PortPolicy:
    """The policy of a card's port. A vm's first card on a switch answers to the vm's name, others to the card's.

    ``learned``: address -> mac that it was given to. One of a further mac does not say what the card's own is.
    """
    own = [text for text, mac in learned.items() if mac == nic.mac and ":" not in text]
    return PortPolicy(
        tap=paths.tap(nic.number),
        mac=nic.mac,
        ipv4=(nic.address,) if nic.address else tuple(own),
        ipv6=tuple(addresses6(switch, nic)),
        extra=(*nic.extra_addresses, *(text for text in learned if text not in own)),
        extra_macs=tuple(nic.extra_macs),
        guards=guard_policy(nic.guards.over(switch.guards)),
        hostname=vm.name if first else nic.name,
        owner_uid=vm.status.uid,
        mtu=mtu if (mtu := card_mtu(switch, nic)) != switch.mtu else None,
        traffic=traffic_policy(nic, acls),
        acl=policy_of(acl_lists(nic, acls)),
        vlan=vlan_policy(nic.vlan),
        learns=switch.switch_kind == SwitchKind.EXTERNAL and nic.address is None,
    )


def guard_policy(guards: Guards) -> GuardPolicy:
    """What holds at a port."""
    return GuardPolicy(**guards.model_dump(exclude={"ethertypes"}), ethertypes=tuple(guards.ethertypes))


def acl_lists(nic: Nic, acls: Mapping[str, Acl]) -> list[tuple[str, AclLists]]:
    """A card's own lines, then those of its named ACLs, with their names."""
    return [("", nic.acl), *((acls[each].name, acls[each]) for each in nic.acl.sets if each in acls)]


def traffic_policy(nic: Nic, acls: Mapping[str, Acl]) -> TrafficPolicy:
    """What a card may take of the network; its meters count both directions, those of its ACLs one."""
    return TrafficPolicy(
        **nic.traffic.model_dump(exclude={"meters"}),
        meters=tuple(
            sorted(
                {Meter(direction, remote) for remote in nic.traffic.meters for direction in DIRECTIONS}
                | set(meters_of(acl_lists(nic, acls)))
            )
        ),
    )


def vlan_policy(vlan: NicVlan) -> VlanPolicy:
    """The VLAN of a card's port."""
    match vlan.mode:
        case "untagged":
            return UNTAGGED
        case "access":
            return VlanPolicy("access", vlan.vlan_id)
        case "trunk":
            return VlanPolicy("trunk", vlan.native_vlan_id, vlan_ranges(vlan.allowed_vlan_ids or ""))
        case "promiscuous":
            return VlanPolicy("promiscuous", vlan.primary_vlan_id, vlan_ranges(vlan.secondary_vlan_ids or ""))
        case _:
            return VlanPolicy(vlan.mode, vlan.primary_vlan_id, vlan_ranges(str(vlan.secondary_vlan_id)))


def port_policies(
    paths: Paths,
    switch: Switch,
    nics: Iterable[Nic],
    vms: Mapping[str, Vm],
    acls: Mapping[str, Acl],
    learned: Callable[[Nic], Mapping[str, str]] = lambda _: NOTHING,
) -> list[PortPolicy]:
    """The policies of all cards of one switch; what was ``learned`` of each as for ``port_policy``."""
    policies = []
    named: set[str] = set()
    for nic in sorted(nics, key=lambda nic: (nic.vm_id, nic.index)):
        vm = vms.get(nic.vm_id)
        if vm is None:
            continue
        policies.append(
            port_policy(paths, switch, nic, vm, acls, first=vm.id not in named, learned=learned(nic)),
        )
        named.add(vm.id)
    return policies
