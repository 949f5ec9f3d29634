"""What a guest's cloud-init seed says of its network: cards with static addresses, and the others by DHCP. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from innkeeper.compute.network_config import CardConfig, network_config
from innkeeper.compute.seed import SeedInputs, seed_inputs
from innkeeper.daemon.ports import addresses6, card_mtu
from innkeeper.model.problems import Invalid
from innkeeper.model.resources import Nic, Switch, SwitchKind, Vm
from innkeeper.network.ipv6 import gateway6


def seed_of(
    vm: Vm, nics: Iterable[Nic], switches: Mapping[str, Switch], *, wanted: bool | None = None
) -> SeedInputs | None:
    """The seed of a vm with those cards; None when it wants none: no cloud-init and no static card.

    ``wanted`` says instead whether there is one: a guest that goes on from its memory has the devices it had.
    """
    cards = list(nics)
    if wanted is None:
        wanted = vm.spec.cloud_init is not None or any(nic.static for nic in cards)
    if not wanted:
        return None
    return seed_inputs(vm, network_config(card_config(nic, switches[nic.switch_id]) for nic in cards))


def card_config(nic: Nic, switch: Switch) -> CardConfig:
    """How the guest sets a card up."""
    if nic.static and nic.address is not None and switch.subnet is not None:
        return _static(nic, nic.address, switch, switch.subnet)
    by_dhcp = serves_dhcp(switch)
    managed = switch.subnet6 is not None and switch.ra_mode == "managed"
    return CardConfig(nic.index, nic.mac, card_mtu(switch, nic), dhcp=by_dhcp, dhcp6=by_dhcp and managed)


def _static(nic: Nic, address: str, switch: Switch, subnet: str) -> CardConfig:
    settings = switch.dhcp_settings
    own6 = addresses6(switch, nic)[:1]
    hosts = [switch.gateway] if switch.gateway else []
    if switch.subnet6 is not None and hosts:
        hosts.append(gateway6(ipaddress.IPv6Network(switch.subnet6)))
    return CardConfig(
        nic.index,
        nic.mac,
        card_mtu(switch, nic),
        addresses=(f"{address}/{subnet.partition('/')[2]}", *(f"{text}/64" for text in own6)),
        gateways=tuple(hosts) if switch.switch_kind == SwitchKind.NAT else (),
        dns_servers=tuple(settings.dns_servers or (hosts if switch.dhcp else ())),
        search_domains=tuple(settings.search_domains) or (switch.dns_domain,),
    )


def serves_dhcp(switch: Switch) -> bool:
    """Whether guests get their addresses by DHCP on that switch: from it, or from the network outside."""
    if switch.switch_kind == SwitchKind.EXTERNAL:
        return True
    return switch.dhcp and switch.switch_kind != SwitchKind.PRIVATE


def check_static(vm: Vm) -> None:
    """Raises ``Invalid`` (``nic.network_config``) when the vm's user configures its network."""
    wish = vm.spec.cloud_init
    if wish is not None and wish.network_config is not None:
        raise Invalid(
            "nic.network_config",
            f"vm {vm.name!r} has a network configuration of its own: no address can be written into it",
            remedy="set the address there, or make the vm without --network-config",
        )
