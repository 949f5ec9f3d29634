"""What a card's VLAN, and the priority of what it sends there, needs of its switch and of this host's kernel."""

from __future__ import annotations

from collections.abc import Iterable

from innkeeper.daemon.ports import vlan_policy
from innkeeper.model.problems import Conflict, Invalid
from innkeeper.model.resources import Nic, Switch, SwitchKind
from innkeeper.model.traffic import NicTraffic
from innkeeper.model.uplink import Uplink
from innkeeper.model.vlan import NicVlan
from innkeeper.network.features import PRIORITIES, VLAN_FILTERING, lacking, lacks
from innkeeper.network.host_vlans import bridge_ports, host_vlans
from innkeeper.network.vlan_policy import OWN_VLAN, UNTAGGED, VlanPolicy, carries
from innkeeper.system.kernel_parts import kernel_parts


def takes_vlans(switch: Switch) -> bool:
    """Whether cards on that switch can have a VLAN: what a virtual one carries to other hosts has no tag."""
    return switch.switch_kind is not SwitchKind.VIRTUAL


def check_vlan(switch: Switch, vlan: NicVlan) -> None:
    """Raises ``Invalid`` (``nic.vlan``) for what a card on that switch cannot be, ``Unavailable``
    (``network.kernel_lacks``) for what this kernel cannot do, ``Conflict`` (``nic.vlan_in_use``) for what the host has.
    """
    policy = vlan_policy(vlan)
    if not takes_vlans(switch) and policy != UNTAGGED:
        raise Invalid(
            "nic.vlan",
            f"cards on the virtual switch {switch.name!r} cannot have a VLAN",
            cause="what leaves it for other hosts carries no tag",
            remedy="make a virtual switch for each",
        )
    outside = switch.switch_kind is SwitchKind.EXTERNAL and policy != UNTAGGED
    if vlan.mode == "trunk" or outside:
        for part in lacking(VLAN_FILTERING, kernel_parts(VLAN_FILTERING.parts)):
            what = "a VLAN that leads outside" if outside else "a trunk"
            raise lacks(part, what, VLAN_FILTERING.still)
    if outside and switch.uplink is not None:
        _check_host_vlans(_cards(switch.uplink), policy)


def check_uplink(uplink: Uplink, nics: Iterable[Nic]) -> None:
    """Whether the VLANs of a switch's cards can lead out by ``uplink``. Raises ``Conflict`` (``nic.vlan_in_use``)."""
    cards = _cards(uplink)
    for nic in nics:
        if (policy := vlan_policy(nic.vlan)) != UNTAGGED:
            _check_host_vlans(cards, policy)


def check_priority(switch: Switch, traffic: NicTraffic) -> None:
    """Raises ``Unavailable`` (``network.kernel_lacks``) where the uplink cannot be given the card's priority."""
    if switch.switch_kind is SwitchKind.EXTERNAL and traffic.pcp is not None:
        for part in lacking(PRIORITIES, kernel_parts(PRIORITIES.parts)):
            raise lacks(part, "an 802.1p priority", PRIORITIES.still)


def _cards(uplink: Uplink) -> list[str]:
    """Where a VLAN device of the host's gets frames before the switch: not on a bridge, but on its ports."""
    return [port for name in uplink.devices for port in bridge_ports(name)] if uplink.via == "cable" else uplink.devices


def _check_host_vlans(cards: Iterable[str], policy: VlanPolicy) -> None:
    for (card, vlan_id), device in host_vlans().items():
        if card in cards and vlan_id != OWN_VLAN and carries(policy, vlan_id):
            raise Conflict(
                "nic.vlan_in_use",
                f"VLAN {vlan_id} of the uplink {card} is the host's own device {device}",
                cause="that gets its frames before the switch could",
                remedy=f"choose another VLAN, remove {device}, or make it the uplink of a switch of its own",
            )
