"""From documents to what the switch is compiled from; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from innkeeper.model.resources import Nic, Switch, Vm
from innkeeper.network.policy import Forward, GuardPolicy, PortPolicy, SwitchPolicy
from innkeeper.system.paths import Paths


def switch_policy(paths: Paths, switch: Switch, nics: Iterable[Nic]) -> SwitchPolicy:
    """The policy of a switch; forwards to cards without an address are left out."""
    address = {nic.id: nic.address for nic in nics}
    return SwitchPolicy(
        name=switch.name,
        bridge=paths.bridge(switch.number),
        kind=switch.switch_kind.value,
        subnet=switch.subnet,
        dhcp=switch.dhcp,
        dns_domain=switch.dns_domain,
        mtu=switch.mtu,
        forwards=tuple(
            Forward(forward.protocol, forward.host_port, target, forward.guest_port, forward.host_address)
            for forward in switch.forwards
            if (target := address.get(forward.nic_id)) is not None
        ),
    )


def port_policy(paths: Paths, nic: Nic, vm: Vm, *, first: bool) -> PortPolicy:
    """The policy of a card's port. Its first card on a switch answers to the vm's name, others to the card's."""
    return PortPolicy(
        tap=paths.tap(nic.number),
        mac=nic.mac,
        ipv4=((nic.address, *nic.extra_addresses) if nic.address else tuple(nic.extra_addresses)),
        guards=GuardPolicy(**nic.guards.model_dump()),
        hostname=vm.name if first else nic.name,
        owner_uid=vm.status.uid,
    )


def port_policies(paths: Paths, nics: Iterable[Nic], vms: Mapping[str, Vm]) -> list[PortPolicy]:
    """The policies of all cards of one switch."""
    policies = []
    named: set[str] = set()
    for nic in sorted(nics, key=lambda nic: (nic.vm_id, nic.index)):
        vm = vms.get(nic.vm_id)
        if vm is None:
            continue
        policies.append(port_policy(paths, nic, vm, first=vm.id not in named))
        named.add(vm.id)
    return policies
